/** y = x·Wᵀ. */
import type { Type } from "../../ops/index.ts";
import { ROW_TILE } from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { most, plainRows, restRows, tileRows } from "./grid.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { WG } from "./text/wgsl.ts";
import { GEMM_COLUMNS, GEMM_LANES, gemm, gemmShared, summed } from "./text/wgsl_gemm.ts";
import { GEMV_ROWS, gemv, gemvColumns, gemvLanes, gemvShared } from "./text/wgsl_gemv.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { ascending, PLAIN_ROWS, plain } from "./text/wgsl_plain.ts";
import { indices } from "./text/wgsl_products.ts";

const matrixOf = (b: Body) => b.operands[1]!.value.type as Type & { kind: "weight" };
const lanesOf = (bodies: readonly Body[]): number => Math.max(...bodies.map((b) => gemvLanes(matrixOf(b).k)));
const partsOf = (b: Body, env: KernelEnv) => {
  const { format, n, k } = matrixOf(b);
  const panels = panelsOf(format, env.address(b.operands[1]!.value).offset, n, k);
  return { x: b.operands[0]!, terms: k, panels };
};

export const linear: GraphKernel = {
  epilogue: "elements",
  // A backward has many rows; a step may have a few, or what whole tiles leave is a few.
  variants: ({ domain }) => (domain === "W" ? ["plain", "many"] : ["plain", "few", "many"]),
  lanes: (bodies, variant) => (variant === "few" ? lanesOf(bodies) : variant === "many" ? GEMM_LANES : WG),
  grid: (bodies, _env, variant) => {
    if (variant === "many") return [most(bodies, (b) => b.cols, GEMM_COLUMNS), tileRows(bodies, ROW_TILE)];
    if (variant !== "few") return [most(bodies, (b) => b.cols / 4), plainRows(bodies, PLAIN_ROWS)];
    const columns = (b: Body): number => gemvColumns(matrixOf(b).k, lanesOf(bodies));
    return [most(bodies, (b) => b.cols / columns(b), 1), restRows(bodies, GEMV_ROWS)];
  },
  shared: (variant, lanes) => (variant === "few" ? gemvShared(lanes) : variant === "many" ? gemmShared : []),
  wgsl: (name, b, env, variant, lanes) => {
    const { x, terms, panels } = partsOf(b, env);
    if (variant === "few") return gemv(name, b, env, lanes, { x, terms, panels });
    if (variant === "many") {
      // A lane brings two terms of four columns.
      const load = panels.some(2, "n0 / 16 + (tx >> 2u)", "k + ty * 2", "(tx & 3)");
      const store = indices(2).map((j) => `tile_b[(ty * 2 + ${j}) * 16 + tx] = v${j};`);
      return gemm(name, b, env, summed({ x, terms, load, store }, env));
    }
    return plain(name, b, env, (at) => ascending(at(x), panels, { k: terms }));
  },
  scratch: productScratch("product"),
  assembly: (name, b, env) => product("product", name, b, env),
};
