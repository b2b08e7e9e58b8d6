/**
 * Paged causal attention over a batch of rows of any sequences, with grouped-query heads, and its backward by
 * windows. The cache is the saved activation: keys and values are read from the pool. Order of every sum is
 * fixed by absolute position: 32-key tiles from position 0 (law 4).
 */
import {
  type Attrs,
  defineOp,
  type EvalCtx,
  make,
  make1,
  type Node,
  type Type,
  type Value,
} from "./graph.ts";
import { gatherSlice } from "./rows.ts";

type Rows = Type & { kind: "rows" };
type Kv = Type & { kind: "kv" };
/** Tokens per cache block, which is also the key tile of every attention kernel. */
export const KV_BLOCK = 32;

export function kvIndex(kv: Kv, block: number, part: 0 | 1, head: number, slot: number, d: number): number {
  return (((block * 2 + part) * kv.heads + head) * KV_BLOCK + slot) * kv.headDim + d;
}
/** Where a head's key (part 0) or value (1) of row t's position p begins. */
const at = (kv: Kv, ctx: EvalCtx, t: number, p: number, part: 0 | 1, head: number): number =>
  kvIndex(kv, ctx.meta("raw", ctx.meta("table", t) + Math.floor(p / KV_BLOCK)), part, head, p % KV_BLOCK, 0);

const kvWriteOp = defineOp({
  name: "kv_write",
  kind: "effect",
  infer: ([kv]) => [kv!],
  // dkv is the adjoint state of kv: what a row of k or v receives is what later queries accumulated at its
  // position.
  grad: (node, [dkv]) => {
    const { heads, headDim } = node.ins[0]!.type as Kv;
    const domain = (node.ins[1]!.type as Rows).domain;
    const dim = heads * headDim;
    return [
      null,
      () => gatherSlice(dkv!, "save_row", domain, 0, dim),
      () => gatherSlice(dkv!, "save_row", domain, dim, dim),
    ];
  },
  writes: ({ ins: [, k, v] }) => [
    { to: "kv", x: k!, part: 0 },
    { to: "kv", x: v!, part: 1 },
  ],
  eval: (node, [cache, ...parts], ctx) => {
    const kv = node.ins[0]!.type as Kv;
    const t = node.ins[1]!.type as Rows;
    const out = cache!.slice();
    for (let r = 0; r < ctx.rows(t.domain); r++)
      for (const part of [0, 1] as const)
        for (let head = 0; head < kv.heads; head++) {
          const from = r * t.cols + head * kv.headDim;
          const to = at(kv, ctx, r, ctx.meta("pos", r), part, head);
          out.set(parts[part]!.subarray(from, from + kv.headDim), to);
        }
    return [out];
  },
});
/**
 * Append rows of k and v [rows, kv heads × head_dim] to the paged cache at each row's position; returns the
 * cache's next state.
 */
export const kvWrite = (kv: Value, k: Value, v: Value): Value => make1(kvWriteOp, [kv, k, v], {}, "kv_write");

const attendOp = defineOp({
  name: "attend",
  kind: "kernel",
  edge: true,
  infer: ([q], a) => [q!, { kind: "rows", domain: (q as Rows).domain, cols: Number(a.heads) }],
  grad: (node, [dout]) => {
    const out = node.outs.map((type, index) => ({ node, index, type }));
    return [() => attendDq(node, out[0]!, out[1]!, dout!), () => attendDkv(node, out[0]!, out[1]!, dout!)];
  },
  eval: (node, [q, kv], ctx) => {
    const { heads, headDim, group, scoreOf, firstOf, kvt, rows, width } = shapeOf(node, ctx);
    const o = new Float64Array(rows * width);
    const lse = new Float64Array(rows * heads);
    for (let t = 0; t < rows; t++)
      for (let h = 0; h < heads; h++) {
        const keys = ctx.meta("pos", t) + 1;
        const [own, g] = [t * width + h * headDim, Math.floor(h / group)];
        const s = new Float64Array(keys);
        let m = -Infinity;
        for (let p = firstOf(t); p < keys; p++) {
          const key = at(kvt, ctx, t, p, 0, g);
          let dot = 0;
          for (let d = 0; d < headDim; d++) dot += q![own + d]! * kv![key + d]!;
          s[p] = scoreOf(dot).score;
          m = Math.max(m, s[p]!);
        }
        let l = 0;
        for (let p = firstOf(t); p < keys; p++) l += Math.exp(s[p]! - m);
        for (let p = firstOf(t); p < keys; p++) {
          const [weight, value] = [Math.exp(s[p]! - m) / l, at(kvt, ctx, t, p, 1, g)];
          for (let d = 0; d < headDim; d++) o[own + d] = o[own + d]! + weight * kv![value + d]!;
        }
        lse[t * heads + h] = m + Math.log(l);
      }
    return [o, lse];
  },
});
/** How models attend, beside the plain way. */
export interface Attending {
  /** What multiplies q·k. Default: 1/√head_dim. */
  readonly scale?: number;
  /** A bound on scores: cap · tanh(score / cap). Default: none. */
  readonly softcap?: number;
  /** Each layer says how many positions a row sees, its own the last. Default: all. */
  readonly window?: boolean;
}
/**
 * o [rows, heads × head_dim] and lse [rows, heads] of softmax(scale · q·kᵀ)·v over positions 0..pos[row], or
 * the last of them.
 */
