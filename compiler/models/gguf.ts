/** How most decoders lie in GGUF files: names of tensors and keys, and what llama.cpp's converter changes. */
import type { GgufFamily, GgufHeader, Json } from "./model.ts";

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
/** Names by a table of modules; what the table lacks is a mistake of the family's. */
export const named =
  (modules: Readonly<Record<string, string>>) =>
  (checkpoint: string): string => {
    const [, module, kind] = /^(.*)\.(weight|bias)$/.exec(checkpoint)!;
    const layer = /\.(\d+)\./.exec(checkpoint)?.[1] ?? "";
    const name = modules[module!.replace(`.${layer}.`, ".{l}.")];
    if (name === undefined) throw new Error(`no GGUF name of ${checkpoint}`);
    return `${name.replace("{l}", layer)}.${kind}`;
  };

/** Sizes, norms, rotation and tying of a decoder, under the keys of config.json. */
export function decoderConfig(g: GgufHeader): Json {
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
    rms_norm_eps: g.number("attention.layer_norm_rms_epsilon"),
    rope_theta: g.number("rope.freq_base", 10000),
    ...(turned !== headDim && { partial_rotary_factor: turned / headDim }),
    ...(scaling && { rope_scaling: scaling }),
    tie_word_embeddings: !g.shapeOf("output.weight"),
  };
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

type Restore = GgufFamily["restore"];
/** Tensors that llama.cpp's converter leaves as they are. */
export const whole: Restore = (_name, rows, from, to) => rows(from, to);
/** Gains of norms that a checkpoint has as 1 + w: the file has them whole. */
export const gainsLessOne: Restore = (name, rows, from, to) =>
  name.endsWith("norm.weight") ? rows(from, to).map((gain) => gain - 1) : rows(from, to);
/**
 * Heads of queries and keys, which the converter of Llama and of what derives from it turns: the file has
 * pairs side by side, a model in two halves.
 */
export const halves: Restore = (name, rows, from, to, config) => {
  if (!/\.[qk]_proj\./.test(name)) return rows(from, to);
  const headDim = config.head_dim as number;
  // Rows move inside their head.
  const start = from - (from % headDim);
  const source = rows(start, Math.ceil(to / headDim) * headDim);
  const width = source.length / (Math.ceil(to / headDim) * headDim - start);
  const out = new Float32Array((to - from) * width);
  for (let r = from; r < to; r++) {
    const i = r % headDim;
    const at = r - i - start + (i % (headDim / 2)) * 2 + Math.floor((2 * i) / headDim);
    out.set(source.subarray(at * width, (at + 1) * width), (r - from) * width);
  }
  return out;
};
