/** Files of others, each with one thing wrong: refused by name, before anything large is built. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { checkConfig, checkTokenizerConfig, shardsOf } from "../compiler/config.ts";
import { generationOf } from "../compiler/generation.ts";
import { checkContainer } from "../compiler/gguf/container.ts";
import { models } from "../compiler/models/index.ts";
import { openModel } from "../compiler/open.ts";
import { parseHeader } from "../runtime/bundle.ts";
import { asManifest } from "../runtime/load.ts";
import { planMemory, WeftError } from "../sdk/index.ts";
import { readAdapter } from "../sdk/peft/read.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import { compressTernary, expandTernary } from "../sdk/ternary.ts";
import { Text } from "../sdk/text.ts";
import { batchOf, bundle, configs, engineOf } from "./support/engines.ts";
import { copy } from "./support/mutate.ts";
import { suite } from "./support/suite.ts";
import { type FamilyName, scratch, writeModel } from "./support/tiny.ts";

const test = suite("files of others");
const refused = async (what: string, f: () => unknown, says: RegExp): Promise<void> => {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, `${what}: ${e}`);
    assert.match((e as Error).message, says, what);
    return;
  }
  assert.unreachable(`${what} was taken`);
};
// biome-ignore lint/suspicious/noExplicitAny: it breaks what types promise
type Change = (m: any) => void;
// biome-ignore lint/suspicious/noExplicitAny: as above
const coupled = (m: any): any => m.sites.find((s: any) => s.coupling).coupling;

test("manifests: every index, offset and length stays inside what it points into", async () => {
  const raw: unknown = JSON.parse(readFileSync(`${await bundle(configs.even)}/manifest.json`, "utf8"));
  asManifest(raw, "m");
  const cases: [Change, RegExp][] = [
    [(m) => delete m.model, /the key "model"/],
    [(m) => (m.modle = m.model), /modle.*did you mean "model"/],
    [(m) => (m.model.heads = 3), /heads.*multiple of kvHeads/],
    [(m) => (m.model.layers = 2 ** 31 - 1), /model\.layers.*at most one a tensor/],
    [(m) => (m.model.vocab = 1e300), /model\.vocab.*positive integer/],
    [(m) => (m.model.ropes[0].inverseFrequencies = Array(99).fill(1)), /model\.ropes/],
    [(m) => m.model.ropes.push({ inverseFrequencies: [1], scale: 1 }), /model\.ropes\[1\]/],
    [(m) => m.model.ropes.push(m.model.ropes[0]), /perLayer\.rope/],
    [(m) => (m.model.perLayer.rope = [0, 1]), /perLayer\.rope/],
    [(m) => (m.model.perLayer.kind = [0, 2]), /perLayer\.kind/],
    [(m) => (m.model.perLayer.kind = [0, 2 ** 30]), /perLayer\.kind/],
    [(m) => (m.model.perLayer.kind = [0]), /perLayer\.kind/],
    [(m) => (m.sites[0].kinds = [0]), /sites\[0\]\.kinds.*some of 1 kinds/],
    [(m) => (m.targets.wasm.layerParams[0].kinds = []), /layerParams\[0\]\.kinds/],
    [(m) => (m.targets.wasm.programs[0].launches[0].kinds = [1]), /launches\[0\]\.kinds/],
    [(m) => (m.capacities.context = 4096), /capacities\.context/],
    [(m) => (m.branches[0].site = 99), /branches\[0\]\.site.*below/],
    [(m) => (m.branches[0].index = 1), /branches\[0\]\.index/],
    [(m) => (m.branches[0].method = "toString"), /branches\[0\]\.method/],
    [(m) => (m.branches[0].tensors[0].kind = "dens"), /did you mean "dense"/],
    [(m) => (m.branches[0].tensors[0].kind = "selection"), /tensors\[0\]\.init.*selection, leading/],
    [(m) => (m.branches[0].tensors[0].init = "leading"), /tensors\[0\]\.init.*zeros, ones/],
    [(m) => (m.branches[0].tensors[0].shape = "vector"), /a vector of one row/],
    [(m) => (m.methods.lora.change[0].term = "prodct"), /did you mean "product"/],
    [(m) => (m.methods.lora.change[0].of.b = "c"), /a tensor c/],
    [(m) => delete m.methods.lora.change[0].of.b, /branches\[0\]\.tensors/],
    [(m) => (m.methods.lora.change = [{ term: "entries", of: { index: "a", values: "b" } }]), /of its kind/],
    [(m) => (m.updates.words = ["lr"]), /wasm\.header.*words of updates/],
    [(m) => m.branches[0].tensors.pop(), /a tensor b/],
    [(m) => (coupled(m).extra = 1), /extra/],
    [(m) => (coupled(m).at = [coupled(m).channels]), /coupling\.at.*slices/],
    [(m) => (coupled(m).at = []), /coupling\.at.*slices/],
    [(m) => (coupled(m).channels = 2 ** 30), /coupling/],
    [(m) => (m.sites.find((s: { kind: string }) => s.kind === "linear").outFeatures *= 2), /./],
    [(m) => (m.targets.wasm.factors[0].offset = 2 ** 30), /factors\[0\]\.offset/],
    [(m) => (m.targets.wasm.factors[0].accum = 2 ** 30), /factors\[0\]\.accum/],
    [(m) => (m.targets.wasm.factors[0].branch = null), /factors/],
    [(m) => (m.targets.wasm.layerParams[0].offset = 2 ** 29), /room\.weights\.layer/],
    [(m) => (m.targets.wasm.layerParams[0].name = "x"), /layerParams/],
    [(m) => (m.targets.wasm.room.block = 2 ** 28), /room\.block/],
    [(m) => (m.saved.lora.words.kept = 8), /saved\.lora\.words\.kept/],
    [(m) => (m.targets.wasm.slots.page = 2 ** 28), /./],
    [(m) => (m.targets.wasm.homes.rotary = m.targets.wasm.room.arena), /homes\.rotary/],
    [(m) => (m.targets.wasm.homes.dh += 64), /homes\.dh/],
    [(m) => (m.targets.wasm.programs[0].launches[0].kernel = "constructor"), /a kernel of this target/],
    [(m) => (m.targets.wasm.panel = 3), /panel.*8 or 16/],
    [(m) => (m.targets = {}), /targets/],
    [(m) => delete m.files["host.wasm"], /host\.wasm/],
    [(m) => delete m.files["host.json"], /host\.json/],
    [(m) => (m.files["a\\b"] = { bytes: 1, sha256: "0".repeat(64) }), /inside the folder/],
    [(m) => (m.tensors[0].start = 2 ** 52), /bytes inside its shard/],
    [(m) => (m.tensors[0].name = m.tensors[1].name), /tensor/],
    [(m) => m.tensors.pop(), /tensors/],
    [(m) => (m.tensors[0].shard = "__proto__"), /a shard that the manifest lists/],
  ];
  for (const [i, [change, says]] of cases.entries()) {
    const m = copy(raw);
    change(m);
    await refused(`change ${i}: ${change}`, () => asManifest(m, "m"), says);
  }
  for (const x of [null, 3, "x", [], {}]) await refused(String(x), () => asManifest(x, "m"), /m/);
});

test("adapters: configs, scales, numbers; patterns that never end elsewhere", async () => {
  await using engine = await engineOf(configs.even, { methods: ["lora", "sparse"] });
  const { manifest, core } = engine;
  await (await engine.finetune({ name: "a", data: batchOf(128), steps: 1 })).done;
  const { config, weights } = writeAdapter(core.adapters.find("a").content, manifest);
  const json = JSON.parse(config) as Record<string, unknown>;
  const read = (more: object, file = weights) => readAdapter({ ...json, ...more }, file, manifest, "a");
  await read({});
  // What peft 0.18 writes beside what is read, and lists that it takes for none.
  await read({
    alora_invocation_tokens: null,
    arrow_config: null,
    corda_config: null,
    ensure_weight_tying: false,
    eva_config: null,
    exclude_modules: null,
    layer_replication: null,
    layers_pattern: null,
    layers_to_transform: [],
    loftq_config: {},
    lora_bias: false,
    megatron_config: null,
    megatron_core: "megatron.core",
    modules_to_save: null,
    peft_version: "0.18.0",
    qalora_group_size: 16,
    target_parameters: null,
    trainable_token_indices: null,
    use_bdlora: null,
    use_qalora: false,
  });
  const evil = `(${"a+".repeat(20)})+$`;
  for (const [more, says] of [
    [{ modules_to_save: 3 }, /modules_to_save.*an array/],
    [{ modules_to_save: "lm_head" }, /modules_to_save/],
    [{ exclude_modules: { a: 1 } }, /exclude_modules/],
    [{ layers_to_transform: "all" }, /layers_to_transform/],
    [{ target_modules: 3 }, /target_modules/],
    [{ target_modules: [3] }, /target_modules/],
    [{ target_modules: "(a)\\1" }, /backreference/],
    [{ target_modules: evil }, /target_modules.*at least one linear layer/],
    [{ exclude_modules: "(?=a)" }, /exclude_modules.*lookaround/],
    [{ rank_pattern: { "(": 4 } }, /rank_pattern.*unclosed/],
    [{ rank_pattern: { q_proj: "4" } }, /rank_pattern\.q_proj/],
    [{ rank_pattern: [] }, /rank_pattern/],
    [{ alpha_pattern: { q_proj: "16" } }, /alpha_pattern\.q_proj.*finite/],
    [JSON.parse('{"lora_alpha":1e999}'), /lora_alpha.*finite/],
    [{ lora_alpha: 1e300 }, /a scale.*finite in f32/],
    [{ r: 0 }, /r: .*a positive integer/],
    [{ peft_type: "constructor" }, /peft_type/],
    [{ weft_base: 3 }, /weft_base/],
  ] as [object, RegExp][])
    await refused(JSON.stringify(more), () => read(more), says);
  for (const [value, says] of [
    [Number.NaN, /lora_A.*finite values.*NaN at element 0/],
    [Number.POSITIVE_INFINITY, /Infinity at element 0/],
  ] as const) {
    const file = weights.slice();
    const { tensors } = parseHeader(file, file.length, "a");
    new DataView(file.buffer).setFloat32(tensors[0]!.start, value, true);
    await refused(String(value), () => read({}, file), says);
  }
  // Two hundred bytes that stand for four gigabytes.
  const { bytes } = compressTernary(weights, 0.2);
  expandTernary(bytes, "t", 1e6);
  const head = new TextEncoder().encode(
    JSON.stringify({
      magnitude: 1,
      kept: 1,
      riceBits: 0,
      tensors: [{ name: "a", shape: [1e9] }],
      selections: [],
    }),
  );
  const bomb = new Uint8Array(9 + head.length + 1);
  bomb.set(bytes.subarray(0, 5));
  new DataView(bomb.buffer).setUint32(5, head.length, true);
  bomb.set(head, 9);
  await refused("a ternary bomb", () => expandTernary(bomb, "t", 1e6), /at most 1000000 numbers.*1000000000/);
  const dir = scratch();
  mkdirSync(`${dir}/a`);
  writeFileSync(`${dir}/a/adapter_config.json`, JSON.stringify({ ...json, weft_ternary: true }));
  writeFileSync(`${dir}/a/adapter_model.ternary`, bomb);
  try {
    await engine.adapters.load("bomb", `${dir}/a`);
    assert.unreachable();
  } catch (e) {
    assert.match((e as Error).message, /which this base has room for/);
  }
});

test("model files: config, index, tokenizer config, GGUF and safetensors headers", async () => {
  const config = { ...configs.even };
  checkConfig(config, "c");
  for (const [more, says] of [
    [{ model_type: "constructor" }, /model_type.*llama/],
    [{ model_type: "lama" }, /did you mean "llama"/],
    [{ num_hidden_layers: 1e9 }, /num_hidden_layers.*from 1 to 4095/],
    [{ vocab_size: 1e300 }, /vocab_size/],
    [{ head_dim: 2 ** 30 }, /head_dim/],
    [{ hidden_size: "64" }, /hidden_size/],
    [{ rms_norm_eps: -1 }, /rms_norm_eps/],
    [{ rope_scaling: 3 }, /rope_scaling.*an object/],
    [{ rope_parameters: { rope_theta: "x" } }, /rope_parameters\.rope_theta/],
    [{ tie_word_embeddings: "yes" }, /tie_word_embeddings/],
  ] as [object, RegExp][])
    await refused(JSON.stringify(more), () => checkConfig({ ...config, ...more }, "c"), says);
  const more = { max_length: 4096, do_sample: true, temperature: 0.9, top_p: 0.6, unsloth_version: "2025.1" };
  assert.is(models.llama!.read(checkConfig({ ...config, ...more }, "c")).vocab, config.vocab_size);
  await refused(
    "a key of the maths",
    () => models.llama!.read({ ...config, logit_scale: 2 }),
    /logit_scale.*may change/,
  );
  for (const [of, more, says] of [
    ["qwen3", { use_sliding_window: true }, /use_sliding_window/],
    ["qwen3", { layer_types: ["full_attention", "sliding_attention"] }, /layer_types/],
    ["gemma2", { layer_types: ["full_attention"] }, /layer_types.*2 of/],
    ["gemma2", { layer_types: ["full_attention", "linear_attention"] }, /layer_types/],
    ["gemma2", { hidden_activation: "silu" }, /hidden_activation/],
    ["gemma2", { attn_logit_softcapping: 0 }, /attn_logit_softcapping.*above 0/],
    ["gemma2", { use_bidirectional_attention: true }, /use_bidirectional_attention/],
    ["mistral", { attention_bias: true }, /attention_bias.*may change/],
    ["mistral", { sliding_window: "all" }, /sliding_window.*above 0/],
    ["mistral", { partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
    ["mistral", { rope_scaling: { rope_type: "ntk" } }, /rope_scaling\.rope_type.*longrope/],
    ["mistral", { rope_scaling: { rope_type: "linear" } }, /rope_scaling\.factor.*a number/],
    ["mistral", { rope_scaling: { rope_type: "default", mrope_section: [2, 4] } }, /mrope_section/],
    ["mistral", { rope_scaling: { rope_type: "longrope", short_factor: [1] } }, /short_factor.*6 numbers/],
    ["qwen2", { layer_types: ["full_attention", "linear_attention"] }, /layer_types/],
    ["smollm3", { no_rope_layers: [1] }, /no_rope_layers.*2 of/],
    ["smollm3", { use_sliding_window: true }, /use_sliding_window/],
    ["starcoder2", { norm_type: "rms_norm" }, /norm_type.*layer_norm/],
    ["granite", { logits_scaling: 0 }, /logits_scaling.*not 0/],
    ["granite", { embedding_multiplier: "2" }, /embedding_multiplier/],
    ["olmo2", { mlp_bias: true }, /mlp_bias.*may change/],
    ["gemma3", { attn_logit_softcapping: 50 }, /attn_logit_softcapping.*null/],
    ["gemma3", { use_bidirectional_attention: true }, /use_bidirectional_attention/],
  ] as [FamilyName, object, RegExp][])
    await refused(
      `${of} ${JSON.stringify(more)}`,
      () => models[String(configs[of].model_type)]!.read({ ...configs[of], ...more }),
      says,
    );
  // Of six layers of Gemma 3 five see a window, of four of SmolLM3 three turn; of Qwen2 the upper ones may
  // slide.
  const perLayerOf = (of: FamilyName, more: object): object =>
    models[String(configs[of].model_type)]!.read({ ...configs[of], ...more }).perLayer;
  const seven = { num_hidden_layers: 7, layer_types: undefined };
  assert.equal(perLayerOf("gemma3", seven), {
    window: [18, 18, 18, 18, 18, 2 ** 30, 18],
    rope: [1, 1, 1, 1, 1, 0, 1],
  });
  const every = { no_rope_layers: undefined, no_rope_layer_interval: undefined };
  assert.equal(perLayerOf("smollm3", { ...seven, ...every }), { rope: [0, 0, 0, 1, 0, 0, 0] });
  assert.equal(perLayerOf("smollm3", { no_rope_layers: [1, 1] }), {});
  const upper = { use_sliding_window: true, sliding_window: 9, max_window_layers: 1 };
  assert.equal(perLayerOf("qwen2", upper), { window: [2 ** 30, 9] });
  assert.equal(perLayerOf("mistral", { sliding_window: null }), {});
  // A window that no key states is transformers' own, in every other layer; null is no bound.
  const silent = { ...configs.gemma2, sliding_window: undefined, attn_logit_softcapping: null };
  const { perLayer, constants } = models.gemma2!.read(silent);
  assert.equal(perLayer, { window: [4096, 2 ** 30] });
  assert.equal(Object.keys(constants), ["scale", "cap"]);
  for (const x of [null, [], 3]) await refused(String(x), () => checkConfig(x, "c"), /an object/);
  for (const map of [null, 3, { a: 3 }, { a: "../x" }, { a: "/etc/passwd" }])
    await refused(JSON.stringify(map), () => shardsOf({ weight_map: map }, "i"), /weight_map/);
  assert.equal(shardsOf({ weight_map: { a: "m", b: "m", c: "n" } }, "i"), ["m", "n"]);
  await refused("tokenizer", () => checkTokenizerConfig({ bos_token: 3 }, "t"), /bos_token.*a token/);

  const gguf = (tensors: bigint, pairs: bigint, more = 64): Uint8Array => {
    const out = new Uint8Array(24 + more);
    const view = new DataView(out.buffer);
    view.setUint32(0, 0x46554747, true);
    view.setUint32(4, 3, true);
    view.setBigUint64(8, tensors, true);
    view.setBigUint64(16, pairs, true);
    return out;
  };
  const walk = (b: Uint8Array): void => checkContainer((x, y) => b.subarray(x, y), b.length, "x.gguf");
  walk(gguf(0n, 0n));
  await refused("tensors", () => walk(gguf(2n ** 60n, 0n)), /a header of .* tensors.*inside the file/);
  await refused("keys", () => walk(gguf(0n, 2n ** 60n)), /keys inside the file/);
  await refused("magic", () => walk(new Uint8Array(64)), /begins with GGUF/);
  await refused("cut", () => walk(gguf(0n, 0n).subarray(0, 10)), /inside the file/);
  const long = gguf(0n, 1n);
  new DataView(long.buffer).setBigUint64(24, 2n ** 50n, true);
  await refused("a key's length", () => walk(long), /a key inside the file/);
  const array = gguf(0n, 1n);
  const at = new DataView(array.buffer);
  at.setUint32(32, 9, true);
  at.setUint32(36, 4, true);
  at.setBigUint64(40, 2n ** 40n, true);
  await refused("an array's length", () => walk(array), /an array inside the file/);

  const header = (json: unknown, data = 8): Uint8Array => {
    const head = new TextEncoder().encode(JSON.stringify(json));
    const out = new Uint8Array(8 + head.length + data);
    new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true);
    out.set(head, 8);
    return out;
  };
  const tensors = (json: unknown) => {
    const file = header(json);
    return parseHeader(file, file.length, "s").tensors.length;
  };
  const t = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  assert.is(tensors({ t }), 1);
  for (const [json, says] of [
    [{ t: { ...t, dtype: "toString" } }, /dtype.*F32/],
    [{ t: { ...t, shape: [1e300, 0] } }, /shape/],
    [{ t: { ...t, data_offsets: [0, 8, 9] } }, /data_offsets/],
    [{ t: { ...t, data_offsets: [8, 0] } }, /8 bytes for F32/],
    [{ t: { ...t, data_offsets: [8, 16] } }, /inside the file/],
    [{ t, u: t }, /overlap/],
    [{ t, __metadata__: { a: 1 } }, /__metadata__\.a/],
    [[], /an object/],
  ] as [unknown, RegExp][])
    await refused(JSON.stringify(json), () => tensors(json), says);
});
test("tokenizers: one that cannot be read is told at compile time; the default template", async () => {
  const dir = writeModel(configs.even);
  const model = { type: "BPE", vocab: {}, merges: [] };
  for (const [file, says] of [
    ["{", /tokenizer\.json.*JSON/],
    ["[]", /tokenizer\.json.*an object/],
    ["{}", /tokenizer\.json.*the key "model"/],
    [JSON.stringify({ model }), /tokenizer\.json.*the key "decoder"/],
  ] as const) {
    writeFileSync(`${dir}/tokenizer.json`, file);
    const e = await openModel(dir).then(
      () => null,
      (e: WeftError) => e,
    );
    assert.instance(e, WeftError, file);
    assert.is(e!.code, "WEFT_TOKENIZER");
    assert.match(e!.message, says);
  }
  await refused("no tokenizer", () => new Text({}, {}, null), /WEFT_TOKENIZER.*tokenizer\.json/);
  writeFileSync(`${dir}/tokenizer.json`, JSON.stringify({ model, decoder: { type: "ByteLevel" } }));
  const named = (name: string) => ({ name, template: `{{ "${name}" }}` });
  for (const [list, template] of [
    [[named("tool_use"), named("default")], '{{ "default" }}'],
    [[named("tool_use")], undefined],
  ] as const) {
    writeFileSync(`${dir}/tokenizer_config.json`, JSON.stringify({ chat_template: list }));
    assert.is((await openModel(dir)).files.get("chat_template.jinja"), template);
  }
});

test("generation_config.json: what no bundle can hold is told when the model is compiled", async () => {
  const sampling = (more: object) => generationOf({}, { do_sample: true, ...more }, "g").sampling;
  assert.equal(sampling({ top_k: -1, temperature: 0.5, top_p: null, suppress_tokens: [1] }), {
    temperature: 0.5,
  });
  for (const [more, says] of [
    [{ top_k: 1.5 }, /g: top_k/],
    [{ top_p: 0 }, /g: top_p.*above 0/],
    [{ min_p: -1 }, /g: min_p/],
    [{ temperature: -1 }, /g: temperature/],
    [{ repetition_penalty: 0 }, /g: repetition_penalty/],
  ] as [object, RegExp][])
    await refused(JSON.stringify(more), () => sampling(more), says);
});

test("methods and presets are those that there are, not what every object has", async () => {
  const dir = writeModel(configs.even);
  for (const name of ["constructor", "toString", "__proto__"]) {
    for (const o of [{ methods: [name] }, { train: [name] }]) {
      const e = await compile(dir, { ...o, targets: ["webgpu"] }).catch((e: WeftError) => e);
      assert.is((e as WeftError).code, "WEFT_OPTION", `${name}: ${e}`);
    }
    const e = await planMemory(name).catch((e: WeftError) => e);
    assert.is((e as WeftError).code, "WEFT_OPTION", `${name}: ${e}`);
  }
});
test.run();
