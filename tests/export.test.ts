/**
 * GGUF out: what is exported compiles to the same base, in the same formats; an adapter that is read back is
 * the same; what no file can say is refused. `bench -- export` reads the same files by llama.cpp and
 * transformers.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import * as assert from "uvu/assert";
import { vocabularyOf } from "../compiler/export.ts";
import { layoutOf } from "../compiler/gguf/blocks.ts";
import { openFile } from "../compiler/gguf/file.ts";
import { tokenizerFiles } from "../compiler/gguf/tokenizer.ts";
import { ggmlBytes, ggmlOf } from "../compiler/gguf/write.ts";
import { type CompileOptions, compile, type Engine, load } from "../sdk/index.ts";
import { Text } from "../sdk/text.ts";
import { code } from "./support/code.ts";
import { weft } from "./support/console.ts";
import { batchOf, bits, bundle, configs, contentBits, fixtures, small } from "./support/engines.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("export");
/** Of a base alone there are half the kernels to compile. */
const options: CompileOptions = {
  ...{ targets: ["wasm"], train: [], methods: [], quick: true, capacities: small },
};
const opened = (dir: string): Promise<Engine> => load(dir, { device: "wasm", threads: 1 });
/** The engine's base as a file, compiled again. */
async function again(engine: Engine, more: CompileOptions = {}) {
  const [file, out] = [`${scratch()}/model.gguf`, `${scratch()}/again.weft`];
  const { notes } = await engine.saveModel(file);
  return { file, out, notes, manifest: await compile(file, out, { ...options, ...more }) };
}

type Name = keyof typeof configs;
/** Where a config says what no file of its family can. */
const unsayable: Readonly<Partial<Record<Name, RegExp>>> = {
  mistral: /GGUF's llama: perLayer/,
  mixtral: /GGUF's llama: perLayer/,
  gemma2: /GGUF's gemma2: constants/,
  smollm3: /GGUF's smollm3: ropes/,
  starcoder2: /GGUF's starcoder2: perLayer/,
  qwen3_moe_mixed: /GGUF's qwen3moe: (perLayer|ffn)/,
};
/** The same models, as files can say them. */
const sayable: Readonly<Partial<Record<Name, object>>> = {
  mistral: { sliding_window: null },
  mixtral: { sliding_window: null },
  gemma2: { query_pre_attn_scalar: configs.gemma2.head_dim },
  smollm3: { no_rope_layers: undefined, no_rope_layer_interval: 4 },
  starcoder2: { sliding_window: null },
};
for (const [name, says] of Object.entries(unsayable) as [Name, RegExp][])
  test(`${name}: what files cannot say is refused, and nothing is written`, async () => {
    await using engine = await opened(await bundle(configs[name], options));
    const file = `${scratch()}/model.gguf`;
    await code("WEFT_CONFIG", () => engine.saveModel(file), says);
    assert.not(existsSync(file));
  });
for (const name of (Object.keys(configs) as Name[]).filter((n) => !unsayable[n] || sayable[n]))
  test(`${name}: what is exported compiles to the same base`, async () => {
    await using engine = await opened(await bundle({ ...configs[name], ...sayable[name] }, options));
    const { out, manifest, notes } = await again(engine);
    if (name === "mistral") return assert.is(manifest.model.family, "llama");
    // Random gains are not what a file has as 1 + w; what comes back then, stays.
    const rounds = /^gemma/.test(name);
    assert.is(notes.length > 0, rounds, notes.join());
    assert.is(manifest.base === engine.manifest.base, !rounds);
    if (!rounds) return;
    await using next = await opened(out);
    const twice = await again(next);
    assert.equal(twice.notes, []);
    assert.is(twice.manifest.base, manifest.base);
  });

/** A bundle has the numbers that an engine has, bit for bit. */
async function same(engine: Engine, there: string): Promise<void> {
  await using other = await opened(there);
  const [a, b] = [await engine.core.baseTensors(), await other.core.baseTensors()];
  assert.is(a.length, b.length);
  a.forEach((t, i) => assert.is(bits(t.data), bits(b[i]!.data), t.name));
}
for (const format of ["f16", "bf16", "int8", "q4"] as const)
  test(`${format}: tensors lie in the file as in the bundle, rows of no whole blocks as f32`, async () => {
    const more = { ...options, format: { default: format, up_proj: "f32" } } as const;
    await using engine = await opened(await bundle(configs.even, more));
    const { manifest, file, out } = await again(engine);
    await same(engine, out);
    assert.is(manifest.model.format, engine.manifest.model.format);
    assert.is(manifest.model.rounding, 0);
    const { nearest } = await openFile(file);
    assert.is(nearest("blk.1.ffn_down.weight"), format);
    assert.is(nearest("blk.1.ffn_up.weight"), "f32");
    // Rows of 150 values are no whole blocks.
    await using odd = await opened(await bundle(configs.odd, more));
    const { file: there, out: other } = await again(odd);
    await same(odd, other);
    const blocks = format === "int8" || format === "q4";
    assert.is((await openFile(there)).nearest("blk.1.ffn_down.weight"), blocks ? "f32" : format);
  });

