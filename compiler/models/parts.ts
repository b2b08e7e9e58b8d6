/** What model families share: names, embedding and head, norms, attention and feed-forward blocks. */
import {
  type Attending,
  add,
  affine,
  columns,
  embed,
  fold,
  gelu,
  linear,
  mul,
  route,
  silu,
  tanh,
  type Value,
  weighed,
} from "../../ops/index.ts";
import type { RegionBuilder } from "../layers.ts";
import type { Sizes } from "./config.ts";
import { count, fail, only } from "./keys.ts";
import type { Json, Model, Names } from "./model.ts";

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
const times = (x: Value, scale: number): Value => (scale === 1 ? x : affine(x, { scale, shift: 0 }));

/** `scale` multiplies what the table has. */
export const embedding =
  (d: Sizes, scale = 1): Model["embed"] =>
  (b, domain) =>
    times(embed(b.weight("embed_tokens.weight", d.vocab, d.hiddenSize), domain), scale);
/** The sum of a token's row and of its position's. */
export const positioned =
  (d: Sizes): Model["embed"] =>
  (b, domain) => {
    const token = embed(b.weight("embed_tokens.weight", d.vocab, d.hiddenSize), domain);
    return add(token, embed(b.weight("embed_positions.weight", d.context, d.hiddenSize), domain, "pos"));
  };

/** A norm by its module: of whole rows, or of every head on its own. */
export type Norm = (b: RegionBuilder, x: Value, module: string) => Value;
export const rms =
  (d: Sizes, o: { readonly onePlus?: boolean } = {}): Norm =>
  (b, x, module) =>
    b.norm(x, `${module}.weight`, d.eps, o.onePlus);
export const layerNorm =
  (d: Sizes): Norm =>
  (b, x, module) =>
    b.layerNorm(x, module, d.eps);
export const perHead =
  (d: Sizes, o: { readonly onePlus?: boolean } = {}): Norm =>
  (b, x, module) =>
    b.headNorm(x, `${module}.weight`, d.headDim, d.eps, o.onePlus);

/** Logits of normed rows, multiplied by `scale`; `cap`: a bound on them, cap · tanh(logit / cap). */
export const head =
  (
    d: Sizes,
    o: { readonly norm?: Norm; readonly scale?: number; readonly cap?: number | null } = {},
  ): Model["head"] =>
  (b, h) => {
    const name = d.tied ? "embed_tokens.weight" : "lm_head.weight";
    const weight = b.weight(name, d.vocab, d.hiddenSize);
    const logits = times(linear((o.norm ?? rms(d))(b, h, "norm"), weight, "lm_head"), o.scale ?? 1);
    if (!o.cap) return logits;
    return affine(tanh(affine(logits, { scale: 1 / o.cap, shift: 0 })), { scale: o.cap, shift: 0 });
  };

/** What a layer adds to its hidden states: norms before and after, by their modules. */
export interface Block {
  readonly before?: string;
  readonly run: (b: RegionBuilder, x: Value, positions: number) => Value;
  readonly after?: string;
}
/**
 * A layer of blocks, each added to what entered it, times `multiplier`. `entry`: may adapters change what
 * enters? Not where a token's embedding is no row of the table: theirs would be of the table.
 */
export const residual =
  (
    blocks: readonly Block[],
    norm: Norm,
    o: { readonly multiplier?: number; readonly entry?: boolean } = {},
  ): Model["layer"] =>
  (b, entering, positions) =>
    blocks.reduce(
      (h, { before, run, after }) => {
        const x = before ? norm(b, h, before) : h;
        const y = run(b, x, positions);
        return add(h, times(after ? norm(b, y, after) : y, o.multiplier ?? 1));
      },
      o.entry === false ? entering : b.entry(entering),
    );

type Projection = "q" | "k" | "v" | "o";
export interface Attention {
  /** Which projections have one; default: none. */
  readonly bias?: boolean | Readonly<Partial<Record<Projection, boolean>>>;
  /** Of queries and keys, before they turn. */
  readonly norm?: Norm;
  readonly attending?: Attending;
}
/**
 * Grouped-query attention of x [rows, hidden] over the cache, with its four projections. Under S2FT v and o
 * share the heads' channels.
 */
