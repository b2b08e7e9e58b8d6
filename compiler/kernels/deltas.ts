/** Low-rank deltas that an epilogue adds, and that a product makes beside its sums. */
import { type Expr, sameValue, walkExpr } from "../../ops/index.ts";
import type { Body } from "./body.ts";

export type Expand = Expr & { e: "expand" };
/** How many columns from the one that an epilogue is at a delta is. */
export const shiftOf = ({ col }: Expand): number =>
  col.ix === "bin" && col.op === "add" && col.a.ix === "col" && col.b.ix === "int" ? col.b.v : 0;
export const sameDelta = (a: Expand, b: Expand): boolean =>
  sameValue(a.u, b.u) && sameValue(a.factor, b.factor) && shiftOf(a) === shiftOf(b);
/** The distinct ones of a body. */
export function deltasOf(b: Body): readonly Expand[] {
  const out: Expand[] = [];
  for (const s of b.stores)
    walkExpr(s.expr, (e) => {
      if (e.e === "expand" && !e.from && !out.some((o) => sameDelta(o, e))) out.push(e);
    });
  return out;
}