for (const format of ["f32", "q4"] as const)
  test(`${format}: experts of one kind are one tensor of the file`, async () => {
    await using engine = await opened(await bundle(configs.olmoe, { ...options, format }));
    const { file, out } = await again(engine);
    await same(engine, out);
    const { num_experts: count, intermediate_size: n, hidden_size: k } = configs.olmoe;
    assert.equal((await openFile(file)).shapeOf("blk.1.ffn_up_exps.weight"), [count, n, k]);
  });

test("blocks are written as llama.cpp has them, byte for byte", () => {
  const kinds = JSON.parse(readFileSync(`${fixtures}gguf_blocks.json`, "utf8")) as Record<
    string,
    { type: number; raw: string; values: string }
  >;
  let seen = 0;
  for (const [kind, { type, raw, values }] of Object.entries(kinds)) {
    const bytes = new Uint8Array(Buffer.from(raw, "base64"));
    const count = Buffer.from(values, "base64").length / 4;
    const { planes, nearest } = layoutOf(type, count, kind);
    const stored = planes(bytes);
    if (!stored) continue;
    const name = ggmlOf(nearest, stored, count)!;
    assert.is(name, kind);
    assert.equal(ggmlBytes(name, stored), bytes, kind);
    seen++;
  }
  assert.is(seen, 3);
});

const { texts, kinds: tokenizers } = JSON.parse(
  gunzipSync(readFileSync(`${fixtures}tokenizers.json.gz`)).toString("utf8"),
) as {
  texts: readonly string[];
  kinds: Record<string, { tokenizer: { model: object }; gguf: Record<string, unknown> }>;
};
for (const [name, { tokenizer, gguf }] of Object.entries(tokenizers))
  test(`${name}: a tokenizer's keys are llama.cpp's, and make the same ids of a thousand texts`, () => {
    const ids = (json: object): string => {
      const text = new Text(json, {}, null);
      return JSON.stringify(texts.map((t) => text.encode(t, false)));
    };
    const want = ids(tokenizer);
    const said = vocabularyOf(tokenizer as never, 704, (other) => ids(other) === want);
    for (const key of ["model", "pre", "merges", "add_space_prefix"]) {
      const full = `tokenizer.ggml.${key}`;
      if (gguf[full] !== undefined) assert.equal(said[full], gguf[full], key);
    }
    // Rows of the model that no token has.
    assert.equal((said["tokenizer.ggml.tokens"] as string[]).slice(701), [
      "[PAD701]",
      "[PAD702]",
      "[PAD703]",
    ]);
    const spelled = (gguf["tokenizer.ggml.tokens"] as string[]).map((t) =>
      /^ +$/.test(t) && name === "gemma" ? "\u2581".repeat(t.length) : t,
    );
    assert.equal((said["tokenizer.ggml.tokens"] as string[]).slice(0, 701), spelled);
    assert.is(ids(JSON.parse(tokenizerFiles(said as never, "f").get("tokenizer.json")!) as object), want);
  });

test("a model that talks: its tokenizer, template and end marks come along", async () => {
  await using engine = await opened(await storyBundle());
  const { out } = await again(engine, { capacities: { ...small, context: 192 } });
  await using next = await opened(out);
  assert.is(next.manifest.base, engine.manifest.base);
  assert.equal(next.manifest.model.eos, engine.manifest.model.eos);
  const ask = { messages: [{ role: "user", content: "Where does Mia live?" }], maxTokens: 12 };
  assert.equal(next.promptIds(ask), engine.promptIds(ask));
  assert.is((await next.complete(ask)).text, (await engine.complete(ask)).text);
});

/** An adapter that does something. */
async function trained(engine: Engine, name: string, o: object = {}): Promise<void> {
  const job = await engine.finetune({
    ...{ name, data: batchOf(engine.manifest.model.vocab), steps: 2, learningRate: 0.01, ...o },
  });
  await job.done;
}
test("LoRA of every family, read back: the same bits", async () => {
  for (const name of ["odd", "even", "qwen3", "gemma2", "phi3", "gpt2"] as const) {
    await using engine = await opened(await bundle(configs[name]));
    await trained(engine, "notes", { rank: 4, alpha: 12 });
    const file = `${scratch()}/notes.gguf`;
    await engine.adapters.get("notes").save(file);
    const { meta, names } = await openFile(file);
    assert.is(meta["adapter.lora.alpha"], 12);
    assert.ok(
      names.includes(name === "gpt2" ? "blk.1.attn_qkv.weight.lora_b" : "blk.1.ffn_down.weight.lora_a"),
    );
    await engine.adapters.load("back", file);
    assert.is(contentBits(engine, "back"), contentBits(engine, "notes"), name);
    assert.is(engine.adapters.get("back").config.alpha, 12);
  }
});