export const selfAttention =
  (d: Sizes, o: Attention = {}): Block["run"] =>
  (b, x, positions) => {
    const { heads, kvHeads, headDim } = d;
    const has = (p: Projection): boolean => (typeof o.bias === "object" ? o.bias[p] : o.bias) ?? false;
    const coupled = (axis: "in" | "out") =>
      ({ group: "heads", axis, unit: headDim, shared: heads !== kvHeads }) as const;
    const q = b.linear(x, "self_attn.q_proj", heads * headDim, has("q"), { out: "heads" });
    const k = b.linear(x, "self_attn.k_proj", kvHeads * headDim, has("k"), { out: "kvHeads" });
    const v = b.linear(x, "self_attn.v_proj", kvHeads * headDim, has("v"), {
      out: "kvHeads",
      coupling: coupled("out"),
    });
    const normed = (y: Value, name: string): Value => o.norm?.(b, y, `self_attn.${name}`) ?? y;
    const y = b.attention(
      "self_attn",
      normed(q, "q_norm"),
      normed(k, "k_norm"),
      v,
      d,
      positions,
      o.attending,
    );
    return b.linear(y, "self_attn.o_proj", d.hiddenSize, has("o"), { in: "heads", coupling: coupled("in") });
  };

/** Modules of attention whose queries, keys and values are one projection. */
interface Fused {
  readonly module: string;
  readonly qkv: string;
  readonly out: string;
}
/**
 * The same with one projection for three, whose rows are those of queries, then keys, then values: under S2FT
 * the last are the heads' channels.
 */
export const fusedAttention =
  (
    d: Sizes,
    { module, qkv, out }: Fused,
    o: Omit<Attention, "norm" | "bias"> & { bias?: boolean } = {},
  ): Block["run"] =>
  (b, x, positions) => {
    const [wide, narrow] = [d.heads * d.headDim, d.kvHeads * d.headDim];
    const { bias = false } = o;
    const coupled = { group: "heads", unit: d.headDim, shared: d.heads !== d.kvHeads } as const;
    const values = { ...coupled, axis: "out", channels: narrow, at: [wide + narrow] } as const;
    const all = b.linear(x, `${module}.${qkv}`, wide + 2 * narrow, bias, { out: "qkv", coupling: values });
    const q = columns(all, 0, wide);
    const k = columns(all, wide, narrow);
    const v = columns(all, wide + narrow, narrow);
    const y = b.attention(module, q, k, v, d, positions, o.attending);
    return b.linear(y, `${module}.${out}`, d.hiddenSize, bias, {
      in: "heads",
      coupling: { ...coupled, axis: "in" },
    });
  };

/** down(act(gate(x)) · up(x)). Under S2FT the three share the feed-forward channels. */
export const gated =
  (act: (x: Value) => Value) =>
  (d: Sizes, bias = false): Block["run"] =>
  (b, x) => {
    const coupled = (axis: "in" | "out") => ({ group: "ffn", axis, unit: 1, shared: false }) as const;
    const wide = (module: string): Value =>
      b.linear(x, module, d.ffn, bias, { out: "ffn", coupling: coupled("out") });
    const gate = wide("mlp.gate_proj");
    return b.linear(mul(act(gate), wide("mlp.up_proj")), "mlp.down_proj", d.hiddenSize, bias, {
      in: "ffn",
      coupling: coupled("in"),
    });
  };
/** The same with gate and up in one projection, one after the other: a channel is a row of each. */
export const fusedSwiglu =
  (d: Sizes): Block["run"] =>
  (b, x) => {
    const coupled = { group: "ffn", unit: 1, shared: false } as const;
    const both = b.linear(x, "mlp.gate_up_proj", 2 * d.ffn, false, {
      out: "gateUp",
      coupling: { ...coupled, axis: "out", channels: d.ffn, at: [0, d.ffn] },
    });
    const y = mul(silu(columns(both, 0, d.ffn)), columns(both, d.ffn, d.ffn));
    return b.linear(y, "mlp.down_proj", d.hiddenSize, false, {
      in: "ffn",
      coupling: { ...coupled, axis: "in" },
    });
  };
/** down(act(up(x))), which older decoders call c_proj and c_fc. Under S2FT the two share the channels. */
export const ungated =
  (act: (x: Value) => Value) =>
  (d: Sizes, bias: boolean): Block["run"] =>
  (b, x) => {
    const coupled = (axis: "in" | "out") => ({ group: "ffn", axis, unit: 1, shared: false }) as const;
    const y = b.linear(x, "mlp.c_fc", d.ffn, bias, { out: "ffn", coupling: coupled("out") });
    return b.linear(act(y), "mlp.c_proj", d.hiddenSize, bias, { in: "ffn", coupling: coupled("in") });
  };
export const swiglu = gated(silu);
export const geglu = gated(gelu);

/** A mixture of gated experts: its modules, how many there are and how many a row chooses. */
export interface Mixture {
  readonly module: string;
  /** Of an expert, as it calls its three matrices. */
  readonly gate: string;
  readonly up: string;
  readonly down: string;
  readonly count: number;
  readonly top: number;
  /** Do the weights of those that are chosen sum to 1? */
  readonly normed: boolean;
}
/**
 * Σ over the experts that a row chooses of weight · down(silu(gate(x)) · up(x)), in the order of the row's
 * choice: `ffn` channels each, which under S2FT an expert's three matrices share.
 */
