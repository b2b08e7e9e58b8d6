/** Products of many rows, in tiles that a workgroup has in its memory. */
import type { KernelEnv } from "../../kernel.ts";
import { type Body, type Operand, sumsOf } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, restOf, rowAt, shard } from "./wgsl.ts";
import {
  CHUNK,
  epilogue,
  indices,
  isLast,
  ofSums,
  type Span,
  sumSoFar,
  type Terms,
  wholeOf,
} from "./wgsl_products.ts";

/** Rows and columns of a tile, and the terms of it that are in workgroup memory at once: those of a panel. */
const GEMM_COLUMNS = 64;
/** Columns of a body that a tile has: with two sums, half of it is the one's and half the other's. */
export const gemmColumns = (b: Body): number => (sumsOf(b) > 1 ? GEMM_COLUMNS / 2 : GEMM_COLUMNS);
const GEMM_ROWS = 64;
export const GEMM_LANES = 128;
const STEP = 16;
/** Quads of rows from a term's to the next's: those of lanes side by side go to different banks. */
const STRIDE = GEMM_ROWS / 4 + 1;

/** What a tile sums over: rows of x, and of a matrix 16 terms of 64 columns as vec4 into `tile_b`. */
export interface Summands {
  readonly x: Operand;
  readonly terms: Terms;
  /** Statements that load (into registers), then those that store, from term k on; the tile begins at n0. */
  readonly load: Lines;
  readonly store: Lines;
}
/**
 * A product of many rows: a tile of 64 rows and 64 columns, eight by four of them a lane, over 16 terms at a
 * time that the workgroup brought in.
 */
export function gemm(name: string, b: Body, env: KernelEnv, sums: Lines, span: Span = wholeOf(b)): string {
  const rows = indices(8);
  const columns = gemmColumns(b);
  const results = ofSums(b, (i) => `tile_b[o${i ? ` + ${columns / 4}` : ""}][column & 3]`);
  const text = lines`
    let n = ${count(b.domain)} - ${restOf(b.domain)};
    let m0 = wg.y * ${GEMM_ROWS};
    let n0 = wg.x * ${columns};
    if (m0 >= n || n0 >= ${span.count}) { return; }
    let tx = lane & 15;
    // A mask is what a compiler sees the bounds of.
    let ty = (lane >> 4u) & 7;
    ${rows.map((i) => `var t${i} = vec4<f32>();`)}
    ${sums}
    // A lane's columns were neighbours; one column of it, and all rows, make whole lines of memory.
    let column = lane & ${columns - 1};
    for (var turn = 0; turn < ${GEMM_ROWS / STEP}; turn++) {
      workgroupBarrier();
      if ((ty >> 1u) == turn) {
        let o = (ty & 1) * ${8 * STEP} + tx;
        ${rows.map((i) => `tile_b[o + ${i * STEP}] = t${i};`)}
      }
      workgroupBarrier();
      for (var i = 0; i < ${STEP}; i += ${GEMM_LANES / columns}) {
        let r = i + (lane >> ${Math.log2(columns)}u);
        let row = m0 + turn * ${STEP} + r;
        if (row < n && n0 + column < ${span.count}) {
          let o = r * ${STEP} + (column >> 2u);
          ${span.put(name, "row", "n0 + column", results)}
        }
      }
    }`;
  return `${epilogue(name, b, env)}\n${fn(name, text)}`;
}
/** What tiles leave through, and what products that are not of integers come through. */
export const gemmShared: Lines = [`var<workgroup> tile_b: array<vec4<f32>, ${(STEP * GEMM_COLUMNS) / 4}>;`];
export const summedShared: Lines = [`var<workgroup> tile_a: array<vec4<f32>, ${STEP * STRIDE}>;`];
/** Begins a tile's sums with what shards before this one left. */
export const tileGoesOn = (b: Body, env: KernelEnv): Lines => lines`
  if (${shard.first} > 0) {
    ${indices(8).map((i) => `t${i} = ${sumSoFar(b, env, `min(m0 + ty * 8 + ${i}, n - 1)`, "n0 + tx * 4")};`)}
  }`;
/** Adds one pair of operands to a tile's sums t0 …. */
export function summed({ x, terms, load, store }: Summands, env: KernelEnv): Lines {
  const rows = indices(8);
  const at = rows.map((i) => rowAt(x, env, `min(m0 + ty * 4 + ${(i >> 2) * 32 + (i & 3)}, n - 1)`));
  const tile = (steps: number): Lines => lines`
    ${load}
    ${at.map(({ space }, i) => `let y${i} = ${space}[x${i} + k];`)}
    workgroupBarrier();
    tile_a[tx * ${STRIDE} + ty] = vec4<f32>(y0, y1, y2, y3);
    tile_a[tx * ${STRIDE} + ty + 8] = vec4<f32>(y4, y5, y6, y7);
    ${store}
    workgroupBarrier();
    // Lanes whose rows are not there wait.
    if (m0 + ty * 8 < n) {
    for (var j = 0; j < ${steps}; j++) {
      let w = tile_b[j * ${STEP} + tx];
      let x_0 = tile_a[j * ${STRIDE} + ty * 2];
      let x_1 = tile_a[j * ${STRIDE} + ty * 2 + 1];
      ${rows.map((i) => `a${i} = fma(vec4<f32>(x_${i >> 2}.${"xyzw"[i & 3]}), w, a${i});`)}
    }
    }`;
  const { all, sharded } = terms;
  const [turns, rest] = [Math.floor(all / STEP), all % STEP];
  // Most matrices have whole chunks, and a loop of so many turns; of others the last has fewer.
  const whole = all % CHUNK === 0;
  const perChunk = CHUNK / STEP;
  // Bounds are variables, so that matrices of other sizes may share the text.
  return lines`
    ${at.map((row, i) => `let x${i} = ${row.at} + tx${sharded ? ` + ${shard.first}` : ""};`)}
    ${whole ? [] : [`let turns = ${sharded ? `${shard.rows} / ${STEP}` : turns};`]}
    let chunks = ${sharded ? `(${shard.rows} + ${CHUNK - 1}) / ${CHUNK}` : Math.ceil(all / CHUNK)};
    for (var c = 0; c < chunks; c++) {
      ${rows.map((i) => `var a${i} = vec4<f32>();`)}
      ${whole ? [] : [`let until = min(turns - c * ${perChunk}, ${perChunk});`]}
      for (var turn = 0; turn < ${whole ? perChunk : "until"}; turn++) {
        let k = c * ${CHUNK} + turn * ${STEP};
        ${tile(STEP)}
      }
      ${
        rest
          ? lines`
      if (c == chunks - 1${sharded ? ` && ${isLast(all)}` : ""}) {
        let k = turns * ${STEP};
        ${tile(rest)}
      }`
          : []
      }
      ${rows.map((i) => `t${i} = t${i} + a${i};`)}
    }`;
}
