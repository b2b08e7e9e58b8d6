/** Slot-indexed low-rank products: every row finds its own adapter (S-LoRA, Punica SGMV). Rank 0 contributes exactly nothing. */

import { mul } from "./elementwise.ts";
import { call, type Expr, konst, meta, row } from "./expr.ts";
import { type Domain, defineOp, make1, type Type, type Value } from "./graph.ts";
import { outer } from "./linear.ts";

type Rows = Type & { kind: "rows" };
type Factor = Type & { kind: "factor" };

const shrinkOp = defineOp({
  name: "shrink",
  kind: "kernel",
  infer: ([x, f], a) => {
    if ((x as Rows).cols !== (f as Factor).cols) throw new Error(`shrink: ${(x as Rows).cols} columns, factor has ${(f as Factor).cols}`);
    return [{ kind: "rows", domain: (x as Rows).domain, cols: Number(a.rank) }];
  },
  grad: (node, [du]) => [() => expand(du!, node.ins[1]!), () => outer(du!, node.ins[0]!, node.ins[1]!)],
  eval: (node, [x, f], ctx) => {
    const { cols, site } = node.ins[1]!.type as Factor;
    const { domain, cols: maxRank } = node.outs[0] as Rows;
    const rows = ctx.rows(domain);
    const u = new Float64Array(rows * maxRank);
    for (let t = 0; t < rows; t++) {
      const s = ctx.meta("slot", t);
      for (let r = 0; r < ctx.slot(s, site).rank; r++) {
        let acc = 0;
        for (let c = 0; c < cols; c++) acc += x![t * cols + c]! * f![(s * maxRank + r) * cols + c]!;
        u[t * maxRank + r] = acc;
      }
    }
    return [u];
  },
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 37 },
        { kind: "factor", cols: 37, site: 0, side: "a" },
      ],
      attrs: { rank: 8 },
    },
  ],
});
/** u [rows, maxRank]: u[t, r] = x[t] · F[slot[t]][r]; 0 beyond the slot's rank. */
export const shrink = (x: Value, factor: Value, rank: number): Value => make1(shrinkOp, [x, factor], { rank }, `shrink_${factor.node.label}`);

const expandOp = defineOp({
  name: "expand",
  kind: "point",
  remote: true,
  infer: ([u, f]) => [{ kind: "rows", domain: (u as Rows).domain, cols: (f as Factor).cols }],
  point: ({ ins }) => ({ e: "expand", u: ins[0]!, factor: ins[1]!, row, col: { ix: "col" } }),
  grad: (node, [dy]) => [() => shrink(dy!, node.ins[1]!, (node.ins[0]!.type as Rows).cols), () => outer(node.ins[0]!, dy!, node.ins[1]!)],
  samples: [
    {
      ins: [
        { kind: "rows", domain: "T", cols: 8 },
        { kind: "factor", cols: 37, site: 0, side: "b" },
      ],
    },
  ],
});
/** y[t] = Σ_r u[t, r] · F[slot[t]][r]. */
export const expand = (u: Value, factor: Value): Value => make1(expandOp, [u, factor], {}, `expand_${factor.node.label}`);

const scaleOp = defineOp({
  name: "slot_scale",
  kind: "point",
  infer: (_, a) => [{ kind: "rows", domain: a.domain as Domain, cols: 1 }],
  point: ({ attrs }) => ({ e: "scale", site: Number(attrs.site), row }),
});
/** u scaled by the row's adapter scale at this site (alpha/r, or alpha/√r for rsLoRA). */
export const scaleBySlot = (u: Value, site: number): Value => mul(u, make1(scaleOp, [], { site, domain: (u.type as Rows).domain }));

const dropoutOp = defineOp({
  name: "dropout",
  kind: "point",
  infer: ([x]) => [x!],
  point: ({ at, attrs }) => maskExpr(at(0), Number(attrs.site)),
  grad: (node, [dy]) => [() => make1(dropoutOp, [dy!], node.attrs)],
});
/** x / keep where the counter-based draw keeps it, else 0; rows whose key is 0 (inference) pass unchanged. */
const maskExpr = (x: Expr, site: number): Expr => {
  const key = meta("drop_key", row);
  const drop: Expr = { e: "metaf", name: "drop_p", at: row };
  const u: Expr = { e: "rand", key, site, col: { ix: "col" } };
  // keep = step(u >= p): 1 when u - p is non-negative. min(max((u - p)·2^25 + 1, 0), 1) is exact because u and p sit on a 2^-24 grid.
  const keep = call("min", call("max", call("fma", call("sub", u, drop), konst(33554432), konst(1)), konst(0)), konst(1));
  return { e: "if", test: "nonzero", ix: key, yes: call("pin", call("mul", call("pin", call("mul", x, keep)), call("div", konst(1), call("sub", konst(1), drop)))), no: x };
};
export const dropout = (x: Value, site: number): Value => make1(dropoutOp, [x], { site });
