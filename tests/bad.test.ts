/** Bad input through the public door: one clear error, nothing half-written, and the engine serves on. */

import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { encode } from "../runtime/bundle.ts";
import { compile, type Engine, type FinetuneOptions, load, WeftError } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, engineOf, fixtures, idsOf, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("bad input");
const code = async (want: string, f: () => Promise<unknown>, says: RegExp = /./): Promise<void> => {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, String(e));
    assert.is((e as WeftError).code, want, (e as Error).message);
    assert.match((e as Error).message, says);
    return;
  }
  assert.unreachable(`expected ${want}`);
};
const prompt = idsOf("bad", 6, 128);
const alive = async (engine: Engine): Promise<void> =>
  assert.is((await collect(engine, { prompt, maxTokens: 3 })).ids.length, 3);

test("model folders: truncated, lying, missing, misshapen, not finite, unknown", async () => {
  const out = `${scratch()}/out.weft`;
  const options = { targets: ["wasm"] as const, capacities: small, quick: true };
  const broken = (change: (dir: string) => void): string => {
    const dir = writeModel(configs.even);
    change(dir);
    return dir;
  };
  const file = (dir: string): Buffer => readFileSync(`${dir}/model.safetensors`);
  const refuse = (want: string, change: (dir: string) => void, says: RegExp) =>
    code(want, () => compile(broken(change), out, options), says);
  await code(
    "WEFT_IO",
    () => compile("/nowhere", out, options),
    /at \/nowhere: expected a Hugging.*nothing of/,
  );
  await code("WEFT_IO", () => compile(scratch(), out, options), /config\.json.*found a folder without/);
  await code("WEFT_IO", () => compile("README.md", out, options), /found another file/);
  const fine = writeModel(configs.even);
  const asked = (more: object) => () => compile(fine, out, { ...options, ...more });
  await code(
    "WEFT_OPTION",
    asked({ train: ["lorra"] }),
    /at train: .*full, found lorra \(did you mean "lora"\?\)/,
  );
  await code(
    "WEFT_CAPACITY",
    asked({ capacities: { context: 100_000 } }),
    /context: expected at most the model's/,
  );
  const bundled = await bundle(configs.even);
  await code("WEFT_WEIGHTS", () => compile(bundled, out, options), /model\.safetensors.*found a bundle/);
  const config = (patch: object) => (d: string) =>
    writeFileSync(`${d}/config.json`, JSON.stringify({ ...configs.even, ...patch }));
  await refuse(
    "WEFT_WEIGHTS",
    (d) => writeFileSync(`${d}/model.safetensors`, file(d).subarray(0, 5000)),
    /truncated/,
  );
  await refuse(
    "WEFT_WEIGHTS",
    (d) =>
      writeFileSync(
        `${d}/model.safetensors`,
        Buffer.concat([Buffer.from([255, 255, 255, 255, 255, 255, 255, 0]), file(d).subarray(8)]),
      ),
    /header/,
  );
  await refuse(
    "WEFT_WEIGHTS",
    (d) =>
      writeFileSync(
        `${d}/model.safetensors`,
        Buffer.from(file(d).toString("latin1").replace('"data_offsets":[0,', '"data_offsets":[4,'), "latin1"),
      ),
    /bytes for F32/,
  );
  await refuse(
    "WEFT_WEIGHTS",
    (d) => writeFileSync(`${d}/model.safetensors`, encode(tensorsOf(configs.even).slice(0, -2))),
    /no such tensor/,
  );
  await refuse("WEFT_WEIGHTS", config({ intermediate_size: 132 }), /gate_proj.*\[132,64\]/);
  const nan = tensorsOf(configs.even);
  (nan[3]!.data as Float32Array)[7] = Number.NaN;
  await refuse(
    "WEFT_WEIGHTS",
    (d) => writeFileSync(`${d}/model.safetensors`, encode(nan)),
    /NaN at element 7/,
  );
  await refuse("WEFT_CONFIG", config({ model_type: "mamba" }), /model_type.*llama.*mamba/);
  await refuse("WEFT_CONFIG", config({ hidden_act: "gelu" }), /hidden_act/);
  await refuse("WEFT_CONFIG", config({ sliding_window: 128 }), /sliding_window/);
  const windowed = ["full_attention", "sliding_attention"];
  await refuse("WEFT_CONFIG", config({ layer_types: windowed }), /layer_types.*sliding/);
  await refuse("WEFT_CONFIG", config({ rope_scaling: { rope_type: "spiral", factor: 2 } }), /rope_type/);
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), out, { ...options, targets: ["cuda"] as never }),
    /target.*cuda/,
  );
  await code(
    "WEFT_OPTION",
    () => compile(writeModel(configs.even), out, { ...options, policy: "lottery" }),
    /policy/,
  );
  await code(
    "WEFT_CAPACITY",
    () => compile(writeModel(configs.even), out, { ...options, capacities: { ...small, rank: 7 } }),
    /multiple of 4/,
  );
  await code(
    "WEFT_CAPACITY",
    () =>
      compile(writeModel(configs.even), out, {
        ...options,
        targets: ["webgpu"],
        limits: { bindingBytes: 65536 },
      }),
    /binding/,
  );
  assert.is(existsSync(out), false, "nothing half-written");
});

