/** What a config.json says of a decoder: its sizes, and what its layers see. Keys are Hugging Face's own. */
import { checkKeys, count, fail } from "./keys.ts";
import type { Json, Model } from "./model.ts";
import { ropeOf } from "./rope.ts";

/** Keys that every decoder's config.json may have, and `decoderSizes` reads. */
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
  "original_max_position_embeddings",
  "tie_word_embeddings",
];
export type Sizes = Pick<
  Model,
  | "hiddenSize"
  | "layers"
  | "heads"
  | "kvHeads"
  | "headDim"
  | "ffn"
  | "vocab"
  | "context"
  | "tied"
  | "eps"
  | "ropes"
  | "constants"
  | "perLayer"
>;
/**
 * A decoder's sizes, checked: query heads share key heads evenly, and a head turns in pairs. `own`: keys that
 * the family reads beside these; `absent`: what the family takes for a key that is not there; `ropes`: its
 * rotary tables, if there is not one for all layers.
 */
export function decoderSizes(
  config: Json,
  own: readonly string[],
  absent: Json = {},
  ropes?: (said: Json, headDim: number) => Model["ropes"],
): Sizes {
  checkKeys(config, [...keys, ...own]);
  const said = { ...absent, ...Object.fromEntries(Object.entries(config).filter(([, v]) => v != null)) };
  const hiddenSize = count(said, "hidden_size");
  const heads = count(said, "num_attention_heads");
  const kvHeads = count(said, "num_key_value_heads", heads);
  const headDim = count(said, "head_dim", hiddenSize / heads);
  if (heads % kvHeads) fail("num_key_value_heads", `a divisor of num_attention_heads (${heads})`, kvHeads);
  if (headDim % 2) fail("head_dim", "an even number", headDim);
  const eps = said.rms_norm_eps ?? 1e-6;
  if (typeof eps !== "number") fail("rms_norm_eps", "a number", eps);
  return {
    hiddenSize,
    heads,
    kvHeads,
    headDim,
    ffn: count(said, "intermediate_size"),
    vocab: count(said, "vocab_size"),
    tied: said.tie_word_embeddings === true,
    eps,
    layers: count(said, "num_hidden_layers"),
    context: count(said, "max_position_embeddings", 2048),
    ropes: ropes?.(said, headDim) ?? [
      ropeOf(said, headDim, { partial: own.includes("partial_rotary_factor") }),
    ],
    constants: {},
    perLayer: {},
  };
}
/** Throws WEFT_CONFIG where some layers do not attend to all that came before. */
export function allAttend({ layer_types: types }: Json): void {
  if (types != null && !(Array.isArray(types) && types.every((t) => t === "full_attention")))
    fail("layer_types", "full_attention in every layer", types);
}
/** Larger than any context: a window that ends nothing. */
export const ALL = 2 ** 30;
/**
 * Which layers slide, by `layer_types`; where the config has none, as `otherwise` says. Throws WEFT_CONFIG
 * for a kind of layer that there is not.
 */
export function slidingLayers(
  { layer_types: types }: Json,
  layers: number,
  otherwise: (layer: number) => boolean,
): boolean[] {
  if (types == null) return Array.from({ length: layers }, (_, l) => otherwise(l));
  const kinds = ["sliding_attention", "full_attention"];
  if (!Array.isArray(types) || types.length !== layers || !types.every((t) => kinds.includes(t)))
    fail("layer_types", `${layers} of ${kinds.join(", ")}`, types);
  return types.map((t) => t === "sliding_attention");
}
