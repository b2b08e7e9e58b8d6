/**
 * Heads: columns of a row in groups of one width, each on its own. The norm of a head is made of its product
 * with itself, of a number a head, and of a gain that all heads share.
 */
import { add, affine, rsqrt } from "./elementwise.ts";
import { call, col, type Expr, ixBin, load, row } from "./expr.ts";
import { defineOp, make1, type Type, type Value } from "./graph.ts";

type Rows = Type & { kind: "rows" };
const colsOf = (v: Value): number => (v.type as Rows).cols;
const rows = (cols: number): Type => ({ kind: "rows", domain: "T", cols });
const times = (a: Expr, b: Expr): Expr => call("pin", call("mul", a, b));

const dotOp = defineOp({
  name: "head_dot",
  kind: "point",
  remote: true,
  infer: ([a], { width }) => [{ ...(a as Rows), cols: (a as Rows).cols / Number(width) }],
  point: ({ ins: [a, b], attrs }) => {
    const n = Number(attrs.width);
    return { e: "dot", a: a!, b: b!, row, from: ixBin("mul", col, n), step: 1, n };
  },
  grad: ({ ins: [a, b] }, [dout]) => [() => headScale(b!, dout!), () => headScale(a!, dout!)],
  samples: [
    { ins: [rows(30), rows(30)], attrs: { width: 6 } },
    { ins: [rows(33), rows(33)], attrs: { width: 11 } },
  ],
});
/** Σ over each head of a · b: [rows, heads · width] twice → [rows, heads]. */
export const headDot = (a: Value, b: Value, width: number): Value => make1(dotOp, [a, b], { width });

const scaleOp = defineOp({
  name: "head_scale",
  kind: "point",
  remote: true,
  infer: ([x]) => [x!],
  point: ({ ins: [x, s], at }) => times(at(0), load(s!, row, ixBin("div", col, colsOf(x!) / colsOf(s!)))),
  grad: ({ ins: [x, s] }, [dout]) => [
    () => headScale(dout!, s!),
    () => headDot(dout!, x!, colsOf(x!) / colsOf(s!)),
  ],
  samples: [{ ins: [rows(30), rows(5)] }],
});
/** Each head of x [rows, heads · width] times its number in s [rows, heads]. */
export const headScale = (x: Value, s: Value): Value => make1(scaleOp, [x, s]);

const acrossOp = defineOp({
  name: "heads_dot",
  constant: true,
  kind: "point",
  remote: true,
  infer: ([a], { width }) => [{ ...(a as Rows), cols: Number(width) }],
  point: ({ ins: [a, b], attrs }) => {
    const step = Number(attrs.width);
    return { e: "dot", a: a!, b: b!, row, from: col, step, n: colsOf(a!) / step };
  },
  samples: [{ ins: [rows(30), rows(30)], attrs: { width: 6 } }],
});
const gainOp = defineOp({
  name: "head_gain",
  kind: "point",
  infer: ([x]) => [x!],
  point: ({ ins: [, gain], at }) => {
    const { n } = gain!.type as Type & { kind: "vector" };
    return times(at(0), at(1, { col: ixBin("mod", col, n) }));
  },
  grad: ({ ins: [x, gain] }, [dout]) => [
    () => headGain(dout!, gain!),
    // Σ over the heads here, over the rows where the vector's broadcast is undone.
    () => make1(acrossOp, [dout!, x!], { width: (gain!.type as Type & { kind: "vector" }).n }),
  ],
  samples: [{ ins: [rows(30), { kind: "vector", n: 6 }] }],
});
/** Every head of x times one gain [width]. */
export const headGain = (x: Value, gain: Value): Value => make1(gainOp, [x, gain]);

/** RMSNorm of each head on its own: x · rsqrt(mean(x²) + eps) · gain [width], or · (1 + gain). */
export function headNorm(x: Value, gain: Value, eps: number, onePlus = false): Value {
  const { n } = gain.type as Type & { kind: "vector" };
  const rstd = rsqrt(affine(headDot(x, x, n), { scale: 1 / n, shift: eps }));
  const unit = headScale(x, rstd);
  const gained = headGain(unit, gain);
  return onePlus ? add(gained, unit) : gained;
}
