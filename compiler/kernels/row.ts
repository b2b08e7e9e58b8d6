/**
 * Whole rows: sums and maxima over their columns, then elements that need them. On WebGPU a workgroup has a
 * row, or, for CPUs behind it, which pay for every barrier, a lane: in the order in which a workgroup folds.
 */
import type { Expr } from "../../ops/index.ts";
import { assemblyPrinter, storeLoops } from "../emit/assemblyscript_dialect.ts";
import { Printer } from "../emit/printer.ts";
import { wgslPrinter, wgslStores } from "../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { loneRow, moreRows, one, plainRows, wideRows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { FOLD_LANES, FOLDED, foldShared, treeOf } from "./text/library.ts";
import { indent, type Lines, lines } from "./text/lines.ts";
import { reductions } from "./text/reductions.ts";
import * as wgsl from "./text/wgsl.ts";
import { indices } from "./text/wgsl_products.ts";
import { AT_ONCE, across, looped, summed } from "./text/wgsl_rows.ts";

/** Rows, a lane each, of a workgroup without barriers. */
const PLAIN_LANES = 8;
/** Columns that such a lane has side by side: a loop's turn costs a CPU as much as some of them. */
const BESIDE = 4;
const beside = (e: Expr): number => (looped(e) ? 1 : BESIDE);
/** A row in one lane: what each lane of a workgroup would sum up, and the tree over these. */
function plain(name: string, b: Body, env: KernelEnv): string {
  const p = wgslPrinter(env);
  const [turns, last] = [Math.floor(b.cols / FOLD_LANES), b.cols % FOLD_LANES];
  const apart = FOLD_LANES / FOLDED;
  for (const { id, reduce, expr } of b.stats) {
    const { start, step } = reductions[reduce].wgsl;
    const each = indices(beside(expr));
    /** Adds a column of each of the lanes from `at` on. */
    const add = (i: number, turn: string): Lines => {
      const q = new Printer(p.dialect, 1, p);
      const x = q.at(expr);
      return lines`
        {
          let col = ${turn} * ${FOLD_LANES} + j + (at + ${i}) * ${FOLDED};
          ${q.col}
          ${step(`sum${i}`, x)}
        }`;
    };
    const whole = each.flatMap((i) => add(i, "turn"));
    const some = (i: number): Lines => [
      `if (j + (at + ${i}) * ${FOLDED} < ${last})`,
      ...add(i, String(turns)),
    ];
    p.row.push(
      ...lines`
        var folded${id} = array<f32, ${FOLDED}>();
        for (var j = 0; j < ${FOLDED}; j++) {
          var sums = array<f32, ${apart}>();
          for (var at = 0; at < ${apart}; at += ${each.length}) {
            ${each.map((i) => `var sum${i} = ${start};`)}
            ${turns ? [`for (var turn = 0; turn < ${turns}; turn++) {`, ...indent(whole, 2), "}"] : []}
            ${last ? each.flatMap(some) : []}
            ${each.map((i) => `sums[at + ${i}] = sum${i};`)}
          }
          folded${id}[j] = ${treeOf(reduce, apart, (i) => `sums[${i}]`)};
        }
        let stat${id} = ${treeOf(reduce, FOLDED, (i) => `folded${id}[${i}]`)};`,
    );
  }
  const { ofRow, ofColumns } = storesOf(b);
  const steps = Math.min(...ofColumns.map((s) => beside(s.expr)), BESIDE);
  const column = (): Lines => {
    const q = new Printer(p.dialect, 1, p);
    const stores = wgslStores(q, ofColumns, env, b.cols, "true");
    return [...q.col, ...stores];
  };
  const columns = (first: string, n: number): Lines =>
    indices(n).flatMap(
      (i) => lines`
      {
        let col = ${first} + ${i};
        ${column()}
      }`,
    );
  const rest = b.cols % steps;
  const stored = ofColumns.length
    ? lines`
        for (var c = 0; c < ${b.cols - rest}; c += ${steps}) {
          ${columns("c", steps)}
        }
        ${columns(String(b.cols - rest), rest)}`
    : [];
  const once = wgslStores(p, ofRow, env, b.cols, "true");
  return wgsl.fn(
    name,
    lines`
      let row = wg.x * ${PLAIN_LANES} + lane;
      if (row >= ${wgsl.count(b.domain)}) { return; }
      ${p.row}
      ${stored}
      ${once}`,
  );
}
/** Stores of one column, made once a row, and of all. */
function storesOf(b: Body) {
  const ofRow = b.stores.filter((s) => s.cols === 1 && b.cols !== 1);
  return { ofRow, ofColumns: b.stores.filter((s) => !ofRow.includes(s)) };
}

export const row: GraphKernel = {
  epilogue: "rows",
  variants: ({ rest }) => (rest?.length ? ["plain", "any", "few"] : ["plain", "any"]),
  // Where a row that is alone is made anew, those for a few have that one, if something else reads it.
  grid: (bodies, _env, variant) => {
    if (variant === "plain") return [plainRows(bodies, PLAIN_LANES), one];
    const all = bodies[0]!.rest === null ? wideRows(bodies) : moreRows;
    return [variant === "few" ? loneRow : all, one];
  },
  lanes: (_bodies, variant) => (variant === "plain" ? PLAIN_LANES : FOLD_LANES),
  shared: (variant) => (variant === "plain" ? [] : foldShared),
  wgsl: (name, b, env, variant) => {
    if (variant === "plain") return plain(name, b, env);
    const p = wgslPrinter(env);
    for (const stat of b.stats) {
      const sum = `sum${stat.id}`;
      const text = summed(p, stat, b.cols, "lane", sum);
      p.row.push(...text, `let stat${stat.id} = ${reductions[stat.reduce].wgsl.fold}(${sum}, lane);`);
    }
    const { ofRow, ofColumns } = storesOf(b);
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
