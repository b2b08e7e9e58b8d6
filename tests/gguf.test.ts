/**
 * GGUF in: a tiny model written as GGUF by the format's own description says what its Hugging Face folder
 * says; block formats against plain f64.
 */
import { createHash } from "node:crypto";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { compile as compileInMemory } from "../compiler/compile.ts";
import { layoutOf } from "../compiler/gguf/blocks.ts";
import { models } from "../compiler/models/index.ts";
import { openModel } from "../compiler/open.ts";
import { buildPrograms } from "../compiler/programs/index.ts";
import { settingsOf } from "../compiler/settings.ts";
import { print } from "../ops/index.ts";
import { encode } from "../runtime/bundle.ts";
import { formats } from "../runtime/formats.ts";
import { changed, restore, roundingOf, store, storePlanes } from "../runtime/values.ts";
import { compile, load, type WeftError } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { batchOf, bits, configs, fixtures, idsOf, small } from "./support/engines.ts";
import { type Format, model, types, vector } from "./support/gguf_models.ts";
import { suite } from "./support/suite.ts";
import { type Config, type FamilyName, families, scratch, tensorsOfFamily } from "./support/tiny.ts";

const test = suite("gguf");
const { even } = configs;
const options = { targets: ["wasm"] as const, train: ["lora"], quick: true, capacities: small };
const logitsOf = async (path: string, vocab = 128): Promise<number[]> => {
  const out = `${scratch()}/bundle`;
  await compile(path, out, { ...options });
  await using engine = await load(out, { device: "wasm" });
  return (await engine.score(idsOf("gguf", 40, vocab), { logits: true })).logits!.flatMap((r) => [...r]);
};

for (const format of Object.keys(types) as Format[])
  test(`${format}: the file says what a folder of the same numbers says, bit for bit`, async () => {
    const { gguf, folder } = model(format);
    assert.equal(await logitsOf(gguf), await logitsOf(folder));
  });

for (const format of ["Q8_0", "Q4_0"] as const)
  test(`${format}: experts that are one tensor of a file are their own rows of it, bit for bit`, async () => {
    const { gguf, folder } = model(format, {}, configs.olmoe);
    const { vocab_size: vocab } = configs.olmoe;
    assert.equal(await logitsOf(gguf, vocab), await logitsOf(folder, vocab));
    const file = await openModel(gguf);
    const name = "model.layers.1.mlp.experts.4.down_proj.weight";
    const { hidden_size: n, intermediate_size: k } = configs.olmoe;
    const planes = file.weights.planes(name, [n, k], file.weights.nearest(name), 8, 24)!;
    assert.ok(planes.every((p) => p.length > 0));
    const refused = (path: string, where: RegExp): Promise<void> =>
      openModel(path).then(
        () => assert.unreachable(),
        (e: WeftError) => assert.match(`${e.code} ${e.message}`, where),
      );
    await refused(model(format, { "olmoe.attention.clamp_kqv": 8 }, configs.olmoe).gguf, /clamp_kqv/);
    await refused(model(format, { "olmoe.expert_gating_func": 2 }, configs.olmoe).gguf, /expert_gating_func/);
    assert.throws(
      () => file.weights.read(name.replace(".4.", ".6."), [n, k]),
      (e: WeftError) => /ffn_down_exps.*more than 6 matrices/.test(e.message),
    );
  });

test("blocks of every kind say what llama.cpp's own reader makes of them, bit for bit", () => {
  const kinds = JSON.parse(readFileSync(`${fixtures}gguf_blocks.json`, "utf8")) as Record<
    string,
    { type: number; raw: string; values: string }
  >;
  for (const [kind, { type, raw, values }] of Object.entries(kinds)) {
    const bytes = new Uint8Array(Buffer.from(raw, "base64"));
    const want = new Float32Array(new Uint8Array(Buffer.from(values, "base64")).buffer);
    const { bytes: row, read, nearest, planes } = layoutOf(type, want.length, kind);
    assert.is(row, bytes.length, kind);
    // -0 is 0: a sum of products has no sign of nothing.
    assert.equal(
      [...read(bytes, 0)].map((x) => x + 0),
      [...want].map((x) => x + 0),
      kind,
    );
    // What a format of blocks stores of them.
    const stored = planes(bytes);
    assert.is(stored !== null, ["Q4_0", "Q4_1", "Q8_0"].includes(kind), kind);
    if (stored) {
      const kept = restore(nearest, storePlanes(nearest, stored, 1, want.length), 1, want.length);
      assert.equal(
        [...kept].map((x) => x + 0),
        [...want].map((x) => x + 0),
        `${kind} as ${nearest}`,
      );
    }
  }
});

