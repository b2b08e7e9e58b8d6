/** A row that a kernel makes of another as it reads it, to the bits of the kernel that stores it. */
import { Printer } from "../../emit/printer.ts";
import { wgslPrinter } from "../../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Made } from "../body.ts";
import { FOLD_LANES } from "./library.ts";
import type { Lines } from "./lines.ts";
import { reductions } from "./reductions.ts";
import { indices } from "./wgsl_products.ts";
import { summed } from "./wgsl_rows.ts";

/**
 * Of row `row`, so many columns long: text that a workgroup of so many lanes, at most those that fold, has
 * before; then four columns from `k` on, a multiple of four, which are `value` after `text`.
 */
export function madeRow({ stats, expr }: Made, env: KernelEnv, row: string, cols: number, lanes: number) {
  const p = wgslPrinter(env);
  const before = [`let row = ${row};`];
  for (const stat of stats) {
    const { id, reduce } = stat;
    // A lane has the parts of several of those that fold.
    const sums = indices(FOLD_LANES / lanes).map((part) => {
      const [lane, sum] = part ? [`(lane + ${part * lanes})`, `sum${id}_${part}`] : ["lane", `sum${id}`];
      return { lane, sum, text: summed(p, stat, cols, lane, sum) };
    });
    before.push(...p.row.splice(0));
    for (const { text } of sums) before.push(...text);
    for (const { lane, sum } of sums.slice(1)) before.push(`part[${lane}] = ${sum};`);
    before.push(`let stat${id} = ${reductions[reduce].wgsl.fold}(sum${id}, lane);`);
  }
  const element = (): { text: Lines; value: string } => {
    const q = new Printer(p.dialect, 4, p);
    const value = q.at(expr);
    return { text: q.col, value };
  };
  element();
  before.push(...p.row.splice(0));
  const four = (k: string): ReturnType<typeof element> => {
    const { text, value } = element();
    return { text: text.map((line) => line.replace(/\bcol\b/g, `(${k})`)), value };
  };
  return { before, four };
}
