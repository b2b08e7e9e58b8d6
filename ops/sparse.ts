/**
 * Sparse deltas of matrices, a set of entries a slot: y += ΔW·x row by row (CSR), its transpose column by
 * column (CSC), and the gradient of the entries alone (a sampled product). Their places lie in one index
 * tensor of exact integers, laid out by `sparseIndex`.
 */
import { type Expr, type Ix, konst, row } from "./expr.ts";
import { defineOp, make1, type Type, type Value } from "./graph.ts";

type Rows = Type & { kind: "rows" };
type Factor = Type & { kind: "factor" };

/**
 * Where each part of the index tensor begins, for `entries` places in a matrix [outs, ins]; entries are in
 * row-major order.
 */
export function sparseIndex(entries: number, outs: number, ins: number) {
  const rowOf = 0;
  const colOf = entries;
  const rowStart = 2 * entries;
  /** Entries in column-major order. */
  const byColumn = rowStart + outs + 1;
  const columnStart = byColumn + entries;
  return { rowOf, colOf, rowStart, byColumn, columnStart, words: columnStart + ins + 1 };
}
const indexOf = (values: Value, outs: number, ins: number) =>
  sparseIndex((values.type as Factor).rows, outs, ins);

const productOp = defineOp({
  name: "sparse",
  kind: "point",
  remote: true,
  infer: ([x], a) => [
    { kind: "rows", domain: (x as Rows).domain, cols: Number(a.transposed ? a.ins : a.outs) },
  ],
  point: ({ ins: [x, values, index], attrs }) => {
    const at = indexOf(values!, Number(attrs.outs), Number(attrs.ins));
    const has: Ix = { ix: "rank", branch: (values!.type as Factor).branch, row };
    const sum: Expr = attrs.transposed
      ? {
          e: "sparse",
          x: x!,
          values: values!,
          index: index!,
          row,
          start: at.columnStart,
          order: at.byColumn,
          at: at.rowOf,
        }
      : {
          e: "sparse",
          x: x!,
          values: values!,
          index: index!,
          row,
          start: at.rowStart,
          order: null,
          at: at.colOf,
        };
    return { e: "if", ix: has, yes: sum, no: konst(0) };
  },
  grad: (node, [dy]) => {
    const [x, values, index] = node.ins as [Value, Value, Value];
    return [
      () => make1(productOp, [dy!, values, index], { ...node.attrs, transposed: true }),
      () => make1(sampledOp, [dy!, x, values, index], { ...node.attrs, of: String(values.node.attrs.name) }),
    ];
  },
});
/**
 * y [rows, outs]: y[t, o] = Σ over the slot's entries e in row o of values[e] · x[t, column of e], entries
 * ascending; 0 for slots without the branch.
 */
export const sparse = (x: Value, values: Value, index: Value, outs: number): Value =>
  make1(
    productOp,
    [x, values, index],
    { outs, ins: (x.type as Rows).cols, transposed: false },
    `sparse_${values.node.label}`,
  );

const sampledOp = defineOp({
  name: "sampled",
  kind: "kernel",
  infer: (_, a) => [{ kind: "grad", of: String(a.of) }],
  eval: (node, [dy, x, , index], ctx) => {
    const [outs, ins] = [Number(node.attrs.outs), Number(node.attrs.ins)];
    const values = node.ins[2]!.type as Factor;
    const at = indexOf(node.ins[2]!, outs, ins);
    const slot = ctx.meta("slot", null);
    const base = slot * (node.ins[3]!.type as Factor).cols;
    const out = new Float64Array(values.rows);
    for (let e = 0; e < ctx.slot(slot, values.branch).rank; e++)
      for (let t = 0; t < ctx.rows((node.ins[0]!.type as Rows).domain); t++)
        out[e] =
          out[e]! +
          dy![t * outs + index![base + at.rowOf + e]!]! * x![t * ins + index![base + at.colOf + e]!]!;
    return [out];
  },
});
