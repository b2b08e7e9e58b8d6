/**
 * Mutated inputs of every kind, from seeds: each is taken or refused with a WeftError, nothing else; memory
 * does not grow; and an engine beside them all gives the same bits after as before.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import * as assert from "uvu/assert";
import { checkConfig, checkTokenizerConfig, shardsOf } from "../compiler/config.ts";
import { generationOf } from "../compiler/generation.ts";
import { checkContainer } from "../compiler/gguf/container.ts";
import { openGguf } from "../compiler/gguf/open.ts";
import { models } from "../compiler/models/index.ts";
import { CompileOptions } from "../compiler/options.ts";
import { checkCapacities, defaultCapacities } from "../compiler/target.ts";
import { encode, parseHeader } from "../runtime/bundle.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { asManifest } from "../runtime/load.ts";
import { openDevice } from "../runtime/open.ts";
import { checked, EngineOptions, GenerateIds, TrainOptions } from "../runtime/options.ts";
import { openReader } from "../runtime/reader.ts";
import { encodeRow, parseJsonl } from "../sdk/data.ts";
import { type Engine, WeftError } from "../sdk/index.ts";
import { FinetuneOptions, GenerateOptions, LoadOptions, ScoreOptions } from "../sdk/options.ts";
import { numbersAtMost } from "../sdk/peft/folder.ts";
import { readAdapter } from "../sdk/peft/read.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import { compressTernary, expandTernary } from "../sdk/ternary.ts";
import { batchOf, bundle, configs, engineOf, idsOf } from "./support/engines.ts";
import { junk, mutate, mutateBytes, type Random, randomOf } from "./support/mutate.ts";
import { long, rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("fuzz");
setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;
const methods = ["lora", "s2ft", "dora", "sparse", "hydra", "prefix"];
const prompt = idsOf("fuzz", 6, 128);
const at = { code: "WEFT_DATA", where: "x" } as const;
let total = 0;
let taken = 0;

/** `n` inputs from `make`, each to `door`. */
async function through(
  name: string,
  n: number,
  door: (r: Random) => unknown,
  seed = `fuzz ${name}`,
): Promise<void> {
  const r = randomOf(seed);
  for (let i = 0; i < n; i++) {
    try {
      const p = door(r);
      if (p instanceof Promise) await p;
      taken++;
    } catch (e) {
      if (!(e instanceof WeftError)) {
        console.error(`${name}, input ${i}:`, e);
        assert.unreachable(`${name}, input ${i}: ${e}`);
      }
      const { length } = (e as WeftError).message;
      assert.ok(length < 4000, `${name}, input ${i}: a message of ${length}`);
    }
    total++;
  }
}
const bits = async (engine: Engine): Promise<string> => {
  const { logprobs } = await engine.score(prompt);
  return Buffer.from(logprobs.buffer).toString("hex");
};
/** A header of JSON, mutated, in front of bytes. */
function withHeader(file: Uint8Array, start: number, r: Random): Uint8Array {
  const view = new DataView(file.buffer, file.byteOffset);
  const length = start === 8 ? Number(view.getBigUint64(0, true)) : view.getUint32(start - 4, true);
  const json: unknown = JSON.parse(new TextDecoder().decode(file.subarray(start, start + length)));
  const head = new TextEncoder().encode(JSON.stringify(mutate(json, r)) ?? "");
  const out = new Uint8Array(start + head.length + file.length - start - length);
  out.set(file.subarray(0, start));
  if (start === 8) new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
  else new DataView(out.buffer).setUint32(start - 4, head.length, true);
  out.set(head, start);
  out.set(file.subarray(start + length), start + head.length);
  return out;
}
/** A small GGUF header: strings, numbers, arrays, tensors. */
function gguf(): Uint8Array {
  const parts: Uint8Array[] = [];
  const put = (size: number, write: (v: DataView) => void): void => {
    const b = new Uint8Array(size);
    write(new DataView(b.buffer));
    parts.push(b);
  };
  const u32 = (n: number): void => put(4, (v) => v.setUint32(0, n, true));
  const u64 = (n: number): void => put(8, (v) => v.setBigUint64(0, BigInt(n), true));
  const string = (s: string): void => {
    u64(s.length);
    parts.push(new TextEncoder().encode(s));
  };
  const pairs: [string, string | number | string[]][] = [
    ["general.architecture", "llama"],
    ["llama.block_count", 1],
    ["llama.embedding_length", 32],
    ["llama.attention.head_count", 2],
    ["llama.feed_forward_length", 64],
    ["llama.context_length", 64],
    ["llama.attention.layer_norm_rms_epsilon", 1],
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.tokens", ["a", "b", "c"]],
    ["tokenizer.ggml.merges", ["a b"]],
    ["tokenizer.ggml.bos_token_id", 1],
  ];
  u32(0x46554747);
  u32(3);
  u64(2);
  u64(pairs.length);
  for (const [key, value] of pairs) {
    string(key);
    if (typeof value === "string") {
      u32(8);
      string(value);
    } else if (typeof value === "number") {
      u32(4);
      u32(value);
    } else {
      u32(9);
      u32(8);
      u64(value.length);
      for (const s of value) string(s);
    }
  }
  for (const [name, offset] of [
    ["token_embd.weight", 0],
    ["output_norm.weight", 384],
  ] as const) {
    string(name);
    u32(2);
    u64(32);
    u64(3);
    u32(0);
    u64(offset);
  }
  parts.push(new Uint8Array(1024));
  return Uint8Array.from(Buffer.concat(parts));
}

