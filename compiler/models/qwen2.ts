/**
 * The Qwen2 family (2.5 too): as Llama, with biases of queries, keys and values; upper layers may see a
 * window.
 */
import { ALL, decoderSizes, slidingLayers } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, named, whole } from "./gguf.ts";
import { above0OrNull, count, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, residual, rms, selfAttention, swiglu } from "./parts.ts";

const own = ["hidden_act", "layer_types", "use_sliding_window", "sliding_window", "max_window_layers"];

function read(config: Json): Model {
  const d = decoderSizes(config, own);
  only(config, "hidden_act", "silu");
  const size = config.use_sliding_window === true ? above0OrNull(config, "sliding_window", 4096) : null;
  const from = size ? count(config, "max_window_layers", 28) : 0;
  const slides = slidingLayers(config, d.layers, (l) => size !== null && l >= from);
  const window = size !== null && slides.includes(true);
  const bias = { q: true, k: true, v: true };
  return {
    family: "qwen2",
    ...d,
    ...(window && { perLayer: { window: slides.map((s) => (s ? size : ALL)) } }),
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(selfAttention(d, { bias, attending: { window } }), swiglu(d)), rms(d)),
    head: head(d),
  };
}

export const qwen2: Family = {
  loadedBy: "Qwen2ForCausalLM",
  read,
  gguf: {
    architecture: "qwen2",
    config: (g) => ({ model_type: "qwen2", ...decoderConfig(g), hidden_act: "silu" }),
    ...named(decoderModules),
    layout: whole,
    says: decoderSays,
  },
};
