/** What a workgroup makes of whole rows: sums and maxima over columns, then elements that need them. */
import { type Expr, walkExpr } from "../../../ops/index.ts";
import { Printer } from "../../emit/printer.ts";
import type { Stat } from "../body.ts";
import { FOLD_LANES } from "./library.ts";
import { indent, type Lines, lines } from "./lines.ts";
import { reductions } from "./reductions.ts";
import { header } from "./wgsl.ts";
import { indices } from "./wgsl_products.ts";

/** Columns that a lane has on their way at once, at most: what is loaded of them waits together. */
export const AT_ONCE = 8;
/** Expressions that are loops, of whose turns one waits for the other anyway. */
const loops: ReadonlySet<Expr["e"]> = new Set(["expand", "sparse", "dot"]);
export function looped(e: Expr): boolean {
  let found = false;
  walkExpr(e, ({ e }) => {
    found ||= loops.has(e);
  });
  return found;
}
/** What is done with a column: numbers that it is made of, then what uses or stores them. */
interface Column {
  readonly values: Lines;
  readonly uses: Lines;
}
/**
 * WGSL over the columns of a row, in every lane ascending. All numbers of a turn are asked for before the
 * first is used or anything is stored. A loop whose beginning is not known before it runs is one that no
 * compiler unrolls into all registers.
 */
export function across(cols: number, atOnce: number, of: () => Column, lane = "lane"): Lines {
  const turns = Math.floor(cols / FOLD_LANES);
  const each = Math.max(1, Math.min(atOnce, turns));
  const side = (n: number, first: string): Lines => {
    const all = indices(n).map((i) => {
      const { values, uses } = of();
      const named = (text: string): string => text.replace(/\bcol\b/g, `col_${i}`);
      return {
        values: [`let col_${i} = ${first} + ${i * FOLD_LANES};`, ...values.map(named)],
        uses: uses.map(named),
      };
    });
    return all.flatMap((c) => c.values).concat(all.flatMap((c) => c.uses));
  };
  const loop = Math.floor(turns / each);
  const rest = turns % each;
  const last = cols % FOLD_LANES;
  return lines`
    ${
      loop
        ? lines`
    for (var i = ${loop > 2 ? header("zero") : "0"}; i < ${loop}; i++) {
      ${side(each, `i * ${each * FOLD_LANES} + ${lane}`)}
    }`
        : []
    }
    ${rest ? ["{", ...indent(side(rest, `${loop * each * FOLD_LANES} + ${lane}`), 2), "}"] : []}
    ${
      last
        ? lines`
    if (${lane} < ${last}) {
      ${side(1, `${turns * FOLD_LANES} + ${lane}`)}
    }`
        : []
    }`;
}
/** A lane's own part of a reduction over a row of so many columns, in a variable. */
export function summed(p: Printer, { reduce, expr }: Stat, cols: number, lane: string, sum: string): Lines {
  const { start, step } = reductions[reduce].wgsl;
  const of = (): Column => {
    const q = new Printer(p.dialect, 1, p);
    const x = q.at(expr);
    return { values: q.col, uses: [step(sum, x)] };
  };
  return [`var ${sum} = ${start};`, ...across(cols, looped(expr) ? 1 : AT_ONCE, of, lane)];
}