test("every input: taken, or refused with one error; nothing grows; the engine serves on", async () => {
  await using engine = await engineOf(configs.even, { methods, train: ["lora"] });
  const dir = await bundle(configs.even, { methods, train: ["lora"] });
  const { manifest } = engine;
  const before = await bits(engine);
  const raw: unknown = JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8"));
  assert.equal(asManifest(raw, "m"), raw);

  // Adapters of each method, as files.
  const files: { config: object; weights: Uint8Array; ternary: Uint8Array }[] = [];
  await (await engine.finetune({ name: "lora", data: batchOf(128), steps: 1 })).done;
  const trained = writeAdapter(engine.core.adapters.find("lora").content, manifest);
  files.push({
    config: JSON.parse(trained.config) as object,
    weights: trained.weights,
    ternary: compressTernary(trained.weights, 0.2).bytes,
  });
  const most = numbersAtMost(manifest);
  const model = { ...configs.even, rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1 } };
  const container = gguf();
  checkContainer((a, b) => container.subarray(a, b), container.length, "x.gguf");
  const path = `${scratch()}/x.gguf`;
  const reader = await openReader(dir);
  const opened = async (json: unknown): Promise<void> => {
    const bytes = new TextEncoder().encode(JSON.stringify(json) ?? "");
    const read = async (name: string): Promise<Uint8Array> =>
      name === "manifest.json" ? bytes : reader.read(name);
    const core = await Core.open({ where: dir, read }, (m, file) =>
      openDevice("wasm", m, file, { threads: 1 }),
    );
    try {
      for await (const _ of core.generate({ prompt, maxTokens: 1 })) break;
    } finally {
      await core.dispose();
    }
  };
  const generate = {
    prompt,
    maxTokens: 3,
    temperature: 1,
    topK: 4,
    topP: 0.9,
    minP: 0.1,
    seed: 3,
    stopIds: [3],
  };
  const train = {
    name: "a",
    epochs: 1,
    batchSize: 2,
    optimizer: "adamw",
    schedule: "linear",
    betas: [0.9, 0.99],
    learningRate: 1e-3,
    keep: "auto",
    seed: 1,
  };
  const adapter = {
    rank: 4,
    alpha: 8,
    dropout: 0,
    targetModules: ["q_proj"],
    rankPattern: { "q.*": 2 },
    selector: "random",
  };
  const row = { input_ids: [1, 2, 3], labels: [-100, 2, 3] };
  const lines = `${JSON.stringify(row)}\n{"text":"a"}\n{"prompt":"a","completion":"b"}\n`;

  const pass = async (many: number, tag: string): Promise<void> => {
    const go = (name: string, share: number, door: (r: Random) => unknown): Promise<void> =>
      through(name, Math.ceil((many * share) / 100), door, `fuzz ${tag} ${name}`);
    await go("manifest", 12, (r) => asManifest(mutate(raw, r), "m"));
    await go("config.json", 8, (r) => {
      const config = checkConfig(mutate(model, r), "config.json");
      models[String(config.model_type)]!.read(config);
    });
    await go("index", 4, (r) =>
      shardsOf(mutate({ metadata: {}, weight_map: { a: "m-1.safetensors", b: "m-2.safetensors" } }, r), "i"),
    );
    await go("tokenizer_config.json", 4, (r) =>
      checkTokenizerConfig(
        mutate({ bos_token: "a", eos_token: { content: "b" }, chat_template: "x", add_bos_token: true }, r),
        "t",
      ),
    );
    await go("generation_config.json", 4, (r) =>
      generationOf(
        mutate(model, r) as Record<string, unknown>,
        mutate({ do_sample: true, temperature: 0.5, top_k: 3, eos_token_id: [1, 2] }, r),
        "g",
      ),
    );
    await go("adapter config", 12, (r) => {
      const f = files[r(files.length)]!;
      const more = {
        ...f.config,
        rank_pattern: { "layers.0.*": 4 },
        alpha_pattern: { ".*q_proj": 8 },
        modules_to_save: null,
        exclude_modules: "x.*",
        layers_to_transform: [0, 1],
      };
      return readAdapter(
        mutate(r(2) ? f.config : more, r) as Record<string, unknown>,
        f.weights,
        manifest,
        "a",
      );
    });
    await go("adapter tensors", 8, (r) => {
      const f = files[r(files.length)]!;
      const bytes = r(2)
        ? withHeader(f.weights, 8, r)
        : mutateBytes(f.weights, r, r(2) ? 600 : f.weights.length);
      return readAdapter(f.config as Record<string, unknown>, bytes, manifest, "a");
    });
    const small = encode([
      { name: "a", shape: [2, 3], dtype: "F32", data: new Float32Array(6) },
      { name: "b", shape: [4], dtype: "I32", data: new Int32Array(4) },
    ]);
    await go("safetensors", 10, (r) => {
      const bytes = r(2) ? withHeader(small, 8, r) : mutateBytes(small, r);
      parseHeader(bytes, bytes.length, "s");
    });
    await go("ternary", 6, (r) => {
      const { ternary } = files[r(files.length)]!;
      expandTernary(
        r(2) ? withHeader(ternary, 9, r) : mutateBytes(ternary, r, r(2) ? 300 : ternary.length),
        "t",
        most,
      );
    });
    await go("GGUF header", 8, (r) => {
      const bytes = mutateBytes(container, r);
      checkContainer((a, b) => bytes.subarray(a, b), bytes.length, "x.gguf");
    });
    await go("rows", 6, (r) => encodeRow(mutate(row, r), { text: null }, [], "row 1"));
    await go("JSONL", 4, (r) =>
      parseJsonl(new TextDecoder().decode(mutateBytes(new TextEncoder().encode(lines), r)), "rows.jsonl"),
    );
    await go("options", 14, (r) => {
      const kinds = [
        () => checked(GenerateIds, mutate(generate, r)),
        () => checked(GenerateOptions, mutate({ ...generate, stop: ["a"], logprobs: 2 }, r)),
        () => checked(FinetuneOptions, mutate({ ...train, ...adapter, data: [row] }, r)),
        () => checked(TrainOptions, mutate({ ...train, method: "lora", rows: [row], adapter }, r)),
        () => checked(LoadOptions, mutate({ device: "wasm", threads: 1, lanes: 1, budget: 3 }, r)),
        () => checked(EngineOptions, mutate({ budget: 3, idleBudget: 8 }, r)),
        () => checked(ScoreOptions, mutate({ adapter: { a: 1 }, logits: true }, r)),
        () => checked(CompileOptions, mutate({ targets: ["wasm"], format: "f32", train: ["lora"] }, r)),
        () => checkCapacities(mutate(defaultCapacities(128), r)),
        () => checked(LoadOptions, junk(r), at),
      ];
      kinds[r(kinds.length)]!();
    });
    // A part of them through the doors that callers use.
    const doors = Math.ceil(many / 1000);
    await through(`${tag} manifest, opened`, doors, (r) => opened(mutate(raw, r)));
    await through(`${tag} GGUF, opened`, doors * 4, (r) => {
      writeFileSync(path, mutateBytes(container, r));
      return openGguf(path);
    });
    await through(`${tag} generate`, doors * 4, async (r) => {
      for await (const _ of engine.generate(mutate(generate, r) as never)) break;
    });
    await through(`${tag} finetune`, doors, async (r) => {
      const job = await engine.finetune(mutate({ ...train, ...adapter, steps: 0, data: [row] }, r) as never);
      job.cancel();
      await job.done.catch(() => {});
    });
  };
  // Once to warm up; what a pass leaves behind after that is what it leaks.
  await pass(2000, "warm");
  collectGarbage();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  await pass(rounds(20_000, 1_000_000), "cold");
  collectGarbage();
  const after = process.memoryUsage();
  console.log(`    ${total} inputs, ${taken} of them taken`);
  assert.ok(total >= rounds(20_000, 1_000_000), String(total));
  assert.ok(taken > total / 50 && taken < total / 2, `${taken} of ${total} taken`);
  const mebibytes = (x: number): string => `${(x / 2 ** 20).toFixed(1)} MiB`;
  assert.ok(
    after.heapUsed - heapUsed < 32 * 2 ** 20,
    `the heap grew by ${mebibytes(after.heapUsed - heapUsed)}`,
  );
  const grown = after.arrayBuffers - arrayBuffers;
  assert.ok(grown < 32 * 2 ** 20, `buffers grew by ${mebibytes(grown)}${long ? ", long" : ""}`);
  assert.is(await bits(engine), before);
});
test.run();
