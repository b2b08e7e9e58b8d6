/**
 * The Gemma 2 family: norms before and after each block, with gains of 1 + w; bounded scores and logits;
 * layers that see a window take turns with layers that see all.
 */
import { add, type Value } from "../../ops/index.ts";
import { decoderSizes, fail, only } from "./config.ts";
import { decoderConfig, decoderModules, named } from "./gguf.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, geglu, head, selfAttention } from "./parts.ts";

const own = [
  "attention_bias",
  "attn_logit_softcapping",
  "cache_implementation",
  "final_logit_softcapping",
  // Older than hidden_activation, which is what counts.
  "hidden_act",
  "hidden_activation",
  "layer_types",
  "query_pre_attn_scalar",
  "sliding_window",
  "use_bidirectional_attention",
];
/** What transformers takes for a key that is not there; null is none. */
const absent = { head_dim: 256, tie_word_embeddings: true };
/** Larger than any context: a window that ends nothing. */
const ALL = 2 ** 30;

/** A number above 0, or null where the config says that there is none. */
function number(config: Json, key: string, fallback: number): number | null {
  const x = config[key] === undefined ? fallback : config[key];
  if (x !== null && !(typeof x === "number" && x > 0)) fail(key, "a number above 0, or null", x);
  return x as number | null;
}
/** Positions that each layer sees. Throws WEFT_CONFIG for a kind of layer that there is not. */
function windows(config: Json, layers: number): number[] {
  const window = number(config, "sliding_window", 4096) ?? ALL;
  const kinds: Readonly<Record<string, number>> = { sliding_attention: window, full_attention: ALL };
  const types = (config.layer_types ??
    Array.from({ length: layers }, (_, l) => (l % 2 ? "full_attention" : "sliding_attention"))) as string[];
  if (!Array.isArray(types) || types.length !== layers || !types.every((t) => Object.hasOwn(kinds, t)))
    fail("layer_types", `${layers} of ${Object.keys(kinds).join(", ")}`, types);
  return types.map((t) => kinds[t]!);
}

function read(config: Json): Model {
  const d = decoderSizes(config, own, absent);
  only(config, "hidden_activation", "gelu_pytorch_tanh");
  only(config, "attention_bias", false);
  only(config, "use_bidirectional_attention", false);
  const scale = (number(config, "query_pre_attn_scalar", 256) ?? d.headDim) ** -0.5;
  const softcap = number(config, "attn_logit_softcapping", 50);
  const cap = number(config, "final_logit_softcapping", 30);
  const attending = { scale, window: true, ...(softcap && { softcap }) };
  return {
    family: "gemma2",
    ...d,
    constants: { scale, ...(softcap && { softcap }), ...(cap && { cap }) },
    perLayer: { window: windows(config, d.layers) },
    names: decoderNames,
    embed: embedding(d, Math.fround(Math.sqrt(d.hiddenSize))),
    // No adapter changes what enters: its tokens would be of the table, before they are scaled.
    layer: (b, h, positions) => {
      const norm = (x: Value, name: string): Value => b.norm(x, `${name}_layernorm.weight`, d.eps, true);
      const seen = selfAttention(b, norm(h, "input"), positions, d, { bias: false, attending });
      const h2 = add(h, norm(seen, "post_attention"));
      return add(h2, norm(geglu(b, norm(h2, "pre_feedforward"), d, false), "post_feedforward"));
    },
    head: head(d, { onePlus: true, cap }),
  };
}

export const gemma2: Family = {
  read,
  gguf: {
    architecture: "gemma2",
    config: (g) => {
      const sizes = decoderConfig(g);
      const heads = g.number("embedding_length") / g.number("attention.head_count");
      return {
        model_type: "gemma2",
        ...sizes,
        hidden_activation: "gelu_pytorch_tanh",
        // Not in the file: as llama.cpp has it, the largest one scales by another width.
        query_pre_attn_scalar: g.number("block_count") === 46 ? heads : sizes.head_dim,
        attn_logit_softcapping: g.number("attn_logit_softcapping", 50),
        final_logit_softcapping: g.number("final_logit_softcapping", 30),
        sliding_window: g.number("attention.sliding_window", 4096),
      };
    },
    name: named({
      ...decoderModules,
      "model.layers.{l}.post_attention_layernorm": "blk.{l}.post_attention_norm",
      "model.layers.{l}.pre_feedforward_layernorm": "blk.{l}.ffn_norm",
      "model.layers.{l}.post_feedforward_layernorm": "blk.{l}.post_ffw_norm",
    }),
    // The file has gains whole.
    restore: (name, rows, from, to) =>
      name.endsWith("norm.weight") ? rows(from, to).map((gain) => gain - 1) : rows(from, to),
  },
};