test("ranks and scales that differ, S2FT and sums: as the exact LoRA is, in a folder", async () => {
  await using engine = await opened(await bundle(configs.even, { train: ["lora", "s2ft"] }));
  await trained(engine, "patterns", { rank: 4, rankPattern: { v_proj: 8 }, alphaPattern: { up_proj: 3 } });
  await trained(engine, "rslora", { rank: 4, rslora: true, targetModules: ["q_proj", "down_proj"] });
  await trained(engine, "s2ft", { method: "s2ft", rank: 8 });
  await trained(engine, "more", { rank: 4 });
  await engine.adapters.combine("both", { rslora: 0.5, more: 2 });
  for (const name of ["patterns", "rslora", "s2ft", "both"]) {
    const [file, folder] = [`${scratch()}/a.gguf`, `${scratch()}/a`];
    const handle = engine.adapters.get(name);
    await handle.save(file);
    await handle.save(folder, { as: "lora" });
    await engine.adapters.load("file", file);
    await engine.adapters.load("folder", folder);
    assert.is(contentBits(engine, "file"), contentBits(engine, "folder"), name);
    // What scales is in B: the answers are those of the adapter.
    const o = { prompt: [5, 6, 7], maxTokens: 8 };
    const [a, b] = [
      await engine.complete({ ...o, adapter: name }),
      await engine.complete({ ...o, adapter: "file" }),
    ];
    assert.equal(a.ids, b.ids, name);
  }
});

test("modules of one name in one place only: another tool adapts no others", async () => {
  await using engine = await opened(await bundle(configs.gpt2));
  await trained(engine, "some", { rank: 4, targetModules: ["attn.c_proj"] });
  const [file, folder] = [`${scratch()}/a.gguf`, `${scratch()}/a`];
  await engine.adapters.get("some").save(file);
  await engine.adapters.load("back", file);
  assert.is(contentBits(engine, "back"), contentBits(engine, "some"));
  await engine.adapters.get("some").save(folder, { as: "lora" });
  const said = JSON.parse(readFileSync(`${folder}/adapter_config.json`, "utf8")) as {
    target_modules: string[];
  };
  assert.equal(said.target_modules, ["attn.c_proj"]);
});

test("what is no LoRA, another base's, or in the way is refused, and nothing is written", async () => {
  await using engine = await opened(
    await bundle(configs.even, { train: ["lora", "dora", "ia3", "lora_bias"] }),
  );
  for (const method of ["dora", "ia3"]) {
    await trained(engine, method, { method });
    const file = `${scratch()}/a.gguf`;
    await code("WEFT_ADAPTER", () => engine.adapters.get(method).save(file), /low-rank/);
    assert.not(existsSync(file));
  }
  await trained(engine, "notes", { rank: 4 });
  const file = `${scratch()}/notes.gguf`;
  await engine.adapters.get("notes").save(file);
  // What weft wrote is replaced by its like, as folders are: not by another kind, and nothing else is.
  const before = readFileSync(file);
  await engine.adapters.get("notes").save(file);
  assert.ok(readFileSync(file).equals(before));
  await code("WEFT_IO", () => engine.saveModel(file), /free/);
  const strangers = `${scratch()}/strangers.gguf`;
  for (const [from, to] of [
    [Buffer.from("weft.wrote"), Buffer.from("else.wrote")],
    // As a program that converts tensors leaves it: the keys as they were.
    [Buffer.from("of type 0"), Buffer.from("of type 1")],
  ] as const) {
    const at = before.indexOf(from);
    assert.ok(at > 0, String(from));
    writeFileSync(strangers, Buffer.concat([before.subarray(0, at), to, before.subarray(at + to.length)]));
    const bytes = readFileSync(strangers);
    await code("WEFT_IO", () => engine.adapters.get("notes").save(strangers), /weft only replaces/);
    assert.ok(readFileSync(strangers).equals(bytes));
  }
  mkdirSync(`${strangers}.gguf`);
  await code("WEFT_IO", () => engine.saveModel(`${strangers}.gguf`), /free/);
  await code("WEFT_IO", () => engine.saveModel(`${scratch()}/none/model.gguf`), /written/);
  await code("WEFT_CONFIG", () => compile(file, `${scratch()}/x`, options), /general\.type/);
  await using other = await opened(await bundle(configs.qwen3));
  await code("WEFT_ADAPTER_MISMATCH", () => other.adapters.load("a", file), /general\.architecture/);
  await using mha = await opened(await bundle(configs.mha));
  await code("WEFT_ADAPTER_MISMATCH", () => mha.adapters.load("a", file), /attn_k/);
  const model = `${scratch()}/model.gguf`;
  await engine.saveModel(model);
  await code("WEFT_ADAPTER", () => engine.adapters.load("a", model), /general\.type/);
  const bytes = readFileSync(file);
  const cut = `${scratch()}/cut.gguf`;
  writeFileSync(cut, bytes.subarray(0, bytes.length - 4000));
  await code("WEFT_WEIGHTS", () => engine.adapters.load("a", cut), /truncated/);
});

