/**
 * The Granite family: as Llama, with constants that multiply embeddings, scores, what blocks add, and logits.
 */
import { allAttend, decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, f32, halves, named, saysMore } from "./gguf.ts";
import { fail, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, residual, rms, selfAttention, swiglu } from "./parts.ts";

/** The key of each in GGUF. */
const constants = {
  embedding_multiplier: "embedding_scale",
  attention_multiplier: "attention.scale",
  residual_multiplier: "residual_scale",
  logits_scaling: "logit_scale",
} as const;
type Constant = keyof typeof constants;
const own = ["attention_bias", "mlp_bias", "hidden_act", "layer_types", ...Object.keys(constants)];

function read(config: Json): Model {
  const d = decoderSizes(config, own);
  only(config, "hidden_act", "silu");
  allAttend(config);
  const constant = (key: Constant): number => {
    const x = config[key] ?? 1;
    if (typeof x !== "number" || !Number.isFinite(x) || x === 0) fail(key, "a number that is not 0", x);
    // As f32, which is what GGUF keeps.
    return Math.fround(x);
  };
  const [embedded, scale, multiplier, divisor] = (Object.keys(constants) as Constant[]).map(constant);
  const attention = selfAttention(d, { bias: config.attention_bias === true, attending: { scale: scale! } });
  return {
    family: "granite",
    ...d,
    constants: { embedding: embedded!, attention: scale!, residual: multiplier!, logits: divisor! },
    names: decoderNames,
    embed: embedding(d, embedded),
    layer: residual(preNorm(attention, swiglu(d, config.mlp_bias === true)), rms(d), {
      multiplier: multiplier!,
      entry: false,
    }),
    head: head(d, { scale: 1 / divisor! }),
  };
}

export const granite: Family = {
  loadedBy: "GraniteForCausalLM",
  read,
  gguf: {
    architecture: "granite",
    config: (g) => ({
      model_type: "granite",
      ...decoderConfig(g),
      ...Object.fromEntries(Object.entries(constants).map(([key, name]) => [key, g.number(name, 1)])),
      attention_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      mlp_bias: g.shapeOf("blk.0.ffn_down.bias") !== undefined,
      hidden_act: "silu",
    }),
    ...named(decoderModules),
    layout: halves,
    says: (m, config) =>
      saysMore(
        decoderSays(m, config),
        Object.fromEntries(
          Object.entries(constants).map(([key, name]) => [name, f32(Number(config[key] ?? 1))]),
        ),
      ),
  },
};
