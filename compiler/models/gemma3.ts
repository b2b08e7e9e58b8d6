/**
 * The Gemma 3 family (text): as Gemma 2 without its bounds; a norm on every head of queries and keys; of six
 * layers five see a window and turn by a table of their own.
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
  queryKeyNorms,
  saysMore,
  u32,
} from "./gguf.ts";
import { above0OrNull, count, fail, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import {
  decoderNames,
  embedding,
  geglu,
  head,
  perHead,
  residual,
  rms,
  sandwich,
  selfAttention,
} from "./parts.ts";
import { ropeOf } from "./rope.ts";

const own = [
  "attention_bias",
  "attn_logit_softcapping",
  "cache_implementation",
  "final_logit_softcapping",
  "hidden_activation",
  "layer_types",
  "query_pre_attn_scalar",
  "rope_local_base_freq",
  "sliding_window",
  "sliding_window_pattern",
  // The same, as some files have it.
  "_sliding_window_pattern",
  "use_bidirectional_attention",
];
/** What transformers takes for a key that is not there. */
const absent = { head_dim: 256, tie_word_embeddings: true };

/** The table of layers that see all, and of those that see a window: each its own, scaling is the first's. */
function ropes(config: Json, headDim: number): Model["ropes"] {
  const { full_attention: full, sliding_attention: local } = (config.rope_parameters ?? {}) as Json;
  return [
    ropeOf(config, headDim, {
      said: { rope_theta: config.rope_theta ?? 1e6, ...(full ?? config.rope_scaling ?? {}) },
    }),
    ropeOf(config, headDim, { said: { rope_theta: config.rope_local_base_freq ?? 1e4, ...(local ?? {}) } }),
  ];
}

function read(config: Json): Model {
  const d = decoderSizes(config, own, absent, ropes);
  only(config, "hidden_activation", "gelu_pytorch_tanh");
  only(config, "attention_bias", false);
  only(config, "use_bidirectional_attention", false);
  if (config.attn_logit_softcapping != null)
    fail("attn_logit_softcapping", "null", config.attn_logit_softcapping);
  const scale = (above0OrNull(config, "query_pre_attn_scalar", 256) ?? d.headDim) ** -0.5;
  const cap = above0OrNull(config, "final_logit_softcapping", null);
  const window = above0OrNull(config, "sliding_window", 4096) ?? ALL;
  const every = count(config, "sliding_window_pattern", (config._sliding_window_pattern as number) ?? 6);
  const slides = slidingLayers(config, d.layers, (l) => (l + 1) % every !== 0);
  const norm = rms(d, { onePlus: true });
  const attention = selfAttention(d, {
    norm: perHead(d, { onePlus: true }),
    attending: { scale, window: true },
  });
  return {
    family: "gemma3",
    ...d,
    constants: { scale, ...(cap && { cap }) },
    perLayer: { window: slides.map((s) => (s ? window : ALL)), rope: slides.map(Number) },
    names: decoderNames,
    embed: embedding(d, Math.fround(Math.sqrt(d.hiddenSize))),
    layer: residual(sandwich(attention, geglu(d)), norm, { entry: false }),
    head: head(d, { norm, cap }),
  };
}

export const gemma3: Family = {
  loadedBy: "Gemma3ForCausalLM",
  read,
  gguf: {
    architecture: "gemma3",
    config: (g) => {
      const sizes = decoderConfig(g);
      const heads = g.number("embedding_length") / g.number("attention.head_count");
      return {
        model_type: "gemma3_text",
        ...sizes,
        rope_theta: g.number("rope.freq_base", 1e6),
        rope_local_base_freq: g.number("rope.freq_base_swa", 1e4),
        hidden_activation: "gelu_pytorch_tanh",
        // Not in the file: as llama.cpp has it, the largest one scales by another width.
        query_pre_attn_scalar: g.number("block_count") === 62 ? heads : sizes.head_dim,
        final_logit_softcapping: g.get("final_logit_softcapping") ?? null,
        sliding_window: g.number("attention.sliding_window"),
        sliding_window_pattern: g.number("attention.sliding_window_pattern", 6),
      };
    },
    ...named({
      ...decoderModules,
      ...normedAfter,
      ...queryKeyNorms,
      "model.layers.{l}.pre_feedforward_layernorm": "blk.{l}.ffn_norm",
    }),
    layout: gainsLessOne,
    says: (m, config) =>
      saysMore(decoderSays(m, config, { rope_theta: 1e6 }), {
        ...(m.constants.cap && { final_logit_softcapping: f32(m.constants.cap) }),
        "rope.freq_base_swa": f32(1 / m.ropes[1]!.inverseFrequencies[1]! ** (m.headDim / 2)),
        "attention.sliding_window": u32(Math.min(...m.perLayer.window!)),
        "attention.sliding_window_pattern": u32(m.perLayer.window!.indexOf(ALL) + 1 || 6),
      }),
  },
};