export const mixture =
  (d: Sizes, m: Mixture): Block["run"] =>
  (b, x) => {
    const { chosen, weights } = route(b.linear(x, `${m.module}.gate`, m.count, false), m.top, m.normed);
    const expert = (v: Value, name: string, ins: number, outs: number, axis: "in" | "out"): Value => {
      const coupling = { group: "experts", axis, unit: 1, shared: false } as const;
      return b.mixture(v, chosen, `${m.module}.experts.{e}.${name}`, m.count, ins, outs, { coupling });
    };
    const gate = expert(x, m.gate, d.hiddenSize, d.ffn, "out");
    const up = expert(x, m.up, d.hiddenSize, d.ffn, "out");
    const inner = weighed(mul(silu(gate), up), weights);
    return fold(expert(inner, m.down, d.ffn, d.hiddenSize, "in"), m.top);
  };
/** Keys that `mixtureSizes` reads, and a coefficient of what it refuses. */
export const mixtureKeys = [
  "num_experts",
  "num_local_experts",
  "num_experts_per_tok",
  "output_router_logits",
  "router_aux_loss_coef",
  "router_jitter_noise",
];
/**
 * How many experts there are, and what else the maths depends on; `top`: of how many a row chooses where the
 * config does not say. Throws WEFT_CONFIG where a row would choose more than there are.
 */
export function mixtureSizes(config: Json, { top, normed }: Pick<Mixture, "top" | "normed">) {
  // What these add to a loss, or to what a router is trained on, is not there.
  only(config, "output_router_logits", false);
  only(config, "router_jitter_noise", 0);
  // One number: which of the names a config has depends on the transformers that wrote it.
  const key = config.num_local_experts == null ? "num_experts" : "num_local_experts";
  const experts = count(config, key);
  only(config, "num_experts", experts);
  const chosen = count(config, "num_experts_per_tok", top);
  if (chosen > experts) fail("num_experts_per_tok", `at most ${key} (${experts})`, chosen);
  const constants: Model["constants"] = { experts: chosen, normed: Number(normed) };
  return { constants, sizes: { count: experts, top: chosen, normed } };
}

/** Blocks whose norms come before them, as Llama has them. */
export const preNorm = (attention: Block["run"], mlp: Block["run"]): readonly Block[] => [
  { before: "input_layernorm", run: attention },
  { before: "post_attention_layernorm", run: mlp },
];
/** Blocks with norms before and after, as Gemma has them. */
export const sandwich = (attention: Block["run"], mlp: Block["run"]): readonly Block[] => [
  { before: "input_layernorm", run: attention, after: "post_attention_layernorm" },
  { before: "pre_feedforward_layernorm", run: mlp, after: "post_feedforward_layernorm" },
];

/** A model's layers one by one: those that are the same are of a kind. */
export function byKind(layers: readonly Model["layer"][]): Pick<Model, "layer" | "perLayer"> {
  const kinds = [...new Set(layers)];
  return {
    layer: (b, h, positions, kind) => kinds[kind]!(b, h, positions, kind),
    perLayer: kinds.length > 1 ? { kind: layers.map((layer) => kinds.indexOf(layer)) } : {},
  };
}
/**
 * A decoder with norms before its blocks, whose feed-forward is a mixture; `perLayer`: what differs between
 * layers; `dense`: which layers have a feed-forward of so many channels in its place.
 */
export function mixtureDecoder(
  family: string,
  d: Sizes,
  attention: Block["run"],
  { constants, sizes }: ReturnType<typeof mixtureSizes>,
  modules: Pick<Mixture, "module" | "gate" | "up" | "down">,
  o: Partial<Pick<Model, "perLayer">> & {
    readonly dense?: { readonly layers: readonly boolean[]; readonly ffn: number };
  } = {},
): Model {
  const layerOf = (mlp: Block["run"]) => residual(preNorm(attention, mlp), rms(d));
  const ffn = o.dense?.layers.includes(true) ? o.dense.ffn : d.ffn;
  const [plain, mixed] = [layerOf(swiglu({ ...d, ffn })), layerOf(mixture(d, { ...modules, ...sizes }))];
  const layers = Array.from({ length: d.layers }, (_, l) => (o.dense?.layers[l] ? plain : mixed));
  const { layer, perLayer } = byKind(layers);
  return {
    family,
    ...d,
    ffn,
    constants,
    perLayer: { ...o.perLayer, ...perLayer },
    names: decoderNames,
    embed: embedding(d),
    layer,
    head: head(d),
  };
}
