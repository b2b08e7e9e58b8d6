/**
 * Law 2: logits, losses, gradients and optimizer steps equal those of torch + transformers + peft, on both
 * targets.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { decode, parseHeader } from "../runtime/bundle.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import {
  batchOf,
  checkGradient,
  checkLogits,
  configs,
  engineOf,
  fixtures,
  idsOf,
  reference,
  referenceTensor,
} from "./support/engines.ts";
import { suite } from "./support/suite.ts";

const test = suite("reference");

for (const name of ["odd", "even", "qwen3", "gemma2"] as const)
  for (const target of ["wasm", "webgpu"] as const) {
    const config = configs[name];
    const vocab = config.vocab_size;
    const ref = reference[name];
    const rows = batchOf(vocab);
    const common = {
      data: rows,
      batchSize: 5,
      shuffle: false,
      weightDecay: 0.01,
      learningRate: 1e-3,
      maxGradNorm: 1,
    } as const;
    const most = ref.lora.length;
    const steps = target === "wasm" || name === "even" ? most : Math.min(4, most);

    test(`${name} on ${target}: logits, LoRA gradients and ${steps} AdamW steps`, async () => {
      await using engine = await engineOf(config, { targets: [target] });
      assert.is(engine.core.invariance, "verified");
      await checkLogits(engine, `${name}.logits`, vocab);
      await engine.adapters.load("peft", `${fixtures}peft-${name}`);
      await checkLogits(engine, `${name}.lora_logits`, vocab, "peft");
      const lr = 16;
      const one = await engine.finetune({
        ...common,
        name: "grad",
        from: "peft",
        steps: 1,
        optimizer: "sgd",
        momentum: 0,
        weightDecay: 0,
        learningRate: lr,
        maxGradNorm: 0,
      });
      const { losses } = await one.done;
      assert.ok(
        Math.abs(losses[0]! - ref.lora_loss) <= 1e-5,
        `loss ${losses[0]}, torch says ${ref.lora_loss}`,
      );
      const files = ["peft", "grad"].map(
        (a) =>
          writeAdapter(engine.core.adapters.find(a).content, engine.manifest, engine.core.device.plan)
            .weights,
      );
      const [h0, h1] = files.map((f) => parseHeader(f, f.length, "adapter").tensors) as [
        ReturnType<typeof parseHeader>["tensors"],
        ReturnType<typeof parseHeader>["tensors"],
      ];
      assert.is(h0.length, Object.keys(ref.lora_grads).length);
      h0.forEach((t, i) => {
        const value = (k: 0 | 1): Float32Array =>
          decode(files[k]!.subarray([h0, h1][k]![i]!.start, [h0, h1][k]![i]!.end), "F32", t.name);
        checkGradient(
          t.name,
          value(0),
          value(1),
          lr,
          ref.lora_grads[t.name.replace("base_model.model.", "")]!,
        );
      });
      const job = await engine.finetune({ ...common, name: "adamw", from: "peft", steps });
      (await job.done).losses.forEach((x, i) =>
        assert.ok(Math.abs(x - ref.lora[i]!) <= 1e-4, `step ${i + 1}: loss ${x}, torch says ${ref.lora[i]}`),
      );
    });

    test(`${name} on ${target}: full gradients and ${steps} AdamW steps`, async () => {
      const lr = 0.5;
      {
        await using engine = await engineOf(config, { targets: [target], train: ["full"] });
        const before = await engine.core.baseTensors();
        const job = await engine.finetune({
          ...common,
          name: "grad",
          method: "full",
          steps: 1,
          optimizer: "sgd",
          momentum: 0,
          weightDecay: 0,
          learningRate: lr,
          maxGradNorm: 0,
        });
        const { losses } = await job.done;
        assert.ok(Math.abs(losses[0]! - ref.loss) <= 1e-5, `loss ${losses[0]}, torch says ${ref.loss}`);
        const after = await engine.core.baseTensors();
        before.forEach((t, i) => checkGradient(t.name, t.data, after[i]!.data, lr, ref.grads[t.name]!));
      }
      await using engine = await engineOf(config, { targets: [target], train: ["full"] });
      const job = await engine.finetune({ ...common, name: "adamw", method: "full", steps });
      (await job.done).losses.forEach((x, i) =>
        assert.ok(Math.abs(x - ref.full[i]!) <= 1e-4, `step ${i + 1}: loss ${x}, torch says ${ref.full[i]}`),
      );
    });
  }

for (const target of ["wasm", "webgpu"] as const)
  test(`f16 weights on ${target}: logits of the rounded model, and gradients through it`, async () => {
    await using half = await engineOf(configs.odd, { format: "f16", targets: [target] });
    const want = referenceTensor("odd.logits");
    const { logits } = await half.score(idsOf("prompt", 70, 259), { logits: true });
    let error = 0;
    let max = 0;
    logits!.forEach((row, i) =>
      row.forEach((x, j) => {
        error = Math.max(error, Math.abs(x - want[i * 259 + j]!));
        max = Math.max(max, Math.abs(want[i * 259 + j]!));
      }),
    );
    // The tiny weights sit on a 2^-23 grid: rounding them to 11 bits shows, and stays small.
    assert.ok(error > 0 && error < 5e-3 * max, `f16 differs from f32 by ${error} of ${max}`);
    const job = await half.finetune({
      name: "half",
      data: batchOf(259),
      steps: 3,
      batchSize: 5,
      shuffle: false,
      learningRate: 5e-3,
    });
    const { losses } = await job.done;
    assert.ok(
      Math.abs(losses[0]! - reference.odd.loss) < 5e-3,
      `loss ${losses[0]}, f32 has ${reference.odd.loss}`,
    );
    assert.ok(losses[2]! < losses[0]!, "an f16 base learns");
  });

test("an adapter that weft saved is what peft read: same file, same logits", async () => {
  const folder = `${fixtures}weft-adapter`;
  assert.ok(
    existsSync(folder) && reference.weft_adapter_sha256,
    "run tests/fixtures/save_adapter.ts, then make.py",
  );
  assert.is(
    createHash("sha256")
      .update(readFileSync(`${folder}/adapter_model.safetensors`))
      .digest("hex"),
    reference.weft_adapter_sha256,
  );
  await using engine = await engineOf(configs.odd);
  await engine.adapters.load("saved", folder);
  await checkLogits(engine, "weft_adapter.logits", 259, "saved");
});
test.run();