test("bundles: wrong hash, truncated, escaping path, a version from the future, not a bundle", async () => {
  const good = await bundle(configs.even);
  const copy = (change: (dir: string) => void): string => {
    const dir = `${scratch()}/b.weft`;
    cpSync(good, dir, { recursive: true });
    change(dir);
    return dir;
  };
  const manifest = (dir: string, patch: (m: Record<string, never>) => void): void => {
    const m = JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8")) as Record<string, never>;
    patch(m);
    writeFileSync(`${dir}/manifest.json`, JSON.stringify(m));
  };
  const refuse = (want: string, change: (dir: string) => void, says: RegExp) =>
    code(want, () => load(copy(change), { device: "wasm" }), says);
  await refuse(
    "WEFT_BUNDLE",
    (d) => {
      const path = `${d}/weights/model-00000.safetensors`;
      const b = readFileSync(path);
      b[b.length - 1]! ^= 1;
      writeFileSync(path, b);
    },
    /sha-256/,
  );
  await refuse(
    "WEFT_BUNDLE",
    (d) => writeFileSync(`${d}/kernels.wasm`, readFileSync(`${d}/kernels.wasm`).subarray(0, 100)),
    /truncated|bytes/,
  );
  await refuse(
    "WEFT_BUNDLE",
    (d) =>
      manifest(d, (m) =>
        Object.assign(m.files!, { "../../etc/passwd": { bytes: 1, sha256: "0".repeat(64) } }),
      ),
    /a path inside the folder/,
  );
  await refuse(
    "WEFT_BUNDLE_VERSION",
    (d) => manifest(d, (m) => Object.assign(m, { version: 99 })),
    /version 99.*update/,
  );
  await refuse("WEFT_BUNDLE", (d) => writeFileSync(`${d}/manifest.json`, "{"), /JSON/);
  await refuse(
    "WEFT_BUNDLE",
    (d) => writeFileSync(`${d}/manifest.json`, "<!doctype html>"),
    /JSON.*the server sent a page/,
  );
  await code("WEFT_BUNDLE", () => load(scratch(), { device: "wasm" }));
  await code("WEFT_OPTION", () => load(good, { device: "cuda" as never }), /device/);
  await code("WEFT_DEVICE", () => load(good, { device: "software" }), /webgpu/);
});

test("requests: too long, no such adapter, wrong ids; each leaves the engine serving", async () => {
  await using engine = await engineOf(configs.even);
  const free = engine.memory();
  await code(
    "WEFT_CONTEXT_OVERFLOW",
    () => collect(engine, { prompt: idsOf("long", 128, 128), maxTokens: 20 }),
    /127 tokens/,
  );
  await code("WEFT_OPTION", () => collect(engine, { prompt: [5, 999], maxTokens: 2 }), /prompt\[1\]/);
  await code("WEFT_OPTION", () => collect(engine, { prompt: [], maxTokens: 2 }));
  for (const wrong of [
    { temperature: -1 },
    { temperature: Number.NaN },
    { temperature: "hot" as never },
    { topK: 1.5 },
    { topK: -1 },
    { topP: 0 },
    { topP: 1.1 },
    { minP: 2 },
    { repetitionPenalty: 0 },
    { seed: 0.5 },
  ])
    await code(
      "WEFT_OPTION",
      () => collect(engine, { prompt, maxTokens: 2, ...wrong }),
      new RegExp(Object.keys(wrong)[0]!),
    );
  await code(
    "WEFT_OPTION",
    () => collect(engine, { prompt, maxTokens: 2, stopIds: Array.from({ length: 17 }, (_, i) => i) }),
    /stopIds.*at most 16/,
  );
  await code(
    "WEFT_OPTION",
    () => collect(engine, { prompt, maxTokens: 2, stopIds: [3, -1] }),
    /stopIds\[1\]/,
  );
  await code("WEFT_TOKENIZER", () => collect(engine, { prompt: "text", maxTokens: 2 }), /tokenizer/);
  await code("WEFT_TOKENIZER", () => collect(engine, { prompt: [5], stop: "x", maxTokens: 2 }), /at stop/);
  await code("WEFT_NOT_FOUND", () => collect(engine, { prompt, adapter: "nobody", maxTokens: 2 }), /nobody/);
  await alive(engine);
  assert.equal(engine.memory(), free);
});

