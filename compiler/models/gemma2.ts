/**
 * The Gemma 2 family: norms before and after each block, with gains of 1 + w; bounded scores and logits;
 * layers that see a window take turns with layers that see all.
 */
import { ALL, decoderSizes, slidingLayers } from "./config.ts";
import {
  decoderConfig,
  decoderModules,
  decoderSays,
  f32,
  gainsLessOne,
  named,
  normedAfter,
  saysMore,
  u32,
} from "./gguf.ts";
import { above0OrNull, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, geglu, head, residual, rms, sandwich, selfAttention } from "./parts.ts";

const own = [
  "attention_bias",
  "attn_logit_softcapping",
  "cache_implementation",
  "final_logit_softcapping",
  // Older than hidden_activation, which is what counts.
  "hidden_act",
  "hidden_activation",
  "layer_types",
  "query_pre_attn_scalar",
  "sliding_window",
  "use_bidirectional_attention",
];
/** What transformers takes for a key that is not there. */
const absent = { head_dim: 256, tie_word_embeddings: true };

function read(config: Json): Model {
  const d = decoderSizes(config, own, absent);
  only(config, "hidden_activation", "gelu_pytorch_tanh");
  only(config, "attention_bias", false);
  only(config, "use_bidirectional_attention", false);
  const scale = (above0OrNull(config, "query_pre_attn_scalar", 256) ?? d.headDim) ** -0.5;
  const softcap = above0OrNull(config, "attn_logit_softcapping", 50);
  const cap = above0OrNull(config, "final_logit_softcapping", 30);
  const window = above0OrNull(config, "sliding_window", 4096) ?? ALL;
  const attending = { scale, window: true, ...(softcap && { softcap }) };
  const norm = rms(d, { onePlus: true });
  return {
    family: "gemma2",
    ...d,
    constants: { scale, ...(softcap && { softcap }), ...(cap && { cap }) },
    perLayer: { window: slidingLayers(config, d.layers, (l) => l % 2 === 0).map((s) => (s ? window : ALL)) },
    names: decoderNames,
    embed: embedding(d, Math.fround(Math.sqrt(d.hiddenSize))),
    layer: residual(sandwich(selfAttention(d, { attending }), geglu(d)), norm, { entry: false }),
    head: head(d, { norm, cap }),
  };
}

export const gemma2: Family = {
  loadedBy: "Gemma2ForCausalLM",
  read,
  gguf: {
    architecture: "gemma2",
    config: (g) => {
      const sizes = decoderConfig(g);
      const heads = g.number("embedding_length") / g.number("attention.head_count");
      return {
        model_type: "gemma2",
        ...sizes,
        hidden_activation: "gelu_pytorch_tanh",
        // Not in the file: as llama.cpp has it, the largest one scales by another width.
        query_pre_attn_scalar: g.number("block_count") === 46 ? heads : sizes.head_dim,
        attn_logit_softcapping: g.number("attn_logit_softcapping", 50),
        final_logit_softcapping: g.number("final_logit_softcapping", 30),
        sliding_window: g.number("attention.sliding_window", 4096),
      };
    },
    ...named({
      ...decoderModules,
      ...normedAfter,
      "model.layers.{l}.pre_feedforward_layernorm": "blk.{l}.ffn_norm",
    }),
    layout: gainsLessOne,
    says: (m, config) =>
      saysMore(decoderSays(m, config), {
        ...(m.constants.softcap && { attn_logit_softcapping: f32(m.constants.softcap) }),
        ...(m.constants.cap && { final_logit_softcapping: f32(m.constants.cap) }),
        "attention.sliding_window": u32(Math.min(...m.perLayer.window!)),
      }),
  },
};