test("keep: a bundle has what the file has, in its blocks; by module, what is asked for", async () => {
  for (const [kind, format] of [
    ["Q4_0", "q4"],
    ["Q4_1", "q4"],
    ["Q8_0", "int8"],
    ["BF16", "bf16"],
    ["F16", "f16"],
  ] as const) {
    const { manifest } = await compileInMemory(model(kind).gguf, { ...options });
    assert.is(manifest.model.format, format, kind);
    assert.is(manifest.model.rounding, 0, kind);
  }
  const { gguf, folder } = model("Q4_1");
  const asked = { default: "keep", embed_tokens: "int8", down_proj: "f16" } as const;
  const mixed = await compileInMemory(gguf, { ...options, format: asked });
  assert.is(mixed.manifest.model.format, "f16+int8+q4");
  assert.ok(mixed.manifest.model.rounding > 0 && mixed.manifest.model.rounding < 0.005);
  const formatOf = (name: string): string => mixed.manifest.tensors.find((t) => t.name === name)!.format;
  assert.is(formatOf("model.embed_tokens.weight"), "int8");
  assert.is(formatOf("model.layers.1.mlp.down_proj.weight"), "f16");
  assert.is(formatOf("model.layers.1.mlp.up_proj.weight"), "q4");
  const full = await compileInMemory(folder, { ...options, train: ["lora", "full"] });
  assert.is(full.manifest.model.format, "f32");
  const refused = async (format: unknown, says: RegExp): Promise<void> => {
    const e = await compileInMemory(folder, { ...options, format: format as "keep" }).then(
      () => "compiled",
      (e: WeftError) => `${e.code} ${e.message}`,
    );
    assert.match(e, says);
  };
  await refused({ down: "q4" }, /WEFT_OPTION .*format\.down.*down_proj/);
  await refused({ down_proj: "q5" }, /WEFT_OPTION .*keep, f32/);
});

test("what changes some rows leaves the numbers of the others, in blocks too", () => {
  const [n, k] = [11, 77];
  const moved = [3, 8];
  const move = (v: Float32Array): void => {
    for (const row of moved) for (let i = row * k; i < (row + 1) * k; i++) v[i] = v[i]! * 1.37 + 0.01;
  };
  for (const format of formats) {
    const values = Float32Array.from(idsOf("rows", n * k, 1000), (x) => x / 500 - 1);
    // Steps of q4 as others choose them, of which a block has a few: rounding such values again moves them.
    const few = [
      Uint8Array.from(idsOf("steps", n * 39, 4), (x) => 0x56 + x * 0x11),
      Uint16Array.from(idsOf("scales", n * 6, 1000), (x) => 0x3001 + x),
    ];
    const raw = format === "q4" ? storePlanes(format, few, n, k) : store(format, values, n, k, "t");
    const before = restore(format, raw, n, k);
    const { stored, rounding } = changed(format, raw, n, k, move, "t");
    const after = restore(format, stored, n, k);
    const rowOf = (all: Float32Array, row: number): string => bits(all.slice(row * k, (row + 1) * k));
    for (let row = 0; row < n; row++)
      assert.is(rowOf(after, row) === rowOf(before, row), !moved.includes(row), `${format}, row ${row}`);
    assert.is(roundingOf([rounding]) === 0, format === "f32", format);
  }
});