test("adapters: of another base, over the class's rank, with features that change the maths", async () => {
  await using engine = await engineOf(configs.even, { capacities: { rank: 4 } });
  await code("WEFT_ADAPTER_MISMATCH", () => engine.adapters.load("a", `${fixtures}peft-odd`));
  await code(
    "WEFT_ADAPTER_MISMATCH",
    () => engine.adapters.load("a", `${fixtures}peft-even`),
    /rank from 1 to 4/,
  );
  const copy = (patch: object): string => {
    const dir = `${scratch()}/a`;
    cpSync(`${fixtures}peft-even`, dir, { recursive: true });
    writeFileSync(
      `${dir}/adapter_config.json`,
      JSON.stringify({ ...JSON.parse(readFileSync(`${dir}/adapter_config.json`, "utf8")), ...patch }),
    );
    return dir;
  };
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", copy({ use_dora: true })), /use_dora/);
  await code(
    "WEFT_ADAPTER",
    () => engine.adapters.load("a", copy({ trainable_token_indices: [1, 2] })),
    /trainable_token_indices/,
  );
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", copy({ bias: "all" })), /bias/);
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", copy({ peft_type: "VERA" })), /LORA.*VERA/);
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", copy({ init_lora_weights: "pissa" })), /pissa/);
  await code(
    "WEFT_ADAPTER_MISMATCH",
    () => engine.adapters.load("a", copy({ weft_base: "0".repeat(64) })),
    /another model/,
  );
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", "/nowhere"));
  await alive(engine);
  await using wide = await engineOf(configs.even);
  await code(
    "WEFT_ADAPTER_MISMATCH",
    () => wide.adapters.load("a", copy({ modules_to_save: ["lm_head"] })),
    /modules_to_save.*lm_head/,
  );
  await alive(wide);
});

test("jobs: empty data, a row not JSON, two on a name, bad options, exclusive training", async () => {
  await using engine = await engineOf(configs.even, { train: ["lora", "full"] });
  const rows = batchOf(128);
  const start = (o: Partial<FinetuneOptions>) => engine.finetune({ name: "job", data: rows, steps: 1, ...o });
  const path = `${scratch()}/rows.jsonl`;
  const text = (s: string): string => {
    writeFileSync(path, s);
    return path;
  };
  await code("WEFT_DATA", () => start({ data: text("") }), /at least one row/);
  await code(
    "WEFT_DATA",
    () => start({ data: text(`${JSON.stringify(rows[0])}\n{"input_ids": [1,\n`) }),
    /line 2/,
  );
  await code("WEFT_DATA", () => start({ data: [] }));
  await code("WEFT_DATA", () => start({ data: "/nowhere.jsonl" }));
  await code("WEFT_TOKENIZER", () => start({ data: [{ text: "hello" }] }), /no tokenizer/);
  await code("WEFT_DATA", async () => (await start({ data: [{ input_ids: [1, 2, 500] }] })).done, /row 1/);
  await code(
    "WEFT_DATA",
    async () => (await start({ data: [{ input_ids: [1, 2], labels: [-100, -100] }] })).done,
    /labels/,
  );
  await code("WEFT_OPTION", () => start({ learningRate: -1 }), /learningRate/);
  await code("WEFT_OPTION", () => start({ name: "../x" }), /name/);
  await code("WEFT_ADAPTER_MISMATCH", () => start({ targetModules: ["w_proj"] }), /w_proj/);
  await code("WEFT_OPTION", () => start({ rank: 64 }), /rank/);
  const one = await start({ steps: 200 });
  await code("WEFT_CONFLICT", () => start({}), /job/);
  await code("WEFT_CONFLICT", () => start({ method: "full", name: "base" }), /nobody uses/);
  const two = await start({ name: "two", steps: 200 });
  await code("WEFT_CAPACITY", () => start({ name: "three" }), /jobs/);
  await alive(engine);
  one.cancel();
  two.cancel();
  await Promise.allSettled([one.done, two.done]);
  const full = await start({ method: "full", name: "base", steps: 100 });
  await code("WEFT_CONFLICT", () => collect(engine, { prompt, maxTokens: 2 }), /full training/);
  full.cancel();
  await full.done.catch(() => {});
  await alive(engine);
});

test("a job whose gradients are not finite stops by itself and tells", async () => {
  await using engine = await engineOf(configs.even);
  const job = await engine.finetune({
    name: "hot",
    data: batchOf(128),
    steps: 60,
    learningRate: 1e30,
    maxGradNorm: 0,
  });
  await code("WEFT_NUMERICS", () => job.done, /three steps/);
  await alive(engine);
});

test("dispose while running rejects what runs; nothing works after", async () => {
  const engine = await engineOf(configs.even);
  const job = await engine.finetune({ name: "j", data: batchOf(128), steps: 500 });
  const tokens = engine.generate({ prompt, maxTokens: 100 });
  await tokens.next();
  const stream = (async () => {
    for await (const _ of tokens);
  })();
  const ends = Promise.allSettled([job.done, stream]);
  await engine.dispose();
  for (const r of await ends) assert.is(r.status, "rejected");
  await code("WEFT_DISPOSED", () => collect(engine, { prompt, maxTokens: 1 }));
});
test.run();
