/** y = x·Wᵀ. */
import { pairsOf, type Type } from "../../ops/index.ts";
import { blockRows, ROW_TILE } from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { most, plainRows, restRows, tileRows } from "./grid.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { WG } from "./text/wgsl.ts";
import { GEMM_LANES, gemm, gemmColumns, gemmShared, summed } from "./text/wgsl_gemm.ts";
import { GEMV_ROWS, gemv, gemvColumns, gemvLanes, gemvShared } from "./text/wgsl_gemv.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { ascending, PLAIN_ROWS, type Place, plain } from "./text/wgsl_plain.ts";
import { columnsOfShard, indices, wholeOf } from "./text/wgsl_products.ts";

const matrixOf = (b: Body) => b.operands[1]!.value.type as Type & { kind: "weight" };
const lanesOf = (bodies: readonly Body[]): number =>
  Math.max(...bodies.map((b) => gemvLanes(b, matrixOf(b).k)));
/** The rows, and the matrix; `which` of two, if a lane has one of them. */
const partsOf = (b: Body, env: KernelEnv, which: string) => {
  const { format, n, k } = matrixOf(b);
  const [first, second] = pairsOf(b.operands).map(([, w]) => env.address(w.value).offset) as [
    number,
    number?,
  ];
  // Both as they are, though their distance is known here: it may be negative.
  const one = second === undefined ? null : { at: which, step: `(${second / 4} - ${first / 4})` };
  const { own = null } = env.address(b.operands[1]!.value);
  const panels = panelsOf(format, first, n, k, { one, rows: blockRows({ own, n }) });
  return { x: b.operands[0]!, terms: k, panels, span: own === null ? wholeOf(b) : columnsOfShard };
};

export const linear: GraphKernel = {
  epilogue: "elements",
  joins: true,
  pairs: true,
  // A backward has many rows; a step may have a few, or what whole tiles leave is a few.
  variants: ({ domain }) => (domain === "W" ? ["plain", "many"] : ["plain", "few", "many"]),
  lanes: (bodies, variant) => (variant === "few" ? lanesOf(bodies) : variant === "many" ? GEMM_LANES : WG),
  grid: (bodies, _env, variant) => {
    if (variant === "many")
      return [most(bodies, (b) => b.cols / gemmColumns(b), 1), tileRows(bodies, ROW_TILE)];
    if (variant !== "few") return [most(bodies, (b) => b.cols / 4), plainRows(bodies, PLAIN_ROWS)];
    const columns = (b: Body): number => gemvColumns(b, matrixOf(b).k, lanesOf(bodies));
    return [most(bodies, (b) => b.cols / columns(b), 1), restRows(bodies, GEMV_ROWS)];
  },
  over: "x",
  shared: (variant, lanes) => (variant === "few" ? gemvShared(lanes) : variant === "many" ? gemmShared : []),
  wgsl: (name, b, env, variant, lanes) => {
    if (variant === "few") {
      const { span, ...parts } = partsOf(b, env, `(lane >> ${Math.log2(lanes / 2)}u)`);
      return gemv(name, b, env, lanes, parts, span);
    }
    if (variant === "many") {
      const { x, terms, panels, span } = partsOf(b, env, "(tx >> 3u)");
      // A lane brings two terms of four columns.
      const panel = b.beside ? "n0 / 16 + ((tx >> 2u) & 1)" : "n0 / 16 + (tx >> 2u)";
      const load = panels.some(2, panel, "k + ty * 2", "(tx & 3)");
      const store = indices(2).map((j) => `tile_b[(ty * 2 + ${j}) * 16 + tx] = v${j};`);
      const sums = summed({ x, terms: { all: terms, sharded: false }, load, store }, env);
      return gemm(name, b, env, sums, span);
    }
    const sums = indices(b.beside ? 2 : 1).map((s) => {
      const { x, terms, panels } = partsOf(b, env, String(s));
      return (at: (x: Operand, env: KernelEnv) => readonly Place[]) =>
        ascending(at(x, env), panels, { k: terms });
    });
    return plain(name, b, env, sums, partsOf(b, env, "0").span);
  },
  scratch: productScratch("product"),
  assembly: (name, b, env) => product("product", name, b, env),
};
