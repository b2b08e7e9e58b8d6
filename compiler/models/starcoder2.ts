/**
 * The StarCoder2 family: as Llama, with LayerNorm, biases, and a feed-forward without gates; every layer may
 * see a window.
 */
import { gelu } from "../../ops/index.ts";
import { decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, layerNormEps, named, whole } from "./gguf.ts";
import { above0OrNull, only } from "./keys.ts";
import type { Family, Json, Model, Names } from "./model.ts";
import {
  decoderNames,
  embedding,
  head,
  layerNorm,
  preNorm,
  residual,
  selfAttention,
  ungated,
} from "./parts.ts";

const own = [
  "hidden_act",
  "mlp_type",
  "norm_epsilon",
  "norm_type",
  "sliding_window",
  "use_bias",
  // Of training from scratch.
  "embedding_dropout",
  "residual_dropout",
  // Published files say them, and transformers does not read them.
  "attention_softmax_in_fp32",
  "layer_norm_epsilon",
  "scale_attention_softmax_in_fp32",
  "scale_attn_weights",
];
const names: Names = { ...decoderNames, outer: { ...decoderNames.outer, "norm.bias": "model.norm.bias" } };

function read(config: Json): Model {
  const eps = config.norm_epsilon ?? 1e-5;
  const d = decoderSizes({ ...config, rms_norm_eps: eps }, own, { tie_word_embeddings: true });
  only(config, "hidden_act", "gelu_pytorch_tanh");
  only(config, "mlp_type", "default");
  only(config, "norm_type", "layer_norm");
  const bias = config.use_bias !== false;
  const window = above0OrNull(config, "sliding_window", null);
  const attention = selfAttention(d, { bias, attending: { window: window !== null } });
  const norm = layerNorm(d);
  return {
    family: "starcoder2",
    ...d,
    ...(window && { perLayer: { window: Array<number>(d.layers).fill(window) } }),
    names,
    embed: embedding(d),
    layer: residual(preNorm(attention, ungated(gelu)(d, bias)), norm),
    head: head(d, { norm }),
  };
}

export const starcoder2: Family = {
  loadedBy: "Starcoder2ForCausalLM",
  read,
  gguf: {
    architecture: "starcoder2",
    config: (g) => ({
      model_type: "starcoder2",
      ...decoderConfig(g, layerNormEps),
      use_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      hidden_act: "gelu_pytorch_tanh",
    }),
    ...named({
      ...decoderModules,
      "model.layers.{l}.mlp.c_fc": "blk.{l}.ffn_up",
      "model.layers.{l}.mlp.c_proj": "blk.{l}.ffn_down",
    }),
    layout: whole,
    says: (m, config) => decoderSays(m, config, {}, layerNormEps),
  },
};
