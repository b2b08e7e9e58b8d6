/**
 * Law 2 for the families beside Llama: logits, losses, gradients and optimizer steps of tiny models equal
 * those of torch + transformers + peft; rotary tables equal those of transformers.
 */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { models } from "../compiler/models/index.ts";
import type { WeftError } from "../runtime/bundle.ts";
import { rotaryTables } from "../runtime/rotary.ts";
import type { Engine } from "../sdk/index.ts";
import {
  batchOf,
  checkLogits,
  configs,
  contentBits,
  engineOf,
  fixtures,
  idsOf,
  reference,
  tiny,
} from "./support/engines.ts";
import { checkFullGradients, checkFullSteps, checkLora } from "./support/reference.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { type FamilyName, families, scratch } from "./support/tiny.ts";

const test = suite("families");
/**
 * Those that in the short form bring to WebGPU what others also have: norms of heads, windows, two rotary
 * tables; LayerNorm, biases, slices of one projection; experts beside dense layers. Soft caps are in
 * attention.test.
 */
const onGpu: readonly FamilyName[] = ["gemma3", "gpt2", "qwen3_moe_mixed"];

/** Rows of a mixture take most: on WebGPU they must fit the smallest binding. */
const on = (target: "wasm" | "webgpu") => ({
  targets: [target] as const,
  ...(target === "webgpu" && { capacities: { savedRows: 192, keptRows: 192, tokens: 32, unitRows: 64 } }),
});
/** Families of which peft made folders of parameters that hold all experts. */
const parameters = { mixtral: true, qwen3_moe: true } as const;
/** What peft saved of such, and what weft saves of them and of others, is read as it was. */
async function checkParameters(engine: Engine, name: keyof typeof parameters): Promise<void> {
  const vocab = configs[name].vocab_size;
  const saved = async (adapter: string): Promise<string> => {
    const folder = `${scratch()}/${adapter}`;
    await engine.adapters.get(adapter).save(folder, { as: "target_parameters" });
    await engine.adapters.load("back", folder);
    assert.is(contentBits(engine, "back"), contentBits(engine, adapter));
    return folder;
  };
  await engine.adapters.load("parameters", `${fixtures}peft-${name}-parameters`);
  await checkLogits(engine, `${name}.parameters_logits`, vocab, "parameters");
  await saved("parameters");
  // Gate and up each with an A of its own.
  const folder = await saved("peft");
  const file = readFileSync(`${folder}/adapter_model.safetensors`);
  const want = reference[name].weft_parameters_sha256;
  if (!want) return;
  const hash = createHash("sha256").update(file).digest("hex");
  assert.is(hash, want, "run tests/fixtures/save_adapter.ts, then make_families.py");
  await engine.adapters.load("written", `${fixtures}weft-${name}-parameters`);
  await checkLogits(engine, `${name}.weft_parameters_logits`, vocab, "written");

  const said = JSON.parse(readFileSync(`${folder}/adapter_config.json`, "utf8")) as object;
  const refused = async (of: object, says: RegExp): Promise<void> => {
    writeFileSync(`${folder}/adapter_config.json`, JSON.stringify({ ...said, ...of }));
    await engine.adapters.load("refused", folder).then(
      () => assert.unreachable(JSON.stringify(of)),
      (e: WeftError) => assert.match(`${e.code} ${e.message}`, says),
    );
  };
  await refused(
    { target_parameters: ["q_proj.weight"] },
    /WEFT_ADAPTER .*target_parameters.*experts.*q_proj/s,
  );
  await refused({ target_parameters: ["experts.gate_up_proj"] }, /WEFT_ADAPTER_MISMATCH .*experts\.lora_A/s);
  await refused({ rank_pattern: {} }, /WEFT_ADAPTER_MISMATCH .*base_layer.*\[20,40\].*\[40,40\]/s);
  await refused({ use_dora: true }, /WEFT_ADAPTER /);
  await refused({ layers_to_transform: [0] }, /layers_to_transform/);
  const one = { data: batchOf(vocab).slice(0, 1), steps: 1, rank: 4, targetModules: ["w1"] };
  await (await engine.finetune({ ...one, name: "gate" })).done;
  await engine.adapters
    .get("gate")
    .save(`${folder}-gate`, { as: "target_parameters" })
    .then(
      () => assert.unreachable(),
      (e: WeftError) => assert.match(e.message, /gate and up/),
    );
}
for (const name of Object.keys(families) as FamilyName[]) {
  const config = configs[name];
  const { vocab_size: vocab } = config;
  const ref = reference[name];
  const dense = ref.experts === undefined;
  const train = ["lora", "full"];

  test(`${name} on wasm: logits, gradients and AdamW steps, of LoRA and of everything`, async () => {
    await using engine = await engineOf(config, { train });
    await checkLora(engine, name, vocab, ref, ref.lora.length);
    // Law 3: what is computed again is what was kept.
    const losses = ["all", "boundary"].map(async (keep) => {
      const job = { name: keep, from: "peft", data: batchOf(vocab), batchSize: 5, steps: 2 };
      return (await (await engine.finetune({ ...job, keep: keep as "all" })).done).losses;
    });
    const [kept, again] = await Promise.all(losses);
    assert.equal(kept, again);
    await checkFullGradients(engine, vocab, ref);
    await checkFullSteps(engine, vocab, ref, ref.full.length);
  });

  if (!dense) {
    const experts = ([target]: ["wasm" | "webgpu"]) => engineOf(config, { ...on(target), train: ["lora"] });
    test(`${name} on wasm: LoRA on every expert; merged, saved and recomputed it is the same`, async () => {
      await using engine = await experts(["wasm"]);
      await checkLora(engine, name, vocab, ref.experts!, ref.experts!.lora.length, `${name}-experts`);
      const losses = ["all", "boundary"].map(async (keep) => {
        const job = { name: keep, from: "peft", data: batchOf(vocab), batchSize: 5, steps: 2, dropout: 0.2 };
        return (await (await engine.finetune({ ...job, keep: keep as "all" })).done).losses;
      });
      const [kept, again] = await Promise.all(losses);
      assert.equal(kept, again);
      const folder = `${scratch()}/adapter`;
      await engine.adapters.get("adamw").save(folder);
      await engine.adapters.load("again", folder);
      assert.is(contentBits(engine, "again"), contentBits(engine, "adamw"));
      const ids = idsOf("merged", 30, vocab);
      const served = await engine.score(ids, { adapter: "peft", logits: true });
      await engine.adapters.get("peft").save(`${folder}-lora`, { as: "lora" });
      await engine.adapters.load("lora", `${folder}-lora`);
      const folded = await engine.score(ids, { adapter: "lora", logits: true });
      if (Object.hasOwn(parameters, name)) await checkParameters(engine, name as keyof typeof parameters);
      await engine.merge("peft");
      const merged = await engine.score(ids, { logits: true });
      for (const other of [folded, merged])
        other.logits!.forEach((row, t) => {
          row.forEach((x, i) => assert.ok(Math.abs(x - served.logits![t]![i]!) < 2e-5 * (1 + Math.abs(x))));
        });
    });
    test(`${name}: what is not of experts here is refused by name`, async () => {
      await using engine = await experts(["wasm"]);
      await engine.adapters.load("peft", `${fixtures}peft-${name}-experts`);
      const refused = (f: () => Promise<unknown>, code: string, says: RegExp): Promise<void> =>
        f().then(
          () => assert.unreachable(),
          (e: WeftError) =>
            assert.match(`${e.code} ${e.message}`, new RegExp(`^${code}.*${says.source}`, "s")),
        );
      const data = batchOf(vocab);
      await refused(
        async () =>
          (await engine.finetune({ name: "some", data, targetModules: ".*experts\\.0\\..*", steps: 1 })).done,
        "WEFT_ADAPTER",
        /the same for all experts/,
      );
      await refused(() => engine.adapters.get("peft").save(`${scratch()}/l.gguf`), "WEFT_ADAPTER", /experts/);
      await using none = await engineOf(config, { train: ["lora"], capacities: { experts: 0 } });
      const load = (): Promise<unknown> => none.adapters.load("peft", `${fixtures}peft-${name}-experts`);
      // Where layers are dense, modules of theirs have these names too.
      await refused(load, "WEFT_ADAPTER_MISMATCH", /target_modules|experts/);
    });
    if (long || onGpu.includes(name))
      test(`${name} on webgpu: gradients of LoRA on every expert`, async () => {
        await using engine = await experts(["webgpu"]);
        await checkLora(engine, name, vocab, ref.experts!, 0, `${name}-experts`);
      });
    if (long)
      test(`${name} on webgpu: gradients of everything`, async () => {
        // What a layer's experts add up is one binding, which the smallest devices have no room for.
        const limits = { ...tiny, bindingBytes: 2 ** 21 };
        await using engine = await engineOf(config, { ...on("webgpu"), train: ["full"], limits });
        await checkFullGradients(engine, vocab, ref);
      });
  }
  if (long || (dense && onGpu.includes(name)))
    test(`${name} on webgpu: logits, and gradients of LoRA`, async () => {
      const whole = long && dense;
      await using engine = await engineOf(config, { ...on("webgpu"), train: whole ? train : ["lora"] });
      await checkLora(engine, name, vocab, ref, 0);
      if (whole) await checkFullGradients(engine, vocab, ref);
    });
}

