/** The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Config keys are Hugging Face's own. */
import { add, mul, silu } from "../../ops/index.ts";
import { WeftError } from "../../runtime/bundle.ts";
import type { RegionBuilder } from "../layers.ts";
import type { Model } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** Keys that never change the maths of a forward pass here. */
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
]);
const read = new Set([
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
  "tie_word_embeddings",
  "attention_bias",
  "mlp_bias",
  "hidden_act",
]);

function fail(key: string, expected: string, found: unknown): never {
  throw new WeftError({
    code: "WEFT_CONFIG",
    where: `config.json: ${key}`,
    expected,
    found: JSON.stringify(found) ?? "nothing",
  });
}
function count(config: Json, key: string, fallback?: number): number {
  const v = config[key] ?? fallback;
  if (typeof v !== "number" || !Number.isInteger(v) || v < 1) fail(key, "a positive integer", v);
  return v;
}

/** Inverse frequencies [headDim/2]; `llama3` scaling as in transformers' modeling_rope_utils. */
function inverseFrequencies(config: Json, headDim: number): number[] {
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

/** Check a Llama config.json; throws WEFT_CONFIG naming the key for anything that would change the maths and is not supported. */
export function llama(config: Json): Model {
  for (const key of Object.keys(config)) {
    if (!harmless.has(key) && !read.has(key) && config[key] !== null && config[key] !== false)
      fail(key, "a key this compiler knows; an unknown one may change the maths", config[key]);
  }
  if (config.hidden_act !== undefined && config.hidden_act !== "silu")
    fail("hidden_act", "silu", config.hidden_act);
  if (config.rope_interleaved === true) fail("rope_interleaved", "false", true);
  if (config.pretraining_tp !== undefined && config.pretraining_tp !== 1)
    fail("pretraining_tp", "1", config.pretraining_tp);
  const hiddenSize = count(config, "hidden_size");
  const heads = count(config, "num_attention_heads");
  const kvHeads = count(config, "num_key_value_heads", heads);
  const headDim = count(config, "head_dim", hiddenSize / heads);
  const ffn = count(config, "intermediate_size");
  if (heads % kvHeads) fail("num_key_value_heads", `a divisor of num_attention_heads (${heads})`, kvHeads);
  if (headDim % 2) fail("head_dim", "an even number", headDim);
  const eps = (config.rms_norm_eps ?? 1e-6) as number;
  if (typeof eps !== "number") fail("rms_norm_eps", "a number", eps);
  const attentionBias = config.attention_bias === true;
  const mlpBias = config.mlp_bias === true;
  return {
    family: "llama",
    hiddenSize,
    layers: count(config, "num_hidden_layers"),
    heads,
    kvHeads,
    headDim,
    ffn,
    vocab: count(config, "vocab_size"),
    context: count(config, "max_position_embeddings", 2048),
    tied: config.tie_word_embeddings === true,
    eps,
    inverseFrequencies: inverseFrequencies(config, headDim),
    layer: (b: RegionBuilder, entering, positions) => {
      const shared = heads !== kvHeads;
      const h = b.entry(entering);
      const x = b.norm(h, "input_layernorm.weight", eps);
      const q = b.linear(x, "self_attn.q_proj", heads * headDim, attentionBias, { out: "heads" });
      const k = b.linear(x, "self_attn.k_proj", kvHeads * headDim, attentionBias, { out: "kvHeads" });
      const v = b.linear(x, "self_attn.v_proj", kvHeads * headDim, attentionBias, {
        out: "kvHeads",
        coupling: { group: "heads", axis: "out", unit: headDim, shared },
      });
      const o = b.attention(q, k, v, { heads, kvHeads, headDim, positions });
      const h2 = add(
        h,
        b.linear(o, "self_attn.o_proj", hiddenSize, attentionBias, {
          in: "heads",
          coupling: { group: "heads", axis: "in", unit: headDim, shared },
        }),
      );
      const x2 = b.norm(h2, "post_attention_layernorm.weight", eps);
      const gate = b.linear(x2, "mlp.gate_proj", ffn, mlpBias, {
        out: "ffn",
        coupling: { group: "ffn", axis: "out", unit: 1, shared: false },
      });
      const up = b.linear(x2, "mlp.up_proj", ffn, mlpBias, {
        out: "ffn",
        coupling: { group: "ffn", axis: "out", unit: 1, shared: false },
      });
      return add(
        h2,
        b.linear(mul(silu(gate), up), "mlp.down_proj", hiddenSize, mlpBias, {
          in: "ffn",
          coupling: { group: "ffn", axis: "in", unit: 1, shared: false },
        }),
      );
    },
    checkpointName: (name, l) =>
      l !== null ? `model.layers.${l}.${name}` : name === "lm_head.weight" ? name : `model.${name}`,
  };
}