test("matrices of several formats: a merge changes those that it moves, no other bit", async () => {
  const out = `${scratch()}/bundle`;
  const { folder } = model("F32");
  await compile(folder, out, {
    ...options,
    format: { default: "q4", q_proj: "f32", embed_tokens: "int8" },
  });
  await using engine = await load(out, { device: "wasm" });
  const before = await engine.core.baseTensors();
  const job = { data: batchOf(128), steps: 2, learningRate: 0.01 };
  await (await engine.finetune({ ...job, name: "q", targetModules: ["q_proj"] })).done;
  await (await engine.finetune({ ...job, name: "k", targetModules: ["k_proj"] })).done;
  await code("WEFT_ADAPTER", () => engine.merge("k"), /k_proj\.weight.*q4/s);
  const { rounding } = await engine.merge("k", { requantise: true });
  assert.ok(rounding > 0 && rounding < 0.1, `${rounding}`);
  (await engine.core.baseTensors()).forEach((t, i) => {
    assert.is(bits(t.data) === bits(before[i]!.data), !/k_proj/.test(t.name), t.name);
  });
  // It says what a model of those numbers says.
  const { logits } = await engine.score(idsOf("gguf", 40, 128), { logits: true });
  writeFileSync(
    `${folder}/model.safetensors`,
    encode((await engine.core.baseTensors()).map((t) => ({ ...t, dtype: "F32" }))),
  );
  assert.equal(
    logits!.flatMap((r) => [...r]),
    await logitsOf(folder),
  );
  assert.is((await engine.merge("q")).rounding, 0);
  const after = await engine.core.baseTensors();
  before.forEach((t, i) => {
    const moved = /q_proj/.test(t.name);
    assert.is(bits(t.data) === bits(after[i]!.data), !moved, t.name);
  });
  await engine.merge(null);
  (await engine.core.baseTensors()).forEach((t, i) => assert.is(bits(t.data), bits(before[i]!.data), t.name));
});

/** What a path says: the model's own numbers, its graphs, and every tensor. */
async function said(path: string) {
  const source = await openModel(path);
  const read = models[String(source.config.model_type)]!.read(source.config);
  const settings = settingsOf(read, source.weights, { capacities: small });
  const programs = buildPrograms(read, settings.capacities, {
    format: () => "f32",
    kv: "f32",
    methods: [],
    train: [],
  });
  const shape = (p: (typeof programs.layerParams)[number]): number[] =>
    p.kind === "weight" ? [p.n, p.k] : [p.n];
  const tensors = [
    ...programs.outerParams.map((p) => [read.names.outer[p.name]!, shape(p)] as const),
    ...Array.from({ length: read.layers }, (_, l) =>
      programs.layerParams.map(
        (p) => [read.names.layer.replace("{l}", String(l)) + p.name, shape(p)] as const,
      ),
    ).flat(),
  ];
  return {
    numbers: asF32(JSON.stringify(read, null, 1)).split("\n"),
    graphs: asF32(programs.graphs.map((g) => print(g.roots)).join("\n")).split("\n"),
    tensors: tensors.map(([name, shape]) => {
      const values = source.weights.read(name, shape);
      return `${name} ${shape} ${createHash("sha256").update(bits(values)).digest("hex")}`;
    }),
  };
}
/** Numbers of a text as kernels compute with them, and GGUF keeps them. */
const asF32 = (text: string): string =>
  text.replace(/-?\d+(\.\d+)?(e-?\d+)?/g, (x) => String(Math.fround(Number(x))));
/** Where a tiny model says what no file can: as its file would have it. */
const changes: Readonly<Record<string, Partial<Config>>> = {
  gemma2: { query_pre_attn_scalar: configs.gemma2.head_dim },
  gemma3: { layer_types: undefined },
  mixtral: { sliding_window: undefined },
  smollm3: { no_rope_layers: undefined, no_rope_layer_interval: 4 },
  starcoder2: { sliding_window: undefined },
};
for (const name of Object.keys(families) as FamilyName[]) {
  const c: Config = { ...configs[name], ...changes[name] };
  if (!tensorsOfFamily(c)!.gguf) continue;
  test(`${name}: the file has the folder's numbers, graphs and tensors, bit for bit`, async () => {
    const { gguf, folder } = model("F32", {}, c);
    assert.equal(await said(gguf), await said(folder));
  });
}

