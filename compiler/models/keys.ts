/** How families read a config.json: which keys there may be, and what a key may say. */
import { WeftError } from "../../runtime/bundle.ts";
import type { Json } from "./model.ts";

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
/** Throws WEFT_CONFIG where a key is set to anything but the one thing that the family does. */
export function only(config: Json, key: string, value: string | number | boolean): void {
  const found = config[key];
  if (found != null && found !== value) fail(key, String(value), found);
}
/** A number above 0, or null where the config says that there is none. */
export function above0OrNull(config: Json, key: string, fallback: number | null): number | null {
  const x = config[key] === undefined ? fallback : config[key];
  if (x !== null && !(typeof x === "number" && x > 0)) fail(key, "a number above 0, or null", x);
  return x as number | null;
}
