/**
 * Products of matrix units, a class of numerics of its own: what a product takes of rows and of a matrix is
 * rounded to f16, so that products of two are exact in f32. K is cut into spans of 512: a span is summed by
 * the unit, in f32, and the spans' sums are added in order. A number depends on its own row and column and on
 * K alone, so many rows and few have the same bits.
 *
 * What units do stands in the head of a module, which is one of two: `native`, with WGSL's subgroup matrices
 * of the shape that a device has, and `plain`, where lanes sum alone, ascending, for devices without. The
 * kernels below are of either.
 */
import { unitHeads } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import { type Body, type Operand, sumsOf } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, restOf, rowAt } from "./wgsl.ts";
import type { Leaving } from "./wgsl_gemm.ts";
import type { Panels } from "./wgsl_panels.ts";
import { turned } from "./wgsl_plain.ts";
import { epilogue, indices, type quadAt, SPAN, type Span } from "./wgsl_products.ts";

/** Terms that a workgroup brings at a time. */
const STEP = 32;
const STEPS = SPAN / STEP;
/** Numbers from a row's to the next's: rows side by side begin in other banks, at multiples of 16 bytes. */
const STRIDE = STEP + 8;
const TILE = 64;
/** Rows, and columns, of what a quarter of a workgroup makes of a few. */
const FEW = 16;
export const MATRIX_LANES = 128;
export const MATRIX_ROWS = FEW;

/**
 * `bring_x`, `bring_w`: four numbers of a row, or of a column, rounded on their way into the workgroup's
 * memory. `Part`: sums of 32 rows and columns of a tile, `FewPart`: of a quarter's 16. `multiply` adds to
 * them what was brought; `leave` puts what a tile has of 16 rows, from `first` on, into `tile_out`.
 */
const brings = (store: (tile: string) => Lines): Lines => lines`
  fn bring_x(at: i32, v: vec4<f32>) {
    ${store("tile_x")}
  }
  fn bring_w(at: i32, v: vec4<f32>) {
    ${store("tile_w")}
  }`;
const four = indices(4);
/** Of many rows, and of a few. */
const kinds = ["", "Few"] as const;
/**
 * M, N, K and SUBGROUP, a subgroup's lanes, are constants that the device's own shape brings. Lanes of a
 * subgroup lie side by side: 64 of them have 32 rows, each subgroup as many columns as it has lanes.
 */
const native = lines`
  enable f16;
  enable subgroups;
  enable chromium_experimental_subgroup_matrix;
  diagnostic(off, chromium.subgroup_matrix_uniformity);
  alias Left = subgroup_matrix_left<f16, K, M>;
  alias Right = subgroup_matrix_right<f16, N, K>;
  alias Sums = subgroup_matrix_result<f32, N, M>;
  const ROWS = 32 / M;
  const COLUMNS = SUBGROUP / N;
  const FEW_ROWS = SUBGROUP / 2 / M;
  const FEW_COLUMNS = ${FEW} / N;
  alias Part = array<array<Sums, COLUMNS>, ROWS>;
  alias FewPart = array<array<Sums, FEW_COLUMNS>, FEW_ROWS>;
  var<workgroup> tile_x: array<f16, ${TILE * STRIDE}>;
  var<workgroup> tile_w: array<f16, ${TILE * STRIDE}>;
  var<workgroup> tile_out: array<f32, ${FEW * TILE}>;
  ${brings((tile) => ["let h = vec4<f16>(v);", ...four.map((i) => `${tile}[at + ${i}] = h.${"xyzw"[i]};`)])}
  ${kinds.flatMap((few) => {
    const [rows, columns] = few ? ["FEW_ROWS", "FEW_COLUMNS"] : ["ROWS", "COLUMNS"];
    return lines`
  fn multiply${few}(sums: ptr<function, ${few}Part>, lane: i32) {
    let row = ${few ? `(lane >> 5u) * ${FEW} + (lane & (32 - SUBGROUP)) / 2` : "(lane >> 6u) * 32"};
    let col = ${few ? `(lane >> 5u) * ${FEW}` : "lane & (64 - SUBGROUP)"};
    for (var k = 0; k < ${STEP}; k += K) {
      var right = array<Right, ${columns}>();
      for (var j = 0; j < ${columns}; j++) {
        right[j] = subgroupMatrixLoad<Right, col_major>(
          &tile_w, u32((col + j * N) * ${STRIDE} + k), ${STRIDE}u);
      }
      for (var i = 0; i < ${rows}; i++) {
        let left = subgroupMatrixLoad<Left, row_major>(
          &tile_x, u32((row + i * M) * ${STRIDE} + k), ${STRIDE}u);
        for (var j = 0; j < ${columns}; j++) {
          (*sums)[i][j] = subgroupMatrixMultiplyAccumulate(left, right[j], (*sums)[i][j]);
        }
      }
    }
  }`;
  })}
  fn leave(sums: ptr<function, Part>, lane: i32, first: i32) {
    for (var i = 0; i < ROWS; i++) {
      let row = (lane >> 6u) * 32 + i * M - first;
      if (row >= 0 && row < ${FEW}) {
        for (var j = 0; j < COLUMNS; j++) {
          subgroupMatrixStore<row_major>(
            &tile_out, u32(row * ${TILE} + (lane & (64 - SUBGROUP)) + j * N), (*sums)[i][j], ${TILE}u);
        }
      }
    }
  }
  fn leaveFew(sums: ptr<function, FewPart>, lane: i32) {
    for (var i = 0; i < FEW_ROWS; i++) {
      let row = (lane >> 5u) * ${FEW} + (lane & (32 - SUBGROUP)) / 2 + i * M;
      for (var j = 0; j < FEW_COLUMNS; j++) {
        subgroupMatrixStore<row_major>(&tile_out, u32(row * ${FEW} + j * N), (*sums)[i][j], ${FEW}u);
      }
    }
  }`;
