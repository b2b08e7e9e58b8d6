/**
 * What a bundle says it is: the base by value, whatever it is stored as; its config under its hash; ids that
 * end an answer.
 */

import { createHash } from "node:crypto";
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { writeGgufF32 } from "../bench/model.ts";
import { type CompileOptions, compile, compileTo } from "../compiler/compile.ts";
import { generationOf } from "../compiler/generation.ts";
import { BaseHash, encode, type TensorData, type WeftError } from "../runtime/bundle.ts";
import { load } from "../sdk/index.ts";
import { collect, configs, idsOf, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { type Config, scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("identity");
const story = fileURLToPath(new URL("../examples/model/story", import.meta.url));
const c = configs.even;
const quick: CompileOptions = { targets: ["webgpu"], train: [], quick: true, capacities: small };
const baseOf = async (path: string, o: CompileOptions = {}): Promise<string> =>
  (await compile(path, { ...quick, ...o })).manifest.base;
const plain = Promise.resolve().then(() => baseOf(folder()));
/** The even model's folder with another config, or other tensors. */
function folder(config: object = c, tensors: readonly TensorData[] = tensorsOf(c)): string {
  const dir = writeModel(c);
  writeFileSync(`${dir}/config.json`, JSON.stringify(config));
  writeFileSync(`${dir}/model.safetensors`, encode([...tensors]));
  return dir;
}

test("one base, one identity: any format, target, capacities, file and wording of the config", async () => {
  const base = await plain;
  for (const o of [
    { format: "f16", capacities: { ...small, slots: 2, context: 96 } },
    { format: "int8", targets: ["wasm"], train: ["lora"], methods: ["ia3"] },
  ] as const)
    assert.is(await baseOf(folder(), o), base, JSON.stringify(o));
  const worded = {
    transformers_version: "4.0",
    torch_dtype: "bfloat16",
    _name_or_path: "somewhere",
    ...Object.fromEntries(Object.entries(c).reverse()),
    bos_token_id: 7,
    eos_token_id: [2, 3],
    max_position_embeddings: 512,
    head_dim: undefined,
    rope_theta: undefined,
    rope_parameters: { rope_type: "default", rope_theta: 10000 },
  };
  assert.is(await baseOf(folder(worded, tensorsOf(c).reverse())), base, "another wording");
  const gguf = `${scratch()}/model.gguf`;
  writeGgufF32(gguf, c, tensorsOf(c));
  copyFileSync(`${story}/tokenizer.json`, `${dirname(gguf)}/tokenizer.json`);
  assert.is(await baseOf(gguf), base, "GGUF");
});

test("another base, another identity: one bit of a weight, and each number of the maths", async () => {
  const base = await plain;
  const tensors = tensorsOf(c);
  const values = (tensors[3]!.data as Float32Array).slice();
  new Uint32Array(values.buffer)[5]! ^= 1;
  assert.is.not(
    await baseOf(
      folder(
        c,
        tensors.map((t, i) => (i === 3 ? { ...t, data: values } : t)),
      ),
    ),
    base,
  );
  for (const other of [{ rms_norm_eps: 2e-5 }, { rope_theta: 10001 }] as Partial<Config>[])
    assert.is.not(await baseOf(folder({ ...c, ...other })), base, JSON.stringify(other));
  // Two tensors of one shape that change names are another model.
  const swapped = tensors.map((t) => {
    const name = t.name.replace(/gate_proj|up_proj/, (m) => (m === "up_proj" ? "gate_proj" : "up_proj"));
    return { ...t, name };
  });
  assert.is.not(await baseOf(folder(c, swapped)), base, "names");
});

test("a device's weights hash to the compiled base, and to another after full training", async () => {
  const dir = `${scratch()}/full.weft`;
  await compileTo(folder(), dir, { targets: ["wasm"], train: ["full"], quick: true, capacities: small });
  await using engine = await load(dir, { device: "wasm" });
  const now = async (): Promise<string> => {
    const hash = new BaseHash(engine.manifest.model);
    for (const t of await engine.core.baseTensors())
      hash.add(t.name, t.shape, createHash("sha256").update(t.data).digest("hex"));
    return hash.digest();
  };
  assert.is(await now(), engine.manifest.base);
  const row = idsOf("identity", 12, 128);
  const job = await engine.finetune({ name: "full", method: "full", data: [{ input_ids: row }], steps: 1 });
  await job.done;
  assert.is.not(await now(), engine.manifest.base);
});

test("config.json is one of the files under their hashes, and so is every other", async () => {
  const dir = `${scratch()}/bundle.weft`;
  const { files } = await compileTo(folder(), dir, { ...quick, targets: ["wasm"] });
  const inside = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile() && !e.name.startsWith(".") && e.name !== "manifest.json")
    .map((e) => `${e.parentPath}/${e.name}`.slice(dir.length + 1));
  assert.equal(inside.sort(), Object.keys(files).sort());
  const text = readFileSync(`${dir}/config.json`, "utf8");
  writeFileSync(`${dir}/config.json`, text.replace('"hidden_size":64', '"hidden_size":65'));
  const error = await load(dir, { device: "wasm" }).then(
    (engine) => engine.dispose().then(() => null),
    (e: WeftError) => e,
  );
  assert.is(error?.code, "WEFT_BUNDLE");
  assert.match(error!.where, /config\.json/);
});

test("generation_config.json: end ids end answers; sampling is told; wrong types named", async () => {
  const said = {
    eos_token_id: [5, 2],
    do_sample: true,
    temperature: 0.6,
    top_k: 20,
    top_p: 0.95,
    repetition_penalty: 1.1,
    transformers_version: "4.51.0",
  };
  const read = (g: unknown) => generationOf({ eos_token_id: 2 }, g, "generation_config.json");
  assert.equal(read(said), {
    eos: [2, 5],
    sampling: { temperature: 0.6, topK: 20, topP: 0.95, repetitionPenalty: 1.1 },
  });
  assert.equal(read({ ...said, do_sample: false }).sampling, { repetitionPenalty: 1.1 });
  assert.equal(read(null), { eos: [2], sampling: {} });
  for (const wrong of [{ temperature: "hot" }, { eos_token_id: [1.5] }, { eos_token_id: -1 }])
    assert.throws(
      () => read(wrong),
      (e: WeftError) => e.code === "WEFT_CONFIG",
      JSON.stringify(wrong),
    );

  // An answer that runs on without the file ends at the first id that the file names.
  const prompt = idsOf("generation", 6, 128);
  const endless = folder({ ...c, eos_token_id: null });
  const run = async (): Promise<{ ids: number[]; defaults: object }> => {
    const dir = `${scratch()}/bundle.weft`;
    await compileTo(endless, dir, { ...quick, targets: ["wasm"] });
    await using engine = await load(dir, { device: "wasm" });
    return {
      ids: (await collect(engine, { prompt, maxTokens: 12 })).ids,
      defaults: engine.generationDefaults,
    };
  };
  const free = await run();
  assert.equal([free.ids.length, free.defaults], [12, {}]);
  const end = free.ids[3]!;
  writeFileSync(`${endless}/generation_config.json`, JSON.stringify({ ...said, eos_token_id: [end] }));
  const ended = await run();
  assert.equal(ended.ids, free.ids.slice(0, free.ids.indexOf(end) + 1), "greedy, up to the end id");
  assert.equal(ended.defaults, read(said).sampling);
});
test.run();
