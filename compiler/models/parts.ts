/** What model families share: names, embedding and head, attention and feed-forward blocks. */
import { add, embed, linear, mul, silu, type Value } from "../../ops/index.ts";
import type { RegionBuilder } from "../layers.ts";
import type { Sizes } from "./config.ts";
import type { Model, Names } from "./model.ts";

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
export const embedding =
  (d: Sizes): Model["embed"] =>
  (b, domain) =>
    embed(b.weight("embed_tokens.weight", d.vocab, d.hiddenSize), domain);
export const head =
  (d: Sizes): Model["head"] =>
  (b, h) => {
    const name = d.tied ? "embed_tokens.weight" : "lm_head.weight";
    const weight = b.weight(name, d.vocab, d.hiddenSize);
    return linear(b.norm(h, "norm.weight", d.eps), weight, "lm_head");
  };
/** A layer whose blocks read a norm, and are added to what entered them. */
export const preNorm =
  (
    d: Sizes,
    attention: (b: RegionBuilder, x: Value, positions: number) => Value,
    mlp: (b: RegionBuilder, x: Value) => Value,
  ): Model["layer"] =>
  (b, entering, positions) => {
    const h = b.entry(entering);
    const x = b.norm(h, "input_layernorm.weight", d.eps);
    const h2 = add(h, attention(b, x, positions));
    return add(h2, mlp(b, b.norm(h2, "post_attention_layernorm.weight", d.eps)));
  };

/**
 * Grouped-query attention of x [rows, hidden] over the cache, with its four projections. Under S2FT v and o
 * share the heads' channels. `headNorm`: every head of queries and keys has a norm before it turns.
 */
export function selfAttention(
  b: RegionBuilder,
  x: Value,
  positions: number,
  d: Sizes,
  o: { readonly bias: boolean; readonly headNorm?: boolean },
): Value {
  const { heads, kvHeads, headDim } = d;
  const { bias } = o;
  const shared = heads !== kvHeads;
  const q = b.linear(x, "self_attn.q_proj", heads * headDim, bias, { out: "heads" });
  const k = b.linear(x, "self_attn.k_proj", kvHeads * headDim, bias, { out: "kvHeads" });
  const v = b.linear(x, "self_attn.v_proj", kvHeads * headDim, bias, {
    out: "kvHeads",
    coupling: { group: "heads", axis: "out", unit: headDim, shared },
  });
  const normed = (y: Value, name: string): Value =>
    o.headNorm ? b.headNorm(y, `self_attn.${name}.weight`, headDim, d.eps) : y;
  const y = b.attention("self_attn", normed(q, "q_norm"), normed(k, "k_norm"), v, { ...d, positions });
  return b.linear(y, "self_attn.o_proj", d.hiddenSize, bias, {
    in: "heads",
    coupling: { group: "heads", axis: "in", unit: headDim, shared },
  });
}

/** SwiGLU: down(silu(gate(x)) · up(x)). Under S2FT the three share the feed-forward channels. */
export function swiglu(b: RegionBuilder, x: Value, d: Sizes, bias: boolean): Value {
  const wide = (module: string): Value =>
    b.linear(x, module, d.ffn, bias, {
      out: "ffn",
      coupling: { group: "ffn", axis: "out", unit: 1, shared: false },
    });
  const gate = wide("mlp.gate_proj");
  return b.linear(mul(silu(gate), wide("mlp.up_proj")), "mlp.down_proj", d.hiddenSize, bias, {
    in: "ffn",
    coupling: { group: "ffn", axis: "in", unit: 1, shared: false },
  });
}