/** Of 32 lanes each has eight rows and four columns of a part, or two rows and four columns of a few. */
const plainHead = lines`
  alias Part = array<vec4<f32>, 8>;
  alias FewPart = array<vec4<f32>, 2>;
  var<workgroup> tile_x: array<u32, ${(TILE * STRIDE) / 2}>;
  var<workgroup> tile_w: array<u32, ${(TILE * STRIDE) / 2}>;
  var<workgroup> tile_out: array<f32, ${FEW * TILE}>;
  ${brings((tile) => [
    `${tile}[at >> 1u] = pack2x16float(v.xy);`,
    `${tile}[(at >> 1u) + 1] = pack2x16float(v.zw);`,
  ])}
  ${kinds.flatMap((few) => {
    const [row, col] = few
      ? [`(lane >> 5u) * ${FEW} + ((lane >> 2u) & 7) * 2`, `(lane >> 5u) * ${FEW} + (lane & 3) * 4`]
      : ["(lane >> 6u) * 32 + ((lane >> 3u) & 3) * 8", "(lane & 32) + (lane & 7) * 4"];
    const parts = (half: string): string => `vec4<f32>(${four.map((i) => `w${i}.${half}`).join(", ")})`;
    return lines`
  fn multiply${few}(sums: ptr<function, ${few}Part>, lane: i32) {
    let row = ${row};
    let col = ${col};
    for (var k = 0; k < ${STEP / 2}; k++) {
      ${four.map((i) => `let w${i} = unpack2x16float(tile_w[(col + ${i}) * ${STRIDE / 2} + k]);`)}
      for (var i = 0; i < ${few ? 2 : 8}; i++) {
        let x = unpack2x16float(tile_x[(row + i) * ${STRIDE / 2} + k]);
        let sum = fma(vec4<f32>(x.x), ${parts("x")}, (*sums)[i]);
        (*sums)[i] = fma(vec4<f32>(x.y), ${parts("y")}, sum);
      }
    }
  }`;
  })}
  fn leave(sums: ptr<function, Part>, lane: i32, first: i32) {
    let row = (lane >> 6u) * 32 + ((lane >> 3u) & 3) * 8 - first;
    if (row >= 0 && row < ${FEW}) {
      for (var i = 0; i < 8; i++) {
        let o = (row + i) * ${TILE} + (lane & 32) + (lane & 7) * 4;
        for (var j = 0; j < 4; j++) { tile_out[o + j] = (*sums)[i][j]; }
      }
    }
  }
  fn leaveFew(sums: ptr<function, FewPart>, lane: i32) {
    for (var i = 0; i < 2; i++) {
      let o = ((lane >> 2u) * 2 + i) * ${FEW} + (lane & 3) * 4;
      for (var j = 0; j < 4; j++) { tile_out[o + j] = (*sums)[i][j]; }
    }
  }`;
/** The heads of modules that use units, as files of a bundle. */
export const heads = [
  { name: unitHeads.native, text: `${native.join("\n")}\n` },
  { name: unitHeads.plain, text: `${plainHead.join("\n")}\n` },
];

