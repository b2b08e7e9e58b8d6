/** How most decoders lie in GGUF files: names of tensors and keys, and what llama.cpp's converter changes. */
import type { GgufFamily, GgufHeader, GgufNumber, GgufSaid, Json, Layout, Model, Move } from "./model.ts";
import type { Mixture } from "./parts.ts";

/** Modules of a decoder, as Hugging Face's families name them, with `{l}` for the layer; and GGUF's names. */
export const decoderModules = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  lm_head: "output",
  "model.layers.{l}.input_layernorm": "blk.{l}.attn_norm",
  "model.layers.{l}.self_attn.q_proj": "blk.{l}.attn_q",
  "model.layers.{l}.self_attn.k_proj": "blk.{l}.attn_k",
  "model.layers.{l}.self_attn.v_proj": "blk.{l}.attn_v",
  "model.layers.{l}.self_attn.o_proj": "blk.{l}.attn_output",
  "model.layers.{l}.post_attention_layernorm": "blk.{l}.ffn_norm",
  "model.layers.{l}.mlp.gate_proj": "blk.{l}.ffn_gate",
  "model.layers.{l}.mlp.up_proj": "blk.{l}.ffn_up",
  "model.layers.{l}.mlp.down_proj": "blk.{l}.ffn_down",
} as const;
/** Modules of a decoder with norms after its blocks. */
export const normedAfter = {
  "model.layers.{l}.post_attention_layernorm": "blk.{l}.post_attention_norm",
  "model.layers.{l}.post_feedforward_layernorm": "blk.{l}.post_ffw_norm",
} as const;
/** Modules of norms of queries and keys. */
export const queryKeyNorms = {
  "model.layers.{l}.self_attn.q_norm": "blk.{l}.attn_q_norm",
  "model.layers.{l}.self_attn.k_norm": "blk.{l}.attn_k_norm",
} as const;
/**
 * Modules of a mixture of experts by its own names; a file has what experts have of one kind as one tensor.
 */
export const expertModules = (
  m: Pick<Mixture, "module" | "gate" | "up" | "down">,
): Readonly<Record<string, string>> =>
  Object.fromEntries([
    [`model.layers.{l}.${m.module}.gate`, "blk.{l}.ffn_gate_inp"],
    ...(["gate", "up", "down"] as const).map((kind) => [
      `model.layers.{l}.${m.module}.experts.{e}.${m[kind]}`,
      `blk.{l}.ffn_${kind}_exps`,
    ]),
  ]);
const EXPERT = /\.experts\.(\d+)\./;
/**
 * Names by a table of modules, and which of the matrices under such a name a tensor is; what the table lacks
 * is a mistake of the family's.
 */
export const named = (modules: Readonly<Record<string, string>>): Pick<GgufFamily, "name" | "part"> => ({
  name: (checkpoint) => {
    const [, module, kind] = /^(.*)\.(weight|bias)$/.exec(checkpoint)!;
    const layer = /\.(\d+)\./.exec(checkpoint)?.[1] ?? "";
    const name = modules[module!.replace(`.${layer}.`, ".{l}.").replace(EXPERT, ".experts.{e}.")];
    if (name === undefined) throw new Error(`no GGUF name of ${checkpoint}`);
    return `${name.replace("{l}", layer)}.${kind}`;
  },
  part: (checkpoint) => {
    const expert = EXPERT.exec(checkpoint);
    return expert ? Number(expert[1]) : null;
  },
});

/** What norms add to a mean square: its key in config.json, and in the file. */
export interface NormEps {
  readonly config: string;
  readonly file: string;
}
const rmsEps: NormEps = { config: "rms_norm_eps", file: "attention.layer_norm_rms_epsilon" };
export const layerNormEps: NormEps = { config: "norm_epsilon", file: "attention.layer_norm_epsilon" };