test("rope_freqs: frequencies of a file's own divide, as LongRoPE's factors do", async () => {
  const factors = [1, 1, 1.5, 2.25, 4, 4, 8, 8];
  const tensor = vector("rope_freqs", factors);
  const { config } = await openModel(model("F32", {}, even, [tensor]).gguf);
  assert.equal(models.llama!.read(config).ropes, [
    { inverseFrequencies: factors.map((f, i) => 10000 ** (-i / 8) / f), scale: 1 },
  ]);
});

test("a byte-level BPE vocabulary inside the file becomes the tokenizer, its template the chat", async () => {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"];
  const tokens = ["<s>", "</s>", "<|user|>", "Ġ", ...letters, "he", "ll", "hell", "hello", "Ġhello"];
  const filled = [
    ...tokens,
    ...Array.from({ length: even.vocab_size - tokens.length }, (_, i) => `<unused${i}>`),
  ];
  const { gguf } = model("F32", {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": filled,
    "tokenizer.ggml.token_type": filled.map((_, i) => (i < 3 ? 3 : 1)),
    "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o", "Ġ hello"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": true,
    "tokenizer.chat_template": "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}",
  });
  const out = `${scratch()}/bundle`;
  await compile(gguf, out, { ...options });
  await using engine = await load(out, { device: "wasm" });
  const id = (t: string): number => filled.indexOf(t);
  assert.equal(engine.encode("hello helloa"), [0, id("hello"), id("Ġhello"), id("a")]);
  assert.is(engine.text!.decode([id("hello"), id("Ġhello"), 1]), "hello hello");
  assert.equal(engine.text!.encode(engine.text!.chat([{ role: "user", content: "hello" }], true), false), [
    2,
    id("hello"),
  ]);
  assert.equal(engine.manifest.model.eos, [1]);
});

test("vocabularies are cut as their models cut text: single digits, Qwen's letters composed", async () => {
  const tokens = ["<end>", "1", "2", "12", "Ã©", "Ã", "©", "e", "Ì", "ģ"];
  const filled = [...tokens, ...Array.from({ length: 128 - tokens.length }, (_, i) => `<unused${i}>`)];
  // 12 is never one token, though a merge would make it; e and a combining accent are é to Qwen alone.
  for (const [pre, ids] of [
    ["qwen2", [4, 1, 2]],
    ["starcoder", [7, 8, 9, 1, 2]],
    ["smollm", [7, 8, 9, 1, 2]],
  ] as const) {
    const { gguf } = model("F32", {
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": pre,
      "tokenizer.ggml.tokens": filled,
      "tokenizer.ggml.token_type": filled.map((_, i) => (i < 1 ? 3 : 1)),
      "tokenizer.ggml.merges": ["1 2", "Ã ©"],
      "tokenizer.ggml.eos_token_id": 0,
      "tokenizer.ggml.add_bos_token": false,
    });
    const out = `${scratch()}/bundle`;
    await compile(gguf, out, { ...options });
    await using engine = await load(out, { device: "wasm" });
    assert.equal(engine.encode("e\u030112"), ids, pre);
  }
});

test("files that cannot be right, or are not supported, are refused by name", async () => {
  const refused = async (path: string, want: RegExp): Promise<void> => {
    const said = await compile(path, `${scratch()}/bundle`, { ...options }).then(
      () => "compiled",
      (e: WeftError) => `${e.code} ${e.message}`,
    );
    assert.match(said, want);
  };
  const { gguf } = model("Q8_0");
  const bytes = readFileSync(gguf);
  const other = `${scratch()}/other.gguf`;
  writeFileSync(other, bytes);
  truncateSync(other, bytes.length - 4000);
  await refused(other, /WEFT_WEIGHTS .*truncated/);
  writeFileSync(other, bytes.subarray(0, 20));
  await refused(other, /WEFT_WEIGHTS .*truncated/);
  await refused(
    model("F32", { "general.architecture": "mamba" }).gguf,
    /WEFT_CONFIG .*general\.architecture/,
  );
  await refused(model("F32", { "llama.rope.scaling.type": "linear" }).gguf, /WEFT_CONFIG .*rope\.scaling/);
  await refused(model("F32", { "tokenizer.ggml.model": "llama" }).gguf, /WEFT_TOKENIZER .*beside/);
});
test.run();