/** Rows, and a matrix of so many terms; where a lane's four columns of it are. */
interface Parts {
  readonly x: Operand;
  readonly panels: Panels;
  readonly terms: number;
  readonly at: ReturnType<typeof quadAt>;
}
/** Four numbers from k on, of which those at `terms` and behind are 0. */
const own = (v: string, terms: number, k: string): string =>
  terms % STEP ? `leading(${v}, ${terms} - ${k})` : v;
const fourAt = ({ space }: { space: string }, at: string): string =>
  `vec4<f32>(${four.map((j) => `${space}[${at} + ${j}]`).join(", ")})`;

/** The column quad, of a tile's 16, whose numbers a lane brings: eight lanes bring those of a step. */
export const TILE_QUAD = "(lane >> 3u)";
/** Adds a pair of operands to a tile's sums t0 …. */
export function tileMatrix({ x, panels, terms, at }: Parts, env: KernelEnv): Lines {
  const rows = indices(8);
  const mine = four.map((i) => rowAt(x, env, `min(m0 + (lane >> 3u) + ${16 * i}, n - 1)`));
  return lines`
    ${at.before}
    let own_k = (lane & 7) * 4;
    ${mine.map((row, i) => `let x${i} = ${row.at} + own_k;`)}
    let steps = ${Math.ceil(terms / STEP)};
    for (var span = 0; span < ${Math.ceil(terms / SPAN)}; span++) {
      var part = Part();
      let until = min(steps - span * ${STEPS}, ${STEPS});
      for (var step = 0; step < until; step++) {
        let k0 = span * ${SPAN} + step * ${STEP};
        let k = k0 + own_k;
        ${mine.map((row, i) => `let y${i} = ${own(fourAt(row, `x${i} + k0`), terms, "k")};`)}
        ${panels.some(4, at.panel, "k", at.quad)}
        workgroupBarrier();
        ${four.map((i) => `bring_x(((lane >> 3u) + ${16 * i}) * ${STRIDE} + own_k, y${i});`)}
        ${four.map((i) => {
          const o = `(${TILE_QUAD} * 4 + ${i}) * ${STRIDE} + own_k`;
          return `bring_w(${o}, ${own(turned(i), terms, "k")});`;
        })}
        workgroupBarrier();
        // Half of the lanes has half of the rows, which may not be there.
        if (m0 + (lane >> 6u) * 32 < n) { multiply(&part, lane); }
      }
      ${four.flatMap(
        (turn) => lines`
      leave(&part, lane, ${turn * FEW});
      workgroupBarrier();
      if ((ty >> 1u) == ${turn}) {
        let o = (ty & 1) * ${8 * TILE} + tx * 4;
        ${rows.map((i) => {
          const sums = four.map((j) => `tile_out[o + ${i * TILE + j}]`).join(", ");
          return `t${i} = t${i} + vec4<f32>(${sums});`;
        })}
      }
      workgroupBarrier();`,
      )}
    }`;
}
/** A tile's sums leave through what units leave them in. */
export const asNumbers: Leaving = {
  put: (at, sum) => four.map((j) => `tile_out[(${at}) * 4 + ${j}] = ${sum}.${"xyzw"[j]};`),
  get: (at, column) => `tile_out[(${at}) * 4 + (${column})]`,
};

/** Spans that are summed side by side, and columns, of a workgroup that makes a few rows. */
function fewOf(b: Body, terms: number): { slots: number; columns: number; turns: number } {
  const all = 4 / sumsOf(b);
  const spans = Math.ceil(terms / SPAN);
  const slots = Math.min(spans, all);
  return { slots, columns: FEW * Math.floor(all / slots), turns: Math.ceil(spans / slots) };
}
export const fewColumns = (b: Body, terms: number): number => fewOf(b, terms).columns;
/** The column quad whose numbers a lane of a few brings, and which of two sums it has. */
export const fewQuad = (b: Body): readonly [quad: string, which: string] => [
  "panel * 4 + ((lane >> 3u) & 3)",
  sumsOf(b) > 1 ? "(lane >> 6u)" : "0",
];
/**
 * The product of the few rows that tiles leave: a quarter of the lanes makes a span of 16 columns, all spans
 * side by side as far as there are quarters, and then their sums are added in order.
 */
