/** y = x·Wᵀ. */
import { pairsOf, type Type } from "../../ops/index.ts";
import { blockRows, ROW_TILE } from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import { type Body, type GraphKernel, sumsOf, widthOf } from "./body.ts";
import { most, plainRows, restRows, tileRows } from "./grid.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { GEMM_LANES, gemm, gemmColumns, gemmShared, summed, summedShared } from "./text/wgsl_gemm.ts";
import { GEMV_ROWS, gemv, gemvColumns, gemvLanes, gemvShared, inTurns } from "./text/wgsl_gemv.ts";
import {
  fewIntegersShared,
  integersOf,
  plainIntegers,
  tileIntegers,
  tileIntegersShared,
} from "./text/wgsl_integers.ts";
import {
  fewColumns,
  fewMatrix,
  fewQuad,
  MATRIX_LANES,
  MATRIX_ROWS,
  manyMatrix,
  manyQuad,
  matrixColumns,
} from "./text/wgsl_matrix.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { ascending, ascendingHalves, PLAIN_LANES, plain, plainQuads, type Tile } from "./text/wgsl_plain.ts";
import { columnsOfShard, indices, quadAt, wholeOf } from "./text/wgsl_products.ts";

const matrixOf = (b: Body) => b.operands[1]!.value.type as Type & { kind: "weight" };
const lanesOf = (bodies: readonly Body[]): number =>
  Math.max(...bodies.map((b) => gemvLanes(b, matrixOf(b).k)));
/**
 * The rows, and the matrix at column quad `quad`, which is in variables after `before` (their names end with
 * `tag`); `which` of two sums, if a lane has one of them.
 */
const partsOf = (b: Body, env: KernelEnv, quad: string, which: string, tag = "") => {
  const { format, n, k } = matrixOf(b);
  const [first, second = null] = pairsOf(b.operands).map(([, w]) => env.address(w.value).offset / 4);
  const pair = sumsOf(b) > 1 ? which : null;
  // Both as they are, though their distance is known here: it may be negative.
  const one = pair === null ? null : { at: pair, step: `(${second ?? first} - ${first})` };
  const { own = null } = env.address(b.operands[1]!.value);
  const panels = panelsOf(format, 4 * first!, n, k, { one, rows: blockRows({ own, n }) });
  const span = own === null ? wholeOf(b) : columnsOfShard;
  const integers = integersOf(format, env);
  return { x: b.operands[0]!, terms: k, panels, integers, span, at: quadAt(b, quad, pair, tag) };
};

/**
 * Of columns that a lane has of a plain product. Integers are summed a quad at a time; and four terms a word,
 * as int8 has, were 1.2 times as fast with one as with two (docs/measured.md).
 */
const quadsOf = (b: Body, env: KernelEnv): number => {
  const { panels, integers } = partsOf(b, env, "col >> 2u", "0");
  return integers || panels.run === 4 ? 1 : plainQuads(env);
};

/** A product of a few rows, or of many, by matrix units. */
function ofUnits(name: string, b: Body, env: KernelEnv, few: boolean): string {
  const { span, ...parts } = partsOf(b, env, ...(few ? fewQuad : manyQuad)(b));
  return (few ? fewMatrix : manyMatrix)(name, b, env, parts, span);
}
export const linear: GraphKernel = {
  epilogue: "elements",
  joins: true,
  pairs: true,
  makes: true,
  // A backward has many rows; a step may have a few, or what whole tiles leave is a few.
  variants: ({ domain }) => (domain === "W" ? ["plain", "many"] : ["plain", "few", "many"]),
  lanes: (bodies, variant, env) => {
    if (env.products === "matrix" && variant !== "plain")
      return MATRIX_LANES[variant === "few" ? "few" : "many"];
    if (variant === "few") return lanesOf(bodies);
    if (variant === "many") return GEMM_LANES;
    return PLAIN_LANES;
  },
  grid: (bodies, env, variant) => {
    const tile = env.products === "matrix" ? matrixColumns : gemmColumns;
    if (variant === "many") return [most(bodies, (b) => widthOf(b) / tile(b), 1), tileRows(bodies, ROW_TILE)];
    if (variant !== "few") {
      const columns = (b: Body): number => widthOf(b) / (4 * quadsOf(b, env));
      return [most(bodies, columns, PLAIN_LANES), plainRows(bodies, env.plainRows)];
    }
    if (env.products === "matrix")
      return [
        most(bodies, (b) => widthOf(b) / fewColumns(b, matrixOf(b).k), 1),
        restRows(bodies, MATRIX_ROWS),
      ];
    const columns = (b: Body): number => gemvColumns(b, matrixOf(b).k, lanesOf(bodies));
    return [most(bodies, (b) => widthOf(b) / columns(b), 1), restRows(bodies, GEMV_ROWS)];
  },
  over: "x",
  shared: (variant, lanes, bodies, env) => {
    // What units share is of a module's head.
    if (env.products === "matrix") return [];
    const integral = bodies.map((b) => integersOf(matrixOf(b).format, env) !== null);
    if (variant === "few") {
      const made = bodies.some((b) => b.operands.some((o) => o.made));
      const turns = bodies.some((b) => inTurns(b, matrixOf(b).k, lanes));
      return [
        ...gemvShared(lanes, turns, made),
        ...(integral.includes(true) ? fewIntegersShared(lanes) : []),
      ];
    }
    if (variant !== "many") return [];
    return [
      ...gemmShared,
      ...(integral.includes(false) ? summedShared : []),
      ...(integral.includes(true) ? tileIntegersShared : []),
    ];
  },
  wgsl: (name, b, env, variant, lanes) => {
    if (env.products === "matrix" && variant !== "plain") return ofUnits(name, b, env, variant === "few");
    if (variant === "few") {
      const { span, ...parts } = partsOf(b, env, "panel * 4 + quad", `(lane >> ${Math.log2(lanes / 2)}u)`);
      return gemv(name, b, env, lanes, parts, span);
    }
    if (variant === "many") {
      const quad = sumsOf(b) > 1 ? "n0 / 4 + (tx & 7)" : "n0 / 4 + tx";
      const { x, terms, panels, integers, span, at } = partsOf(b, env, quad, "(tx >> 3u)");
      if (integers) {
        const sums = tileIntegers({ x, panels, k: terms, at }, integers, env);
        return gemm(name, b, env, [...at.before, ...sums], span);
      }
      // A lane brings two terms of four columns.
      const load = panels.some(2, at.panel, "k + ty * 2", at.quad);
      const store = indices(2).map((j) => `tile_b[(ty * 2 + ${j}) * 16 + tx] = v${j};`);
      const sums = summed({ x, terms: { all: terms, sharded: false }, load, store }, env);
      return gemm(name, b, env, [...at.before, ...sums], span);
    }
    const sums = indices(sumsOf(b)).map((s) => ({ at, cols }: Tile) => {
      const parts = cols.map((col, q) => partsOf(b, env, `${col} >> 2u`, String(s), q ? `_${q}` : ""));
      const { x, terms, panels, integers } = parts[0]!;
      const sum = integers
        ? plainIntegers(integers)
        : env.products === "matrix"
          ? ascendingHalves
          : ascending;
      const quads = parts.map(({ at }) => at);
      return [...quads.flatMap((q) => q.before), ...sum(at(x, env), panels, { k: terms, quads })];
    });
    return plain(name, b, env, quadsOf(b, env), sums, partsOf(b, env, "col >> 2u", "0").span);
  },
  scratch: productScratch("product"),
  assembly: (name, b, env) => product("product", name, b, env),
};
