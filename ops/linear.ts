/**
 * Matrix products with a base matrix W [n, k]: y = x·Wᵀ (`linear`), dx = dy·W (`linear_t`, several pairs in
 * one sum), dW = dyᵀ·x (`outer`).
 */
import { defineOp, make1, type Type, type Value } from "./graph.ts";

type Rows = Type & { kind: "rows" };
type Weight = Type & { kind: "weight" };

const linearOp = defineOp({
  name: "linear",
  kind: "kernel",
  infer: ([x, w]) => {
    const [xr, wt] = [x as Rows, w as Weight];
    if (xr.cols !== wt.k) throw new Error(`linear: x has ${xr.cols} columns, W expects ${wt.k}`);
    return [{ kind: "rows", domain: xr.domain, cols: wt.n }];
  },
  grad: (node, [dy]) => [() => linearT([[dy!, node.ins[1]!]]), () => outer(dy!, node.ins[0]!, node.ins[1]!)],
  eval: (node, [x, w], ctx) => {
    const { n, k } = node.ins[1]!.type as Weight;
    const rows = ctx.rows((node.outs[0] as Rows).domain);
    const y = new Float64Array(rows * n);
    for (let t = 0; t < rows; t++)
      for (let j = 0; j < n; j++) {
        let acc = 0;
        for (let i = 0; i < k; i++) acc += x![t * k + i]! * w![j * k + i]!;
        y[t * n + j] = acc;
      }
    return [y];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 7 },
        { kind: "weight", n: 5, k: 7, format: "f32" },
      ],
    },
    {
      ins: [
        { kind: "rows", domain: "T", cols: 32 },
        { kind: "weight", n: 48, k: 32, format: "f32" },
      ],
    },
    {
      ins: [
        { kind: "rows", domain: "T", cols: 70 },
        { kind: "weight", n: 9, k: 70, format: "f16" },
      ],
    },
    {
      ins: [
        { kind: "rows", domain: "T", cols: 300 },
        { kind: "weight", n: 17, k: 300, format: "int8" },
      ],
    },
    {
      ins: [
        { kind: "rows", domain: "T", cols: 41 },
        { kind: "weight", n: 20, k: 41, format: "bf16" },
      ],
    },
  ],
});
/** y [rows, n] = x [rows, k] · Wᵀ. */
export const linear = (x: Value, w: Value, label: string): Value => make1(linearOp, [x, w], {}, label);

const linearTOp = defineOp({
  name: "linear_t",
  constant: true,
  kind: "kernel",
  infer: (ins) => {
    const [dy, w] = [ins[0] as Rows, ins[1] as Weight];
    for (let i = 0; i < ins.length; i += 2)
      if ((ins[i] as Rows).cols !== (ins[i + 1] as Weight).n || (ins[i + 1] as Weight).k !== w.k)
        throw new Error("linear_t: shapes differ");
    return [{ kind: "rows", domain: dy.domain, cols: w.k }];
  },
  eval: (node, ins, ctx) => {
    const k = (node.ins[1]!.type as Weight).k;
    const rows = ctx.rows((node.outs[0] as Rows).domain);
    const dx = new Float64Array(rows * k);
    for (let s = 0; s < ins.length; s += 2) {
      const n = (node.ins[s + 1]!.type as Weight).n;
      for (let t = 0; t < rows; t++)
        for (let j = 0; j < n; j++) {
          const d = ins[s]![t * n + j]!;
          for (let i = 0; i < k; i++) dx[t * k + i] = dx[t * k + i]! + d * ins[s + 1]![j * k + i]!;
        }
    }
    return [dx];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 5 },
        { kind: "weight", n: 5, k: 7, format: "f32" },
        { kind: "rows", domain: "T", cols: 9 },
        { kind: "weight", n: 9, k: 7, format: "f32" },
      ],
    },
    {
      ins: [
        { kind: "rows", domain: "T", cols: 300 },
        { kind: "weight", n: 300, k: 45, format: "int8" },
        { kind: "rows", domain: "T", cols: 17 },
        { kind: "weight", n: 17, k: 45, format: "f16" },
        { kind: "rows", domain: "T", cols: 9 },
        { kind: "weight", n: 9, k: 45, format: "bf16" },
      ],
    },
  ],
});
/** dx [rows, k] = Σ_s dy_s [rows, n_s] · W_s [n_s, k], in the order given. */
export const linearT = (pairs: readonly (readonly [Value, Value])[]): Value =>
  make1(
    linearTOp,
    pairs.flat(),
    {},
    `d_${pairs.map(([, w]) => w.node.label.replace(/\.weight$/, "")).join("_")}`,
  );

/** [a, b, c, d] → [[a, b], [c, d]]: the (dy, W) pairs of a `linear_t`. */
export const pairsOf = <A>(list: readonly A[]): [A, A][] =>
  Array.from({ length: list.length / 2 }, (_, i) => [list[2 * i]!, list[2 * i + 1]!]);

const outerOp = defineOp({
  name: "outer",
  constant: true,
  kind: "kernel",
  infer: (_, a) => [{ kind: "grad", of: String(a.of) }],
  eval: (node, [dy, x], ctx) => {
    const [a, b] = [node.ins[0]!.type as Rows, node.ins[1]!.type as Rows];
    const out = new Float64Array(a.cols * b.cols);
    const rows = ctx.rows(a.domain);
    for (let t = 0; t < rows; t++)
      for (let j = 0; j < a.cols; j++)
        for (let i = 0; i < b.cols; i++)
          out[j * b.cols + i] = out[j * b.cols + i]! + dy![t * a.cols + j]! * x![t * b.cols + i]!;
    return [out];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "W", cols: 5 },
        { kind: "rows", domain: "W", cols: 6 },
        { kind: "weight", n: 5, k: 6, format: "f32" },
      ],
      attrs: { of: "w" },
    },
  ],
});
/**
 * Gradient of a matrix or factor parameter: Σ_rows a[row, :] ⊗ b[row, :], folded into the parameter's
 * accumulator.
 */
export const outer = (a: Value, b: Value, param: Value): Value =>
  make1(outerOp, [a, b, param], { of: String(param.node.attrs.name) }, `d_${param.node.label}`);

const colSumOp = defineOp({
  name: "col_sum",
  constant: true,
  kind: "kernel",
  infer: (_, a) => [{ kind: "grad", of: String(a.of) }],
  eval: (node, [x], ctx) => {
    const t = node.ins[0]!.type as Rows;
    const out = new Float64Array(t.cols);
    for (let r = 0; r < ctx.rows(t.domain); r++)
      for (let c = 0; c < t.cols; c++) out[c] = out[c]! + x![r * t.cols + c]!;
    return [out];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "W", cols: 7 },
        { kind: "vector", n: 7 },
      ],
      attrs: { of: "b" },
    },
  ],
});
/** Gradient of a vector parameter: Σ_rows x[row, :]. */
export const colSum = (x: Value, param: Value): Value =>
  make1(colSumOp, [x, param], { of: String(param.node.attrs.name) }, `d_${param.node.label}`);
