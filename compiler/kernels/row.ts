/** Whole rows: sums and maxima over their columns, then elements that need them. */
import { assemblyPrinter, storeLoops } from "../emit/assemblyscript_dialect.ts";
import { Printer } from "../emit/printer.ts";
import { wgslPrinter, wgslStores } from "../emit/wgsl_dialect.ts";
import type { GraphKernel, Stat } from "./body.ts";
import { one, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

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

export const row: GraphKernel = {
  epilogue: "rows",
  grid: (bodies) => [rows(bodies), one],
  wgsl: (name, b, env) => {
    const p = wgslPrinter(env);
    for (const { id, reduce, expr } of b.stats) {
      const text = reductions[reduce].wgsl;
      const q = new Printer(p.dialect, 1, p);
      const x = q.at(expr);
      p.row.push(
        ...lines`
          var sum${id} = ${text.start};
          for (var col = lane; col < ${b.cols}; col += ${wgsl.WG}) {
            ${q.col}
            ${text.step(`sum${id}`, x)}
          }
          let stat${id} = ${text.fold}(sum${id}, lane);`,
      );
    }
    const q = new Printer(p.dialect, 1, p);
    const stores = wgslStores(q, b.stores, env, b.cols, "col == 0");
    return wgsl.fn(
      name,
      lines`
        let row = wg.x;
        ${p.row}
        for (var col = lane; col < ${b.cols}; col += ${wgsl.WG}) {
          ${[...q.col, ...stores]}
        }`,
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
