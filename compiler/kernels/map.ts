/** Elements of rows, each on its own. */

import { type Expr, walkExpr } from "../../ops/index.ts";
import { assemblyPrinter, storeLoops } from "../emit/assemblyscript_dialect.ts";
import { wgslPrinter, wgslStores } from "../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { most, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

const { ROWS } = wgsl;

/** What it loads of a matrix that is a group of its own: a shard has some of its rows. */
function gathered(b: Body, env: KernelEnv): (Expr & { e: "load" })[] {
  const out: (Expr & { e: "load" })[] = [];
  for (const s of b.stores)
    walkExpr(s.expr, (e) => {
      if (e.e === "load" && e.value.type.kind === "weight" && env.address(e.value).own != null) out.push(e);
    });
  return out;
}
export const map: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => [most(bodies, (b) => b.cols), rows(bodies, ROWS)],
  wgsl: (name, b, env) => {
    const p = wgslPrinter(env);
    const stores = wgslStores(p, b.stores, env, b.cols, "col == 0");
    const elsewhere = gathered(b, env).map((e) => `if (${wgsl.notInShard(p.ix(e.row))}) { continue; }`);
    return wgsl.fn(
      name,
      lines`
        ${wgsl.guard(b.bits)}
        let col = wg.x * ${wgsl.WG} + lane;
        if (col >= ${b.cols}) { return; }
        let n = ${wgsl.count(b.domain)};
        for (var row = wg.y * ${ROWS}; row < min(n, (wg.y + 1) * ${ROWS}); row++) {
          ${[...p.row, ...elsewhere, ...p.col, ...stores]}
        }`,
    );
  },
  over: null,
  assembly: (name, b, env) => {
    const p = assemblyPrinter(env);
    const stores = storeLoops(p, b.stores, env, b.cols, "0", String(b.cols));
    return assembly.fn(
      name,
      lines`
        ${assembly.guard(b.bits)}
        ${assembly.shareOf(assembly.count(b.domain))}
        for (let row: i32 = lo; row < hi; row++) {
          ${p.row}
          ${stores}
        }`,
    );
  },
};
