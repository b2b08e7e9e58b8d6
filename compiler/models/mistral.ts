/** The Mistral family: as Llama, and every layer may see a window. GGUF files call it Llama. */
import { decoderSizes } from "./config.ts";
import { above0OrNull, only } from "./keys.ts";
import { llama } from "./llama.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, residual, rms, selfAttention, swiglu } from "./parts.ts";

function read(config: Json): Model {
  const d = decoderSizes(config, ["hidden_act", "sliding_window"]);
  only(config, "hidden_act", "silu");
  const window = above0OrNull(config, "sliding_window", 4096);
  const attention = selfAttention(d, { attending: { window: window !== null } });
  return {
    family: "mistral",
    ...d,
    ...(window && { perLayer: { window: Array<number>(d.layers).fill(window) } }),
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(attention, swiglu(d)), rms(d)),
    head: head(d),
  };
}

export const mistral: Family = { loadedBy: "MistralForCausalLM", read, writtenAs: llama.gguf! };
