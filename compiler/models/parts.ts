/**
 * What model families share: how a config.json is read, rotary frequencies, attention and feed-forward
 * blocks.
 */
import { mul, silu, type Value } from "../../ops/index.ts";
import { WeftError } from "../../runtime/bundle.ts";
import type { RegionBuilder } from "../layers.ts";
import type { Json, Names } from "./model.ts";

/** Keys that never change the maths of a forward pass. */
const harmless = new Set([
  "_name_or_path",
  "architectures",
  "attention_dropout",
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
  "layer_types",
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

/** Inverse frequencies [headDim/2]; `llama3` scaling as in transformers' modeling_rope_utils. */
export function inverseFrequencies(config: Json, headDim: number): number[] {
  const params = (config.rope_parameters ?? {}) as Json;
  const scaling = (config.rope_scaling ?? (config.rope_parameters ? params : null)) as Json | null;
  const theta = (params.rope_theta ?? config.rope_theta ?? 10000) as number;
  if (typeof theta !== "number" || !(theta > 0)) fail("rope_theta", "a positive number", theta);
  const base = Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
  const type = scaling ? (scaling.rope_type ?? scaling.type ?? "default") : "default";
  if (type === "default") return base;
  if (type !== "llama3") fail("rope_scaling.rope_type", "default or llama3", type);
  const [factor, low, high, original] = [
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ].map((k) => {
    const v = scaling![k];
    if (typeof v !== "number") fail(`rope_scaling.${k}`, "a number", v);
    return v;
  }) as [number, number, number, number];
  return base.map((f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < original / high) return f;
    if (wavelength > original / low) return f / factor;
    const smooth = (original / wavelength - low) / (high - low);
    return ((1 - smooth) * f) / factor + smooth * f;
  });
}

/** A decoder's names, as Hugging Face's families have them. */
export const decoderNames: Names = {
  layer: "model.layers.{l}.",
  outer: {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
  },
  embedding: "embed_tokens.weight",
};

export interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}
/** Counts of heads, checked: query heads share key heads evenly, and a head turns in pairs. */
export function headsOf(config: Json, hiddenSize: number): Heads {
  const heads = count(config, "num_attention_heads");
  const kvHeads = count(config, "num_key_value_heads", heads);
  const headDim = count(config, "head_dim", hiddenSize / heads);
  if (heads % kvHeads) fail("num_key_value_heads", `a divisor of num_attention_heads (${heads})`, kvHeads);
  if (headDim % 2) fail("head_dim", "an even number", headDim);
  return { heads, kvHeads, headDim };
}

/**
 * Grouped-query attention of x [rows, hidden] over the cache, with its four projections. Under S2FT v and o
 * share the heads' channels.
 */
export function selfAttention(
  b: RegionBuilder,
  x: Value,
  o: Heads & { readonly hiddenSize: number; readonly positions: number; readonly bias: boolean },
): Value {
  const { heads, kvHeads, headDim, bias } = o;
  const shared = heads !== kvHeads;
  const q = b.linear(x, "self_attn.q_proj", heads * headDim, bias, { out: "heads" });
  const k = b.linear(x, "self_attn.k_proj", kvHeads * headDim, bias, { out: "kvHeads" });
  const v = b.linear(x, "self_attn.v_proj", kvHeads * headDim, bias, {
    out: "kvHeads",
    coupling: { group: "heads", axis: "out", unit: headDim, shared },
  });
  return b.linear(b.attention("self_attn", q, k, v, o), "self_attn.o_proj", o.hiddenSize, bias, {
    in: "heads",
    coupling: { group: "heads", axis: "in", unit: headDim, shared },
  });
}

/** SwiGLU: down(silu(gate(x)) · up(x)). Under S2FT the three share the feed-forward channels. */
export function swiglu(
  b: RegionBuilder,
  x: Value,
  o: { readonly ffn: number; readonly hiddenSize: number; readonly bias: boolean },
): Value {
  const wide = (module: string): Value =>
    b.linear(x, module, o.ffn, o.bias, {
      out: "ffn",
      coupling: { group: "ffn", axis: "out", unit: 1, shared: false },
    });
  const gate = wide("mlp.gate_proj");
  return b.linear(mul(silu(gate), wide("mlp.up_proj")), "mlp.down_proj", o.hiddenSize, o.bias, {
    in: "ffn",
    coupling: { group: "ffn", axis: "in", unit: 1, shared: false },
  });
}
