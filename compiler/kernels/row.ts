/** Whole rows: sums and maxima over their columns, then elements that need them. */
import { assemblyPrinter, storeLoops } from "../emit/assemblyscript_dialect.ts";
import { Printer } from "../emit/printer.ts";
import { wgslPrinter, wgslStores } from "../emit/wgsl_dialect.ts";
import type { GraphKernel } from "./body.ts";
import { loneRow, moreRows, one, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { FOLD_LANES, foldShared } from "./text/library.ts";
import { lines } from "./text/lines.ts";
import { reductions } from "./text/reductions.ts";
import * as wgsl from "./text/wgsl.ts";
import { AT_ONCE, across, looped, summed } from "./text/wgsl_rows.ts";

export const row: GraphKernel = {
  epilogue: "rows",
  variants: ({ rest }) => (rest?.length ? ["any", "few"] : ["any"]),
  // Where a row that is alone is made anew, those for a few have that one, if something else reads it.
  grid: (bodies, _env, variant) => {
    const all = bodies[0]!.rest === null ? rows(bodies) : moreRows;
    return [variant === "few" ? loneRow : all, one];
  },
  lanes: () => FOLD_LANES,
  shared: () => foldShared,
  wgsl: (name, b, env, variant) => {
    const p = wgslPrinter(env);
    for (const stat of b.stats) {
      const sum = `sum${stat.id}`;
      const text = summed(p, stat, b.cols, "lane", sum);
      p.row.push(...text, `let stat${stat.id} = ${reductions[stat.reduce].wgsl.fold}(${sum}, lane);`);
    }
    const ofRow = b.stores.filter((s) => s.cols === 1 && b.cols !== 1);
    const ofColumns = b.stores.filter((s) => !ofRow.includes(s));
    const stored = ofColumns.length
      ? across(b.cols, ofColumns.some((s) => looped(s.expr)) ? 1 : AT_ONCE, () => {
          const q = new Printer(p.dialect, 1, p);
          const uses = wgslStores(q, ofColumns, env, b.cols, "lane == 0");
          return { values: q.col, uses };
        })
      : [];
    const once = wgslStores(p, ofRow, env, b.cols, "lane == 0");
    // Of both versions one text, but for a number.
    const last = `(${wgsl.count(b.domain)} - 1)`;
    const first = b.rest === null ? "" : `${variant === "few" ? 1 : 0} * ${last} + `;
    return wgsl.fn(
      name,
      lines`
        let row = ${first}wg.x;
        ${p.row}
        ${stored}
        ${once}`,
    );
  },
  assembly: (name, b, env) => {
    const p = assemblyPrinter(env);
    for (const { id, reduce, expr } of b.stats) {
      const text = reductions[reduce].assembly;
      const v = new Printer(p.dialect, 4, p);
      const t = new Printer(p.dialect, 1, p);
      const [vt, tt] = [v.at(expr), t.at(expr)];
      p.row.push(
        ...lines`
          let sv${id}: v128 = f32x4.splat(${text.start});
          let stat${id}: f32;
          {
            let col: i32 = 0;
            for (; col + 4 <= ${b.cols}; col += 4) {
              ${v.col}
              sv${id} = f32x4.${text.step4}(sv${id}, ${vt});
            }
            stat${id} = ${text.fold}(sv${id});
            for (; col < ${b.cols}; col++) {
              ${t.col}
              ${text.step(`stat${id}`, tt)}
            }
          }`,
      );
    }
    const stores = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
    return assembly.fn(
      name,
      lines`
        ${assembly.shareOf(assembly.count(b.domain))}
        for (let row: i32 = lo; row < hi; row++) {
          ${p.row}
          ${stores}
        }`,
    );
  },
};
