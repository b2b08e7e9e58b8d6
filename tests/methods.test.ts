/**
 * Adapter methods, each as real torch (+ peft where peft has it) computes it, all in one engine. S2FT has a
 * file of its own.
 */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { decode, parseHeader } from "../runtime/bundle.ts";
import type { Engine } from "../sdk/index.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import {
  batchOf,
  checkGradient,
  checkLogits,
  configs,
  engineOf,
  fixtures,
  reference,
} from "./support/engines.ts";
import { checkMixed } from "./support/methods.ts";
import { suite } from "./support/suite.ts";

const methods = Object.keys(reference.methods);
/** Held to torch in reference.test, s2ft.test and vera.test. */
const apart = ["lora", "s2ft", "s2ft_permuted", "vera"];
const each = suite("methods");
each("every method is held to an independent one", () => {
  const held = [...methods, ...apart];
  const left = Object.keys(adapterMethods).filter((m) => !held.includes(m));
  assert.equal(left, [], "make each in tests/fixtures/make.py, among `methods`");
});
each.run();

for (const target of ["wasm", "webgpu"] as const) {
  const test = suite(`methods on ${target}`);
  let opened: Promise<Engine> | undefined;
  const open = (): Promise<Engine> =>
    (opened ??= engineOf(configs.odd, {
      targets: [target],
      train: methods,
      methods: [],
      capacities: { savedRows: 160, keptRows: 96, unitRows: 40, slots: 3 },
    }));
  test.after(async () => (await opened)?.dispose());

  for (const method of methods)
    test(`${method}: logits, gradients and AdamW steps of torch; files as they were read`, async () => {
      const engine = await open();
      const ref = reference.methods[method]!;
      const [given, grad, adamw] = ["given", "grad", "adamw"].map((name) => `${method}-${name}`) as [
        string,
        string,
        string,
      ];
      const folder = `${fixtures}${method}-odd`;
      await engine.adapters.load(given, folder);
      await checkLogits(engine, `${method}.logits`, 259, given);
      const common = { data: batchOf(259), batchSize: 5, shuffle: false, from: given, method } as const;
      const lr = 4;
      const one = await engine.finetune({
        ...common,
        name: grad,
        steps: 1,
        optimizer: "sgd",
        momentum: 0,
        learningRate: lr,
        maxGradNorm: 0,
      });
      const { losses } = await one.done;
      assert.ok(Math.abs(losses[0]! - ref.loss) <= 1e-5, `loss ${losses[0]}, torch says ${ref.loss}`);
      const [before, after] = [given, grad].map(
        (a) => writeAdapter(engine.core.adapters.find(a).content, engine.manifest).weights,
      ) as [Uint8Array, Uint8Array];
      const original = readFileSync(`${folder}/adapter_model.safetensors`);
      const raw = (file: Uint8Array, name: string): Uint8Array => {
        const t = parseHeader(file, file.length, "adapter").tensors.find((x) => x.name === name)!;
        return file.subarray(t.start, t.end);
      };
      const value = (file: Uint8Array, name: string): Float32Array => decode(raw(file, name), "F32", name);
      const written = parseHeader(before, before.length, "adapter").tensors;
      for (const t of written)
        if (t.dtype === "I32")
          for (const file of [before, after])
            assert.equal([...raw(file, t.name)], [...raw(original, t.name)], `${t.name}: a choice stays`);
      const names = written.filter((t) => t.dtype === "F32").map((t) => t.name);
      assert.equal([...names].sort(), Object.keys(ref.grads).sort());
      for (const name of names) {
        assert.equal([...value(before, name)], [...value(original, name)], name);
        checkGradient(name, value(before, name), value(after, name), lr, ref.grads[name]!);
      }
      const steps = target === "wasm" ? 10 : 3;
      const job = await engine.finetune({ ...common, name: adamw, steps, learningRate: 1e-3 });
      (await job.done).losses.forEach((x, i) =>
        assert.ok(
          Math.abs(x - ref.losses[i]!) <= 1e-4,
          `step ${i + 1}: loss ${x}, torch says ${ref.losses[i]}`,
        ),
      );
    });
  // On what is compiled already; adapters.test has it on the CPU, and of all methods in the long form.
  if (target === "webgpu")
    test("law 5: methods in a batch, jobs of several, are as alone; fresh = base", async () =>
      checkMixed(await open(), methods));
  test.run();
}
