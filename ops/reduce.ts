/**
 * Reductions along the columns of a row. One kernel holds a row's reductions and every pointwise value that
 * needs them.
 */

import { affine, exp, fma, mul, rsqrt, sub } from "./elementwise.ts";
import { call, konst } from "./expr.ts";
import { type Domain, defineOp, type Graph, make1, type Type, type Value } from "./graph.ts";

const rowScalar = (ins: readonly Type[]): Type[] => {
  const t = ins[0]!;
  if (t.kind !== "rows") throw new Error("row reduction of something that has no rows");
  return [{ kind: "rows", domain: t.domain, cols: 1 }];
};
const spread = defineOp({
  name: "spread",
  kind: "point",
  infer: (ins, a) => [{ ...(ins[0] as Type & { kind: "rows" }), cols: Number(a.cols) }],
  point: ({ at }) => at(0),
});
const rowSumOp = defineOp({
  name: "row_sum",
  kind: "reduce",
  reduce: "sum",
  infer: rowScalar,
  grad: (node, [dout]) => [
    () => make1(spread, [dout!], { cols: (node.ins[0]!.type as Type & { kind: "rows" }).cols }),
  ],
  samples: [{ ins: [{ kind: "rows", domain: "T", cols: 37 }] }],
});
const rowMaxOp = defineOp({
  name: "row_max",
  constant: true,
  kind: "reduce",
  reduce: "max",
  infer: rowScalar,
  samples: [{ ins: [{ kind: "rows", domain: "T", cols: 37 }] }],
});
export const rowSum = (x: Value): Value => make1(rowSumOp, [x]);
export const rowMax = (x: Value): Value => make1(rowMaxOp, [x]);
/** Row scalars repeated over `cols` columns. */
export const spreadTo = (x: Value, cols: number): Value => make1(spread, [x], { cols });

/**
 * RMSNorm: y = x · rsqrt(mean(x²) + eps) · gain, or · (1 + gain). Gradients follow from its parts: what
 * backward keeps is x and one scalar a row.
 */
export function rmsNorm(x: Value, gain: Value, eps: number, onePlus = false): Value {
  const cols = (x.type as Type & { kind: "rows" }).cols;
  const rstd = rsqrt(affine(rowSum(mul(x, x)), { scale: 1 / cols, shift: eps }));
  const unit = mul(x, rstd);
  return onePlus ? fma(unit, gain, unit) : mul(unit, gain);
}
/** LayerNorm: y = (x − mean) · rsqrt(variance + eps) · gain + bias. */
export function layerNorm(x: Value, gain: Value, bias: Value, eps: number): Value {
  const scale = 1 / (x.type as Type & { kind: "rows" }).cols;
  const centred = sub(x, affine(rowSum(x), { scale, shift: 0 }));
  const rstd = rsqrt(affine(rowSum(mul(centred, centred)), { scale, shift: eps }));
  return fma(mul(centred, rstd), gain, bias);
}

const softmaxOp = defineOp({
  name: "softmax",
  kind: "point",
  infer: ([x]) => [x!],
  // Any number in place of the largest gives the same: no gradient passes through it.
  point: ({ at }) => call("div", call("exp", call("sub", at(0), at(1))), at(2)),
  grad: (node, [dp]) => {
    const p: Value = { node, index: 0, type: node.outs[0]! };
    return [() => mul(p, sub(dp!, rowSum(mul(dp!, p)))), null, null];
  },
});
/** exp(x) / Σ exp(x), over the columns of a row. */
export function softmax(x: Value): Value {
  const max = rowMax(x);
  return make1(softmaxOp, [x, max, rowSum(exp(sub(x, max)))]);
}

const zerosOp = defineOp({
  name: "zeros",
  kind: "point",
  infer: (_, a) => [{ kind: "rows", domain: a.domain as Domain, cols: Number(a.cols) }],
  point: () => konst(0),
});
/** Zeros [domain, cols]. */
export const zeros = (graph: Graph, domain: Domain, cols: number): Value =>
  graph.make1(zerosOp, [], { domain, cols });