/** Sizes, norms, rotation and tying of a decoder, under the keys of config.json. */
export function decoderConfig(g: GgufHeader, eps = rmsEps): Json {
  const [heads, hidden] = [g.number("attention.head_count"), g.number("embedding_length")];
  const headDim = g.number("attention.key_length", hidden / heads);
  const turned = g.number("rope.dimension_count", headDim);
  const scaling = ropeScaling(g);
  return {
    hidden_size: hidden,
    num_hidden_layers: g.number("block_count"),
    num_attention_heads: heads,
    num_key_value_heads: g.number("attention.head_count_kv", heads),
    head_dim: headDim,
    intermediate_size: g.number("feed_forward_length"),
    vocab_size: g.shapeOf("token_embd.weight")?.[0] ?? g.number("vocab_size"),
    max_position_embeddings: g.number("context_length"),
    [eps.config]: g.number(eps.file),
    rope_theta: g.number("rope.freq_base", 10000),
    ...(turned !== headDim && { partial_rotary_factor: turned / headDim }),
    ...(scaling && { rope_scaling: scaling }),
    tie_word_embeddings: !g.shapeOf("output.weight"),
  };
}
/** What a mixture of experts says beside, under the keys of config.json. */
export function mixtureConfig(g: GgufHeader): Json {
  // What would weigh experts otherwise than by the softmax of their scores.
  for (const [key, usual] of [
    ["expert_gating_func", 1],
    ["expert_weights_scale", 1],
    ["expert_shared_count", 0],
  ] as const)
    if (g.number(key, usual) !== usual) g.refuse(key, String(usual), g.get(key));
  return { num_experts: g.number("expert_count"), num_experts_per_tok: g.number("expert_used_count") };
}
/** Keys of YaRN that say more than transformers' do: refused where they are not as if they were not there. */
const neutral = { "rope.scaling.yarn_log_multiplier": 0, "rope.scaling.yarn_ext_factor": -1 };
/**
 * `rope_scaling` as the file's keys say it, or its tensors: frequencies of its own are factors, as
 * LongRoPE's.
 */
function ropeScaling(g: GgufHeader): Json | null {
  const original = g.number("rope.scaling.original_context_length", g.number("context_length"));
  const [long, short, own] = ["rope_factors_long", "rope_factors_short", "rope_freqs"].map((name) =>
    g.values(`${name}.weight`),
  );
  const factors = (short: Float32Array, long: Float32Array): Json => ({
    rope_type: "longrope",
    short_factor: [...short],
    long_factor: [...long],
    attention_factor: g.number("rope.scaling.attn_factor", 1),
    original_max_position_embeddings: original,
  });
  if (long && short) return factors(short, long);
  const type = g.get("rope.scaling.type") ?? "none";
  if (own) return type === "none" ? factors(own, own) : g.refuse("rope.scaling.type", "none", type);
  const factor = (): number => g.number("rope.scaling.factor");
  if (type === "none") return null;
  if (type === "linear") return { rope_type: "linear", factor: factor() };
  if (type !== "yarn") return g.refuse("rope.scaling.type", "none, linear or yarn", type);
  for (const [key, value] of Object.entries({ ...neutral, "rope.scaling.attn_factor": 1 }))
    if (g.number(key, value) !== value) g.refuse(key, String(value), g.get(key));
  return {
    rope_type: "yarn",
    factor: factor(),
    original_max_position_embeddings: original,
    beta_fast: g.number("rope.scaling.yarn_beta_fast", 32),
    beta_slow: g.number("rope.scaling.yarn_beta_slow", 1),
  };
}

/**
 * The keys and tensors from which `decoderConfig` reads. `absent`: what the family takes for a key not there.
 */
export function decoderSays(m: Model, config: Json, absent: Json = {}, eps = rmsEps): GgufSaid {
  const { keys, tensors } = ropeSays(m, config, absent);
  return {
    keys: {
      vocab_size: u32(m.vocab),
      context_length: u32(m.context),
      embedding_length: u32(m.hiddenSize),
      block_count: u32(m.layers),
      feed_forward_length: u32(m.ffn),
      "attention.head_count": u32(m.heads),
      "attention.head_count_kv": u32(m.kvHeads),
      "attention.key_length": u32(m.headDim),
      "attention.value_length": u32(m.headDim),
      [eps.file]: f32(m.eps),
      ...keys,
    },
    tensors,
  };
}
export const u32 = (x: number): GgufNumber => ({ u32: x });
export const f32 = (x: number): GgufNumber => ({ f32: x });
/** With keys of the family's own. */
export const saysMore = (said: GgufSaid, keys: GgufSaid["keys"]): GgufSaid => ({
  ...said,
  keys: { ...said.keys, ...keys },
});
/** With the keys from which `mixtureConfig` reads. */
export const mixtureSays = (m: Model, config: Json, absent: Json = {}): GgufSaid =>
  saysMore(decoderSays(m, config, absent), {
    expert_count: u32(Number(config.num_local_experts ?? config.num_experts)),
    expert_used_count: u32(m.constants.experts!),
  });
