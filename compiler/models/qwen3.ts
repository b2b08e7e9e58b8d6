/** The Qwen3 family: as Llama, with a norm of its own on every head of queries and keys. */
import { allAttend, decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, named, queryKeyNorms, whole } from "./gguf.ts";
import { only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import {
  decoderNames,
  embedding,
  head,
  perHead,
  preNorm,
  residual,
  rms,
  selfAttention,
  swiglu,
} from "./parts.ts";

const own = [
  "attention_bias",
  "hidden_act",
  "layer_types",
  "use_sliding_window",
  // Read only where use_sliding_window is true.
  "sliding_window",
  "max_window_layers",
];

function read(config: Json): Model {
  const d = decoderSizes(config, own, { head_dim: 128 });
  only(config, "hidden_act", "silu");
  only(config, "use_sliding_window", false);
  allAttend(config);
  const attention = selfAttention(d, { bias: config.attention_bias === true, norm: perHead(d) });
  return {
    family: "qwen3",
    ...d,
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(attention, swiglu(d)), rms(d)),
    head: head(d),
  };
}

export const qwen3: Family = {
  loadedBy: "Qwen3ForCausalLM",
  read,
  gguf: {
    architecture: "qwen3",
    config: (g) => ({ model_type: "qwen3", ...decoderConfig(g), attention_bias: false, hidden_act: "silu" }),
    ...named({ ...decoderModules, ...queryKeyNorms }),
    layout: whole,
    says: decoderSays,
  },
};
