/** What model families share: names, embedding and head, attention and feed-forward blocks. */
import {
  type Attending,
  add,
  affine,
  embed,
  gelu,
  linear,
  mul,
  silu,
  tanh,
  type Value,
} from "../../ops/index.ts";
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
/** `scale` multiplies what the table has. */
export const embedding =
  (d: Sizes, scale = 1): Model["embed"] =>
  (b, domain) => {
    const rows = embed(b.weight("embed_tokens.weight", d.vocab, d.hiddenSize), domain);
    return scale === 1 ? rows : affine(rows, { scale, shift: 0 });
  };
/** `onePlus`: as its norm says; `cap`: a bound on logits, cap · tanh(logit / cap). */
export const head =
  (d: Sizes, o: { readonly onePlus?: boolean; readonly cap?: number | null } = {}): Model["head"] =>
  (b, h) => {
    const name = d.tied ? "embed_tokens.weight" : "lm_head.weight";
    const weight = b.weight(name, d.vocab, d.hiddenSize);
    const logits = linear(b.norm(h, "norm.weight", d.eps, o.onePlus), weight, "lm_head");
    if (!o.cap) return logits;
    return affine(tanh(affine(logits, { scale: 1 / o.cap, shift: 0 })), { scale: o.cap, shift: 0 });
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
  o: { readonly bias: boolean; readonly headNorm?: boolean; readonly attending?: Attending },
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
  const shape = { ...d, positions };
  const y = b.attention("self_attn", normed(q, "q_norm"), normed(k, "k_norm"), v, shape, o.attending);
  return b.linear(y, "self_attn.o_proj", d.hiddenSize, bias, {
    in: "heads",
    coupling: { group: "heads", axis: "in", unit: headDim, shared },
  });
}

/** down(act(gate(x)) · up(x)). Under S2FT the three share the feed-forward channels. */
const gated =
  (act: (x: Value) => Value) =>
  (b: RegionBuilder, x: Value, d: Sizes, bias: boolean): Value => {
    const wide = (module: string): Value =>
      b.linear(x, module, d.ffn, bias, {
        out: "ffn",
        coupling: { group: "ffn", axis: "out", unit: 1, shared: false },
      });
    const gate = wide("mlp.gate_proj");
    return b.linear(mul(act(gate), wide("mlp.up_proj")), "mlp.down_proj", d.hiddenSize, bias, {
      in: "ffn",
      coupling: { group: "ffn", axis: "in", unit: 1, shared: false },
    });
  };
export const swiglu = gated(silu);
export const geglu = gated(gelu);