/** The first rotary table: its base, how much of a head turns, its scaling. */
function ropeSays(m: Model, config: Json, absent: Json): GgufSaid {
  const all = (config.rope_parameters ?? {}) as Json;
  const own = (all.full_attention ?? all) as Json;
  const scaling = (config.rope_scaling ?? own) as Json;
  const theta = Number(
    own.rope_theta ?? scaling.rope_theta ?? config.rope_theta ?? absent.rope_theta ?? 10000,
  );
  const { inverseFrequencies, scale } = m.ropes[0]!;
  const turned = 2 * inverseFrequencies.length;
  const original = Number(
    config.original_max_position_embeddings ?? scaling.original_max_position_embeddings ?? m.context,
  );
  const factor = Number(scaling.factor ?? m.context / original);
  const vector = (list: unknown): Float32Array => Float32Array.from(list as number[]);
  const kinds: Readonly<Record<string, () => GgufSaid>> = {
    linear: () => ({
      keys: { "rope.scaling.type": "linear", "rope.scaling.factor": f32(factor) },
      tensors: {},
    }),
    // As llama.cpp's converter: what divides each frequency.
    llama3: () => ({
      keys: {},
      tensors: {
        "rope_freqs.weight": Float32Array.from(
          inverseFrequencies,
          (f, i) => theta ** ((-2 * i) / turned) / f,
        ),
      },
    }),
    yarn: () => ({
      keys: {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": f32(factor),
        "rope.scaling.original_context_length": u32(original),
        "rope.scaling.yarn_beta_fast": f32(Number(scaling.beta_fast || 32)),
        "rope.scaling.yarn_beta_slow": f32(Number(scaling.beta_slow || 1)),
      },
      tensors: {},
    }),
    longrope: () => ({
      keys: {
        "rope.scaling.attn_factor": f32(scale),
        "rope.scaling.original_context_length": u32(original),
      },
      tensors: {
        "rope_factors_long.weight": vector(scaling.long_factor),
        "rope_factors_short.weight": vector(scaling.short_factor),
      },
    }),
  };
  const kind = String(scaling.rope_type ?? scaling.type ?? "default");
  const said = kinds[kind === "su" ? "longrope" : kind]?.() ?? { keys: {}, tensors: {} };
  return saysMore(said, { "rope.freq_base": f32(theta), "rope.dimension_count": u32(turned) });
}

/** Tensors that llama.cpp's converter leaves as they are. */
export const whole: Layout = {
  convert: (_name, rows, from, to) => rows(from, to),
  restore: (_name, rows, from, to) => rows(from, to),
};
const gains =
  (by: number): Move =>
  (name, rows, from, to) =>
    name.endsWith("norm.weight") ? rows(from, to).map((gain) => gain + by) : rows(from, to);
/** Gains of norms that a checkpoint has as 1 + w: the file has them whole. */
export const gainsLessOne: Layout = { convert: gains(1), restore: gains(-1) };
/** Rows of queries and keys move inside their head: row i of a head is row `source(i)` of the other's. */
const inHeads =
  (source: (i: number, headDim: number) => number): Move =>
  (name, rows, from, to, config) => {
    if (!/\.[qk]_proj\./.test(name)) return rows(from, to);
    const headDim =
      (config.head_dim as number) ?? Number(config.hidden_size) / Number(config.num_attention_heads);
    const [start, end] = [from - (from % headDim), Math.ceil(to / headDim) * headDim];
    const others = rows(start, end);
    const width = others.length / (end - start);
    const out = new Float32Array((to - from) * width);
    for (let r = from; r < to; r++) {
      const i = r % headDim;
      const at = r - i - start + source(i, headDim);
      out.set(others.subarray(at * width, (at + 1) * width), (r - from) * width);
    }
    return out;
  };
/**
 * Heads of queries and keys, which the converter of Llama and of what derives from it turns: the file has
 * pairs side by side, a model in two halves.
 */
export const halves: Layout = {
  convert: inHeads((i, headDim) => (i % 2) * (headDim / 2) + (i >> 1)),
  restore: inHeads((i, headDim) => (i % (headDim / 2)) * 2 + Math.floor((2 * i) / headDim)),
};
