/**
 * Rotary position embedding over head_dim pairs (i, i + half), from an f64-made table of cosines and sines;
 * its gradient is the inverse rotation.
 */
import { call, type Expr, ixBin, load, meta, row } from "./expr.ts";
import { defineOp, make1, type Value } from "./graph.ts";

const ropeOp = defineOp({
  name: "rope",
  kind: "point",
  remote: true,
  infer: ([x]) => [x!],
  point: ({ ins, attrs }) => {
    const [x, table] = [ins[0]!, ins[1]!];
    const hd = Number(attrs.headDim);
    const half = hd / 2;
    const c = ixBin("mod", { ix: "col" }, hd);
    const upper = ixBin("div", c, half); // 0 in the lower half of the head, 1 in the upper
    const i = ixBin("mod", c, half);
    const pos = meta("pos", row);
    const cos = load(table, pos, i);
    const sin = load(table, pos, ixBin("add", i, half));
    const other = load(x, row, ixBin("sub", ixBin("add", { ix: "col" }, half), ixBin("mul", upper, hd)));
    const s: Expr = { e: "if", ix: upper, yes: sin, no: call("neg", sin) };
    const signed = Number(attrs.sign) > 0 ? s : call("neg", s);
    return call("fma", load(x), cos, call("pin", call("mul", other, signed)));
  },
  grad: (node, [dy]) => [
    () =>
      make1(
        ropeOp,
        [dy!, node.ins[1]!],
        { ...node.attrs, sign: -Number(node.attrs.sign) },
        `d_${node.label}`,
      ),
    null,
  ],
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 12 },
        { kind: "table", rows: 16, cols: 6 },
      ],
      attrs: { headDim: 6, sign: 1 },
    },
  ],
});
/** Rotate the heads of x by the angles of `pos[row]`; table [positions, half cosines | half sines]. */
export const rope = (x: Value, table: Value, headDim: number): Value =>
  make1(ropeOp, [x, table], { headDim, sign: 1 }, `rope_${x.node.label}`);
