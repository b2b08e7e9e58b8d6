/** The SmolLM3 family: as Llama, with layers that do not turn by position (NoPE; Kazemnejad et al. 2023). */
import { allAttend, decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, halves, named } from "./gguf.ts";
import { count, fail, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, residual, rms, selfAttention, swiglu } from "./parts.ts";
import { still } from "./rope.ts";

const own = [
  "attention_bias",
  "hidden_act",
  "layer_types",
  "mlp_bias",
  "no_rope_layer_interval",
  "no_rope_layers",
  "use_sliding_window",
  // Read only where use_sliding_window is true.
  "sliding_window",
];
/** What transformers takes for a key that is not there. */
const absent = { rope_theta: 2000000, tie_word_embeddings: true };

/** The table of each layer: 0 turns, 1 does not. */
function tables(config: Json, layers: number): number[] {
  const interval = count(config, "no_rope_layer_interval", 4);
  const turns =
    config.no_rope_layers ?? Array.from({ length: layers }, (_, l) => +((l + 1) % interval !== 0));
  if (!Array.isArray(turns) || turns.length !== layers || !turns.every((t) => t === 0 || t === 1))
    fail("no_rope_layers", `${layers} of 1 (a layer turns) and 0`, turns);
  return (turns as number[]).map((t) => 1 - t);
}

function read(config: Json): Model {
  const d = decoderSizes(config, own, absent);
  only(config, "hidden_act", "silu");
  only(config, "use_sliding_window", false);
  allAttend(config);
  const rope = tables(config, d.layers);
  const sizes = rope.includes(1) ? { ...d, ropes: [d.ropes[0]!, still(d.ropes[0]!)], perLayer: { rope } } : d;
  const attention = selfAttention(sizes, { bias: config.attention_bias === true });
  return {
    family: "smollm3",
    ...sizes,
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(attention, swiglu(d, config.mlp_bias === true)), rms(d)),
    head: head(d),
  };
}

export const smollm3: Family = {
  loadedBy: "SmolLM3ForCausalLM",
  read,
  gguf: {
    architecture: "smollm3",
    // Which layers turn is not in the file: llama.cpp leaves every fourth.
    config: (g) => ({
      model_type: "smollm3",
      ...decoderConfig(g),
      attention_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      mlp_bias: g.shapeOf("blk.0.ffn_down.bias") !== undefined,
      hidden_act: "silu",
    }),
    ...named(decoderModules),
    layout: halves,
    says: (m, config) => decoderSays(m, config, absent),
  },
};