export function fewMatrix(
  name: string,
  b: Body,
  env: KernelEnv,
  { x, panels, terms, at }: Parts,
  span: Span,
): string {
  const { slots, columns, turns } = fewOf(b, terms);
  const perSum = 4 / sumsOf(b);
  const mine = four.map((i) => rowAt(x, env, `min(own_row + ${4 * i}, n - 1)`));
  const two = indices((FEW * FEW) / MATRIX_LANES);
  const area = FEW * FEW;
  const sums = indices(sumsOf(b));
  const other = (s: number): string => (s ? ` + ${s * perSum * area}` : "");
  /** What so many slots side by side have of a number. */
  const fold = (e: string, from: readonly string[]): Lines => lines`
    for (var c = 0; c < ${slots}; c++) {
      ${from.map((t, s) => `${t} = ${t} + tile_out[c * ${area} + ${e}${other(s)}];`)}
    }`;
  const text = lines`
    if (wg.x * ${columns} >= ${span.count}) { return; }
    let n = ${count(b.domain)};
    let r0 = n - ${restOf(b.domain)} + wg.y * ${FEW};
    let slot = (lane >> 5u) & ${perSum - 1};
    let panel = wg.x * ${columns / 16} + min(slot / ${slots}, ${columns / 16 - 1});
    ${at.before}
    let own_k = (lane & 7) * 4;
    let own_row = r0 + ((lane >> 3u) & 3);
    let o = ((lane >> 5u) * ${FEW} + ((lane >> 3u) & 3)) * ${STRIDE} + own_k;
    let o_w = ((lane >> 5u) * ${FEW} + ((lane >> 3u) & 3) * 4) * ${STRIDE} + own_k;
    ${mine.map((row, i) => `let x${i} = ${row.at} + own_k;`)}
    ${turns > 1 ? two.map((i) => `var t${i} = vec2<f32>();`) : []}
    let last = ${(Math.ceil(terms / STEP) - 1) * STEP};
    for (var turn = 0; turn < ${turns}; turn++) {
      var part = FewPart();
      let c = turn * ${slots} + slot % ${slots};
      for (var step = 0; step < ${Math.min(STEPS, Math.ceil(terms / STEP))}; step++) {
        let wanted = c * ${SPAN} + step * ${STEP};
        // Behind the last term there is nothing to add: what is read there was read before.
        let k0 = min(wanted, last);
        let k = k0 + own_k;
        ${four.map((i) => `var y${i} = vec4<f32>();`)}
        ${mine.map(
          (row, i) =>
            `if (own_row + ${4 * i} < n) { y${i} = ${own(fourAt(row, `x${i} + k0`), terms, "k")}; }`,
        )}
        ${panels.some(4, at.panel, "k", at.quad)}
        workgroupBarrier();
        ${four.map((i) => `bring_x(o + ${4 * i * STRIDE}, y${i});`)}
        ${four.map((i) => `bring_w(o_w + ${i * STRIDE}, ${own(turned(i), terms, "k")});`)}
        workgroupBarrier();
        if (wanted <= last) { multiplyFew(&part, lane); }
      }
      leaveFew(&part, lane);
      workgroupBarrier();
      ${
        turns > 1
          ? two.flatMap(
              (i) => lines`
      {
        let e = lane + ${i * MATRIX_LANES};
        ${fold(
          "e",
          sums.map((s) => `t${i}[${s}]`),
        )}
      }`,
            )
          : []
      }
    }
    ${
      turns > 1
        ? two.flatMap((i) =>
            sums.map((s) => `tile_out[lane + ${i * MATRIX_LANES}${other(s)}] = t${i}[${s}];`),
          )
        : []
    }
    for (var i = lane; i < ${columns * FEW}; i += ${MATRIX_LANES}) {
      let row = r0 + ((i >> 4u) & ${FEW - 1});
      let col = wg.x * ${columns} + (i >> 8u) * ${FEW} + (i & ${FEW - 1});
      if (row < n && col < ${span.count}) {
        ${
          turns > 1
            ? span.put(name, "row", "col", sums.map((s) => `tile_out[i${other(s)}]`).join(", "))
            : lines`
        var total = vec2<f32>();
        ${fold(
          `(i >> 8u) * ${slots * area} + (i & ${area - 1})`,
          sums.map((s) => `total[${s}]`),
        )}
        ${span.put(name, "row", "col", sums.map((s) => `total[${s}]`).join(", "))}`
        }
      }
    }`;
  return `${epilogue(name, b, env)}\n${fn(name, text)}`;
}
