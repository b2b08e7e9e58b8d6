/** How most decoders lie in GGUF files: names of tensors and keys, and what llama.cpp's converter changes. */
import type { GgufHeader, Json, Rows } from "./model.ts";

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
/** Names by a table of modules; what the table lacks is a mistake of the family's. */
export const named =
  (modules: Readonly<Record<string, string>>) =>
  (checkpoint: string): string => {
    const [, module, kind] = /^(.*)\.(weight|bias)$/.exec(checkpoint)!;
    const layer = /\.layers\.(\d+)\./.exec(checkpoint)?.[1] ?? "";
    const name = modules[module!.replace(`.layers.${layer}.`, ".layers.{l}.")];
    if (name === undefined) throw new Error(`no GGUF name of ${checkpoint}`);
    return `${name.replace("{l}", layer)}.${kind}`;
  };

/** Sizes, norms, rotation and tying of a decoder, under the keys of config.json. */
export function decoderConfig(g: GgufHeader): Json {
  const [heads, hidden] = [g.number("attention.head_count"), g.number("embedding_length")];
  const headDim = g.number("attention.key_length", hidden / heads);
  const turned = g.number("rope.dimension_count", headDim);
  if (turned !== headDim) g.refuse("rope.dimension_count", String(headDim), turned);
  const scaling = g.get("rope.scaling.type");
  if (scaling !== undefined && scaling !== "none") g.refuse("rope.scaling.type", "none", scaling);
  if (g.shapeOf("rope_freqs.weight"))
    g.refuse(
      "rope_freqs.weight",
      "rotary frequencies that follow from rope.freq_base",
      "frequencies of its own",
    );
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
    tie_word_embeddings: !g.shapeOf("output.weight"),
  };
}

/** Rows [from, to) of heads of `headDim`: the file has pairs side by side, a model in two halves. */
export function halves(rows: Rows, from: number, to: number, headDim: number): Float32Array {
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
}
