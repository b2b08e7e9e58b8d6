/**
 * Rotary position embedding over pairs (i, i + half) of a head's first dims, from an f64-made table of
 * cosines and sines; its gradient is the inverse rotation. Of several tables each layer says which it turns
 * by; dims beyond the table's pass.
 */
import { call, col, type Expr, type Ix, ixBin, konst, load, meta, ofLayer, row } from "./expr.ts";
import { type Attrs, defineOp, make1, type Sample, type Type, type Value } from "./graph.ts";

const columnsOf = (table: Value): number => (table.type as Type & { kind: "table" }).cols;
const positionOf = ({ positions }: Attrs): Ix => {
  const at = meta("pos", row);
  return positions ? ixBin("add", at, ixBin("mul", ofLayer("rope"), Number(positions))) : at;
};
const turn = (x: Expr, cos: Expr, other: Expr, sin: Expr): Expr =>
  call("fma", x, cos, call("pin", call("mul", other, sin)));

const ropeOp = defineOp({
  name: "rope",
  kind: "point",
  remote: true,
  infer: ([x]) => [x!],
  point: ({ ins, attrs }) => {
    const [x, table] = [ins[0]!, ins[1]!];
    const hd = Number(attrs.headDim);
    const turned = columnsOf(table);
    const half = turned / 2;
    const c = ixBin("mod", { ix: "col" }, hd);
    const upper = ixBin("div", c, half); // 0 in the lower half of what turns, 1 in the upper
    const i = ixBin("mod", c, half);
    const pos = positionOf(attrs);
    // Every dim loads inside its row and the table, also one that passes.
    const turns = ixBin("lt", c, turned);
    const within = (e: Expr, passing: number): Expr =>
      turned === hd ? e : { e: "if", ix: turns, yes: e, no: konst(passing) };
    const shift = ixBin("sub", { ix: "int", v: half }, ixBin("mul", upper, turned));
    const pair: Ix = ixBin("add", { ix: "col" }, turned === hd ? shift : ixBin("mul", turns, shift));
    const cos = within(load(table, pos, i), 1);
    const sin = load(table, pos, ixBin("add", i, half));
    const s: Expr = { e: "if", ix: upper, yes: sin, no: call("neg", sin) };
    const signed = within(Number(attrs.sign) > 0 ? s : call("neg", s), 0);
    return turn(load(x), cos, load(x, row, pair), signed);
  },
  halves: {
    of: ({ ins: [, table], attrs }) =>
      columnsOf(table!) === Number(attrs.headDim) ? Number(attrs.headDim) / 2 : null,
    point: ({ ins: [, table], attrs }, [lower, upper]) => {
      const half = Number(attrs.headDim) / 2;
      const [pos, i] = [positionOf(attrs), ixBin("mod", col, half)];
      const cos = load(table!, pos, i);
      const sin = load(table!, pos, ixBin("add", i, half));
      const [s, minus] = Number(attrs.sign) > 0 ? [sin, call("neg", sin)] : [call("neg", sin), sin];
      return [turn(lower, cos, upper, minus), turn(upper, cos, lower, s)];
    },
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
  samples: [{ turned: 6 }, { turned: 4 }, { turned: 6, several: { positions: 96 } }].map(
    ({ turned, several }): Sample => ({
      ins: [
        { kind: "rows", domain: "T", cols: 12 },
        { kind: "table", rows: 2 * 96, cols: turned },
      ],
      attrs: { headDim: 6, sign: 1, ...several },
    }),
  ),
});
/**
 * Rotate the heads of x by the angles of `pos[row]`; table [positions, half cosines | half sines]. With
 * `positions` it holds several, of so many rows each.
 */
export const rope = (x: Value, table: Value, headDim: number, positions?: number): Value =>
  make1(ropeOp, [x, table], { headDim, sign: 1, ...(positions && { positions }) }, `rope_${x.node.label}`);