export function attend(q: Value, kv: Value, heads: number, o: Attending = {}): { o: Value; lse: Value } {
  const attrs: Attrs = {
    heads,
    scale: o.scale ?? 1 / Math.sqrt((kv.type as Kv).headDim),
    ...(o.softcap !== undefined && { softcap: o.softcap }),
    ...(o.window && { window: true }),
  };
  const [out, lse] = make(attendOp, [q, kv], attrs, "attend");
  return { o: out!, lse: lse! };
}

function shapeOf(node: Node, ctx: EvalCtx) {
  const kvt = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  return {
    heads,
    headDim: kvt.headDim,
    group: heads / kvt.heads,
    /** Of a product of q and k: its score, and the derivative of that. */
    scoreOf: (dot: number): { score: number; slope: number } => {
      const [scale, cap] = [Number(node.attrs.scale), Number(node.attrs.softcap)];
      if (node.attrs.softcap === undefined) return { score: dot * scale, slope: scale };
      const z = Math.tanh((dot * scale) / cap);
      return { score: cap * z, slope: scale * (1 - z * z) };
    },
    /** The first position that a row sees. */
    firstOf: (t: number): number =>
      node.attrs.window ? Math.max(0, ctx.meta("pos", t) + 1 - ctx.ofLayer("window")) : 0,
    kvt,
    rows: ctx.rows((node.ins[0]!.type as Rows).domain),
    width: heads * kvt.headDim,
  };
}

/** Probabilities and score gradients of one (row, head), in f64. */
function backwardRow(
  node: Node,
  ins: readonly Float64Array[],
  ctx: EvalCtx,
  t: number,
  h: number,
  visit: (p: number, prob: number, ds: number) => void,
): void {
  const { heads, headDim, group, scoreOf, firstOf, kvt, width } = shapeOf(node, ctx);
  const [q, kv, o, lse, dout] = ins;
  const g = Math.floor(h / group);
  let dsum = 0;
  for (let d = 0; d < headDim; d++)
    dsum += dout![t * width + h * headDim + d]! * o![t * width + h * headDim + d]!;
  for (let p = firstOf(t); p <= ctx.meta("pos", t); p++) {
    const [key, value] = [at(kvt, ctx, t, p, 0, g), at(kvt, ctx, t, p, 1, g)];
    let s = 0;
    let dp = 0;
    for (let d = 0; d < headDim; d++) {
      s += q![t * width + h * headDim + d]! * kv![key + d]!;
      dp += dout![t * width + h * headDim + d]! * kv![value + d]!;
    }
    const { score, slope } = scoreOf(s);
    const prob = Math.exp(score - lse![t * heads + h]!);
    visit(p, prob, prob * (dp - dsum) * slope);
  }
}

const attendDqOp = defineOp({
  name: "attend_dq",
  kind: "kernel",
  infer: ([q]) => [q!],
  eval: (node, ins, ctx) => {
    const { heads, headDim, group, kvt, rows, width } = shapeOf(node, ctx);
    const dq = new Float64Array(rows * width);
    for (let t = 0; t < rows; t++)
      for (let h = 0; h < heads; h++)
        backwardRow(node, ins, ctx, t, h, (p, _, ds) => {
          const key = at(kvt, ctx, t, p, 0, Math.floor(h / group));
          for (let d = 0; d < headDim; d++) {
            const i = t * width + h * headDim + d;
            dq[i] = dq[i]! + ds * ins[1]![key + d]!;
          }
        });
    return [dq];
  },
});
const attendDq = (fwd: Node, o: Value, lse: Value, dout: Value): Value =>
  make1(attendDqOp, [fwd.ins[0]!, fwd.ins[1]!, o, lse, dout], fwd.attrs, "attend_dq");

const attendDkvOp = defineOp({
  name: "attend_dkv",
  kind: "kernel",
  infer: ([, kv]) => [{ kind: "field", cols: 2 * (kv as Kv).heads * (kv as Kv).headDim }],
  eval: (node, ins, ctx) => {
    const { heads, headDim, group, kvt, rows, width } = shapeOf(node, ctx);
    const cols = 2 * kvt.heads * headDim;
    const out = ins[5] ? Float64Array.from(ins[5]) : new Float64Array(cols * 4096);
    for (let t = 0; t < rows; t++)
      for (let h = 0; h < heads; h++) {
        const base = ctx.meta("save_row", t) - ctx.meta("pos", t);
        const g = Math.floor(h / group);
        backwardRow(node, ins, ctx, t, h, (p, prob, ds) => {
          for (let d = 0; d < headDim; d++) {
            const k = (base + p) * cols + g * headDim + d;
            const v = k + kvt.heads * headDim;
            out[k] = out[k]! + ds * ins[0]![t * width + h * headDim + d]!;
            out[v] = out[v]! + prob * ins[4]![t * width + h * headDim + d]!;
          }
        });
      }
    return [out];
  },
});
/**
 * dk | dv of every key position, accumulated over the windows of the sequence: the adjoint of a state is a
 * state that accumulates.
 */
const attendDkv = (fwd: Node, o: Value, lse: Value, dout: Value): Value =>
  make1(attendDkvOp, [fwd.ins[0]!, fwd.ins[1]!, o, lse, dout], fwd.attrs, "attend_dkv");
