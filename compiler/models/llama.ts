/**
 * The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Config keys are Hugging
 * Face's own.
 */
import { add, embed, linear } from "../../ops/index.ts";
import { decoderConfig, decoderModules, halves, named } from "./gguf.ts";
import type { Family, Json, Model } from "./model.ts";
import {
  checkKeys,
  count,
  decoderNames,
  fail,
  headsOf,
  inverseFrequencies,
  selfAttention,
  swiglu,
} from "./parts.ts";

const keys = [
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "intermediate_size",
  "vocab_size",
  "max_position_embeddings",
  "rms_norm_eps",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "tie_word_embeddings",
  "attention_bias",
  "mlp_bias",
  "hidden_act",
];

function read(config: Json): Model {
  checkKeys(config, keys);
  if (config.hidden_act !== undefined && config.hidden_act !== "silu")
    fail("hidden_act", "silu", config.hidden_act);
  if (config.rope_interleaved === true) fail("rope_interleaved", "false", true);
  if (config.pretraining_tp !== undefined && config.pretraining_tp !== 1)
    fail("pretraining_tp", "1", config.pretraining_tp);
  const hiddenSize = count(config, "hidden_size");
  const shape = headsOf(config, hiddenSize);
  const ffn = count(config, "intermediate_size");
  const vocab = count(config, "vocab_size");
  const eps = (config.rms_norm_eps ?? 1e-6) as number;
  if (typeof eps !== "number") fail("rms_norm_eps", "a number", eps);
  const attention = { ...shape, hiddenSize, bias: config.attention_bias === true };
  const mlp = { ffn, hiddenSize, bias: config.mlp_bias === true };
  const tied = config.tie_word_embeddings === true;
  return {
    family: "llama",
    hiddenSize,
    ...shape,
    ffn,
    vocab,
    tied,
    eps,
    layers: count(config, "num_hidden_layers"),
    context: count(config, "max_position_embeddings", 2048),
    inverseFrequencies: inverseFrequencies(config, shape.headDim),
    embed: (b, domain) => embed(b.weight("embed_tokens.weight", vocab, hiddenSize), domain),
    layer: (b, entering, positions) => {
      const h = b.entry(entering);
      const x = b.norm(h, "input_layernorm.weight", eps);
      const h2 = add(h, selfAttention(b, x, { ...attention, positions }));
      return add(h2, swiglu(b, b.norm(h2, "post_attention_layernorm.weight", eps), mlp));
    },
    head: (b, h) => {
      const weight = b.weight(tied ? "embed_tokens.weight" : "lm_head.weight", vocab, hiddenSize);
      return linear(b.norm(h, "norm.weight", eps), weight, "lm_head");
    },
    names: decoderNames,
  };
}

export const llama: Family = {
  read,
  gguf: {
    architecture: "llama",
    config: (g) => ({
      model_type: "llama",
      ...decoderConfig(g),
      attention_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      mlp_bias: g.shapeOf("blk.0.ffn_down.bias") !== undefined,
      hidden_act: "silu",
    }),
    name: named(decoderModules),
    // Its converter alone turns the heads of queries and keys.
    restore: (name, rows, from, to, config) =>
      /\.[qk]_proj\./.test(name) ? halves(rows, from, to, config.head_dim as number) : rows(from, to),
  },
};
