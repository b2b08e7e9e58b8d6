/**
 * How families read a config.json: which keys there may be, a decoder's sizes, what layers see. Keys are
 * Hugging Face's own.
 */
import { WeftError } from "../../runtime/bundle.ts";
import type { Json, Model } from "./model.ts";
import { ropeOf } from "./rope.ts";

/** Keys that never change the maths of a forward pass. */
const harmless = new Set([
  "_name_or_path",
  "architectures",
  "attention_dropout",
  "attn_pdrop",
  "embd_pdrop",
  "resid_pdrop",
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "unk_token_id",
  "initializer_range",
  "model_type",
  "torch_dtype",
  "dtype",
  "transformers_version",
  "use_cache",
  "pretraining_tp",
  "is_llama_config",
  "rope_interleaved",
  "transformers.js_config",
  "auto_map",
  "_attn_implementation_autoset",
  "name_or_path",
  "return_dict",
  "output_hidden_states",
  "output_attentions",
  "torchscript",
  "chunk_size_feed_forward",
  "is_encoder_decoder",
  "is_decoder",
  "add_cross_attention",
  "cross_attention_hidden_size",
  "tie_encoder_decoder",
  "id2label",
  "label2id",
  "problem_type",
  "task_specific_params",
  "tokenizer_class",
  "prefix",
  "finetuning_task",
  "pruned_heads",
  "sep_token_id",
  "decoder_start_token_id",
  "use_return_dict",
  "max_window_layers",
  "max_sequence_length",
  "unsloth_fixed",
  "unsloth_version",
  // How some program generates, which older transformers kept here.
  "max_length",
  "min_length",
  "do_sample",
  "early_stopping",
  "num_beams",
  "temperature",
  "top_k",
  "top_p",
  "typical_p",
  "repetition_penalty",
  "length_penalty",
  "no_repeat_ngram_size",
  "num_return_sequences",
]);

export function fail(key: string, expected: string, found: unknown): never {
  throw new WeftError({
    code: "WEFT_CONFIG",
    where: `config.json: ${key}`,
    expected,
    found: JSON.stringify(found) ?? "nothing",
  });
}
/** Throws WEFT_CONFIG for a key that is set and that neither the family reads nor is known to be harmless. */
export function checkKeys(config: Json, read: readonly string[]): void {
  const known = new Set(read);
  for (const [key, v] of Object.entries(config))
    if (!harmless.has(key) && !known.has(key) && v !== null && v !== false)
      fail(key, "a key this compiler knows; an unknown one may change the maths", v);
}
export function count(config: Json, key: string, fallback?: number): number {
  const v = config[key] ?? fallback;
  if (typeof v !== "number" || !Number.isInteger(v) || v < 1) fail(key, "a positive integer", v);
  return v;
}

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
/** Throws WEFT_CONFIG where a key is set to anything but the one thing that the family does. */
export function only(config: Json, key: string, value: string | number | boolean): void {
  const found = config[key];
  if (found != null && found !== value) fail(key, String(value), found);
}
/** Throws WEFT_CONFIG where some layers do not attend to all that came before. */
export function allAttend({ layer_types: types }: Json): void {
  if (types != null && !(Array.isArray(types) && types.every((t) => t === "full_attention")))
    fail("layer_types", "full_attention in every layer", types);
}
/** A number above 0, or null where the config says that there is none. */
export function above0OrNull(config: Json, key: string, fallback: number | null): number | null {
  const x = config[key] === undefined ? fallback : config[key];
  if (x !== null && !(typeof x === "number" && x > 0)) fail(key, "a number above 0, or null", x);
  return x as number | null;
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