test("weft export --target-parameters: experts as transformers has them, and nothing else so", async () => {
  const dir = scratch();
  const there = await bundle(configs.qwen3_moe);
  const run = (...args: string[]) =>
    weft("export", there, "--adapter", `${fixtures}peft-qwen3_moe-experts`, "--device", "wasm", ...args);
  assert.is((await run("--target-parameters", "-o", `${dir}/p`)).code, 0);
  const said = JSON.parse(readFileSync(`${dir}/p/adapter_config.json`, "utf8")) as {
    target_parameters: string[];
  };
  assert.equal(said.target_parameters, [
    "mlp.experts.gate_up_proj",
    "mlp.experts.down_proj",
    "mlp.gate.weight",
  ]);
  await using engine = await opened(there);
  await engine.adapters.load("back", `${dir}/p`);
  await engine.adapters.load("given", `${fixtures}peft-qwen3_moe-experts`);
  assert.is(contentBits(engine, "back"), contentBits(engine, "given"));
  for (const [says, ...wrong] of [
    [/one of --lora and/, "--target-parameters", "--lora", "-o", `${dir}/x`],
    [/a folder to write/, "--target-parameters", "-o", `${dir}/x.gguf`],
  ] as const) {
    const { code, err } = await run(...wrong);
    assert.is(code, 1);
    assert.match(err, says);
  }
  assert.match(
    (await weft("export", there, "--target-parameters", "-o", `${dir}/x`)).err,
    /beside --adapter/,
  );
  assert.not(existsSync(`${dir}/x`) || existsSync(`${dir}/x.gguf`));
});

test("weft export and weft merge: the base, an adapter, a model with it, as files", async () => {
  const dir = scratch();
  const there = await bundle(configs.even);
  await using engine = await opened(there);
  await trained(engine, "notes", { rank: 4 });
  await engine.adapters.get("notes").save(`${dir}/notes`);
  const run = async (...args: string[]): Promise<string> => {
    const { code, out, err } = await weft(...args, "--device", "wasm");
    assert.is(code, 0, err);
    return out;
  };
  assert.match(await run("export", there, "-o", `${dir}/base.gguf`), /base\.gguf: \d+ parameters, from f32/);
  assert.is((await compile(`${dir}/base.gguf`, `${dir}/base.weft`, options)).base, engine.manifest.base);
  await run("export", there, "--adapter", `${dir}/notes`, "-o", `${dir}/notes.gguf`);
  await run("export", there, "--adapter", `${dir}/notes.gguf`, "-o", `${dir}/notes2`);
  await engine.adapters.load("back", `${dir}/notes2`);
  assert.is(contentBits(engine, "back"), contentBits(engine, "notes"));
  await run("merge", there, "--adapter", `${dir}/notes`, "-o", `${dir}/merged.gguf`);
  await compile(`${dir}/merged.gguf`, `${dir}/merged.weft`, options);
  await engine.merge("notes");
  await same(engine, `${dir}/merged.weft`);
  for (const args of [
    ["export", there, "-o", `${dir}/base.gguf`],
    ["export", there, "--adapter", `${dir}/notes`, "-o", `${dir}/notes.gguf`],
    ["merge", there, "--adapter", `${dir}/notes`, "-o", `${dir}/merged.gguf`],
  ]) {
    const bytes = readFileSync(args.at(-1)!);
    const refused = await weft(...args, "--device", "wasm");
    assert.is(refused.code, 1);
    assert.match(refused.err, /(a model|an adapter) that weft wrote.*--replace replaces it/);
    await run(...args, "--replace");
    assert.ok(readFileSync(args.at(-1)!).equals(bytes));
  }
  const wrong = await weft("export", there, "--lora", "-o", `${dir}/x`);
  assert.match(wrong.err, /beside --adapter/);
});
test.run();
