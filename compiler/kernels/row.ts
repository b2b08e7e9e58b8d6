/** Whole rows: sums and maxima over their columns, then elements that need them. */
import { type Expr, walkExpr } from "../../ops/index.ts";
import { assemblyPrinter, storeLoops } from "../emit/assemblyscript_dialect.ts";
import { Printer } from "../emit/printer.ts";
import { wgslPrinter, wgslStores } from "../emit/wgsl_dialect.ts";
import type { GraphKernel, Stat } from "./body.ts";
import { one, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { FOLD_LANES, foldShared } from "./text/library.ts";
import { indent, type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { indices } from "./text/wgsl_products.ts";

/** How a reduction is spelt: where it starts, a step of one lane (and of four), lanes folded into one. */
interface Reduction {
  readonly wgsl: {
    readonly start: string;
    readonly step: (sum: string, x: string) => string;
    readonly fold: string;
  };
  readonly assembly: {
    readonly start: string;
    readonly step4: string;
    readonly step: (sum: string, x: string) => string;
    readonly fold: string;
  };
}
const reductions: Readonly<Record<Stat["reduce"], Reduction>> = {
  sum: {
    wgsl: { start: "0.0f", step: (sum, x) => `${sum} = ${sum} + ${x};`, fold: "fold_sum" },
    assembly: { start: "0", step4: "add", step: (sum, x) => `${sum} += ${x};`, fold: "hsum" },
  },
  max: {
    wgsl: { start: "-3.0e38f", step: (sum, x) => `${sum} = max(${sum}, ${x});`, fold: "fold_max" },
    assembly: {
      start: "-3.0e38",
      step4: "pmax",
      step: (sum, x) => `${sum} = ${sum} < ${x} ? ${x} : ${sum};`,
      fold: "hmax",
    },
  },
};

/** Columns that a lane has on their way at once, at most: what is loaded of them waits together. */
const AT_ONCE = 8;
/** Expressions that are loops, of whose turns one waits for the other anyway. */
const loops: ReadonlySet<Expr["e"]> = new Set(["expand", "sparse", "dot"]);
function looped(e: Expr): boolean {
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
function across(cols: number, atOnce: number, of: () => Column): Lines {
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
    for (var i = ${loop > 2 ? wgsl.header("zero") : "0"}; i < ${loop}; i++) {
      ${side(each, `i * ${each * FOLD_LANES} + lane`)}
    }`
        : []
    }
    ${rest ? ["{", ...indent(side(rest, `${loop * each * FOLD_LANES} + lane`), 2), "}"] : []}
    ${
      last
        ? lines`
    if (lane < ${last}) {
      ${side(1, `${turns * FOLD_LANES} + lane`)}
    }`
        : []
    }`;
}

export const row: GraphKernel = {
  epilogue: "rows",
  grid: (bodies) => [rows(bodies), one],
  lanes: () => FOLD_LANES,
  shared: () => foldShared,
  wgsl: (name, b, env) => {
    const p = wgslPrinter(env);
    for (const { id, reduce, expr } of b.stats) {
      const text = reductions[reduce].wgsl;
      const sum = across(b.cols, looped(expr) ? 1 : AT_ONCE, () => {
        const q = new Printer(p.dialect, 1, p);
        const x = q.at(expr);
        return { values: q.col, uses: [text.step(`sum${id}`, x)] };
      });
      p.row.push(`var sum${id} = ${text.start};`, ...sum, `let stat${id} = ${text.fold}(sum${id}, lane);`);
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
    return wgsl.fn(
      name,
      lines`
        let row = wg.x;
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
