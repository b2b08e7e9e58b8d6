/**
 * The GPT-2 family: learned positions, LayerNorm, biases, GELU; queries, keys and values are one projection,
 * and checkpoints have matrices as [in, out].
 */
import { gelu } from "../../ops/index.ts";
import { decoderSizes } from "./config.ts";
import { f32, named, u32, whole } from "./gguf.ts";
import { checkKeys, count, only } from "./keys.ts";
import type { Family, Json, Model, Names } from "./model.ts";
import { fusedAttention, head, layerNorm, positioned, residual, ungated } from "./parts.ts";

const own = [
  "activation_function",
  "layer_norm_epsilon",
  "n_ctx",
  "n_embd",
  "n_head",
  "n_inner",
  "n_layer",
  "n_positions",
  "reorder_and_upcast_attn",
  "scale_attn_by_inverse_layer_idx",
  "scale_attn_weights",
  "tie_word_embeddings",
  "vocab_size",
  // Of heads for other tasks.
  "summary_activation",
  "summary_first_dropout",
  "summary_proj_to_labels",
  "summary_type",
  "summary_use_proj",
];
const names: Names = {
  layer: "transformer.h.{l}.",
  outer: {
    "embed_tokens.weight": "transformer.wte.weight",
    "embed_positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "lm_head.weight": "lm_head.weight",
  },
  embedding: "embed_tokens.weight",
  transposed: ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"],
  prefix: "transformer.",
};

function read(config: Json): Model {
  checkKeys(config, own);
  only(config, "activation_function", "gelu_new");
  only(config, "scale_attn_weights", true);
  only(config, "scale_attn_by_inverse_layer_idx", false);
  const width = count(config, "n_embd", 768);
  const sizes = {
    hidden_size: width,
    num_hidden_layers: count(config, "n_layer", 12),
    num_attention_heads: count(config, "n_head", 12),
    intermediate_size: count({ n_inner: config.n_inner ?? 4 * width }, "n_inner"),
    vocab_size: config.vocab_size,
    max_position_embeddings: count(config, "n_positions", 1024),
    rms_norm_eps: config.layer_norm_epsilon ?? 1e-5,
    tie_word_embeddings: config.tie_word_embeddings ?? true,
  };
  const d = decoderSizes(sizes, [], {}, () => []);
  const attention = fusedAttention(d, { module: "attn", qkv: "c_attn", out: "c_proj" }, { bias: true });
  const norm = layerNorm(d);
  return {
    family: "gpt2",
    ...d,
    names,
    embed: positioned(d),
    layer: residual(
      [
        { before: "ln_1", run: attention },
        { before: "ln_2", run: ungated(gelu)(d, true) },
      ],
      norm,
      { entry: false },
    ),
    head: head(d, { norm }),
  };
}

export const gpt2: Family = {
  loadedBy: "GPT2LMHeadModel",
  read,
  gguf: {
    architecture: "gpt2",
    config: (g) => ({
      model_type: "gpt2",
      n_embd: g.number("embedding_length"),
      n_layer: g.number("block_count"),
      n_head: g.number("attention.head_count"),
      n_inner: g.number("feed_forward_length"),
      n_positions: g.number("context_length"),
      layer_norm_epsilon: g.number("attention.layer_norm_epsilon"),
      vocab_size: g.shapeOf("token_embd.weight")?.[0] ?? g.number("vocab_size"),
      activation_function: "gelu_new",
      tie_word_embeddings: !g.shapeOf("output.weight"),
    }),
    ...named({
      "transformer.wte": "token_embd",
      "transformer.wpe": "position_embd",
      "transformer.ln_f": "output_norm",
      lm_head: "output",
      "transformer.h.{l}.ln_1": "blk.{l}.attn_norm",
      "transformer.h.{l}.attn.c_attn": "blk.{l}.attn_qkv",
      "transformer.h.{l}.attn.c_proj": "blk.{l}.attn_output",
      "transformer.h.{l}.ln_2": "blk.{l}.ffn_norm",
      "transformer.h.{l}.mlp.c_fc": "blk.{l}.ffn_up",
      "transformer.h.{l}.mlp.c_proj": "blk.{l}.ffn_down",
    }),
    // As [out, in], which is what a model has, whatever its checkpoints do.
    layout: whole,
    says: (m) => ({
      keys: {
        vocab_size: u32(m.vocab),
        context_length: u32(m.context),
        embedding_length: u32(m.hiddenSize),
        block_count: u32(m.layers),
        feed_forward_length: u32(m.ffn),
        "attention.head_count": u32(m.heads),
        "attention.layer_norm_epsilon": f32(m.eps),
      },
      tensors: {},
    }),
  },
};