test("LongRoPE: a bundle with room for more than the first positions turns by its long factors", () => {
  const rope = { inverseFrequencies: [1], scale: 2, long: { beyond: 8, inverseFrequencies: [0.5] } };
  const angle = (context: number): number => Math.acos(rotaryTables([rope], context)[2]! / 2);
  assert.ok(Math.abs(angle(8) - 1) < 1e-6);
  assert.ok(Math.abs(angle(9) - 0.5) < 1e-6);
});

test("rotary tables: every kind of scaling is transformers' own", () => {
  const base = { ...configs.even, hidden_size: 48, head_dim: 12, rope_theta: undefined };
  for (const { parameters, inverse, scale, long } of reference.ropes) {
    const config = { ...base, rope_parameters: { rope_theta: 5000, ...parameters } };
    const [rope] = models.llama!.read(config).ropes;
    const said = JSON.stringify(parameters);
    const same = (got: readonly number[], want: readonly number[]): void => {
      assert.is(got.length, want.length, said);
      got.forEach((f, i) => assert.ok(Math.abs(f / want[i]! - 1) < 1e-6, `${said} ${i}: ${f}, ${want[i]}`));
    };
    same(rope!.inverseFrequencies, inverse);
    assert.ok(Math.abs(rope!.scale - scale) < 1e-6, `${said}: ${rope!.scale}, ${scale}`);
    assert.is(rope!.long !== undefined, long !== undefined, said);
    if (long) {
      same(rope!.long!.inverseFrequencies, long);
      assert.is(rope!.long!.beyond, parameters.original_max_position_embeddings);
    }
  }
});
test.run();
