/**
 * Products of matrix units, a class of numerics of its own: what a product takes of rows and of a matrix is
 * rounded to f16, so that products of two are exact in f32. K is cut into spans of 512: a span is summed by
 * the unit, in f32, and the spans' sums are added in order. A number depends on its own row and column and on
 * K alone, so many rows and few have the same bits.
 *
 * What units do stands in the head of a module, which is one of two: `native`, with WGSL's subgroup matrices
 * of the shape that a device has, and `plain`, where lanes sum alone, ascending, for devices without. The
 * kernels below are of either. One file: what both heads say, and who calls it, is one contract.
 */
import { unitHeads } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import { type Body, type Operand, sumsOf } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, restOf, rowAt } from "./wgsl.ts";
import type { Panels } from "./wgsl_panels.ts";
import { turned } from "./wgsl_plain.ts";
import { epilogue, indices, ofSums, type quadAt, SPAN, type Span } from "./wgsl_products.ts";

/** Rows and columns of a tile. */
const ROWS = 64;
const COLUMNS = 128;
/** Rows, and columns, of what a quarter of a workgroup makes of a few. */
const FEW = 16;
/** Numbers of `tile_out`: of 16 rows, half of a tile's columns; of a few all. */
const OUT = COLUMNS / 2;
/**
 * Terms that a workgroup brings at a time, and numbers from a row's to the next's: rows side by side begin in
 * other banks, at multiples of 16 bytes.
 */
const many = { step: 16, stride: 24, rows: "PART_ROWS", columns: "PART_COLUMNS" } as const;
const few = { step: 32, stride: 40, rows: "FEW_ROWS", columns: "FEW_COLUMNS" } as const;
const SIZES = {
  x: Math.max(ROWS * many.stride, 4 * FEW * few.stride),
  w: Math.max(COLUMNS * many.stride, 4 * FEW * few.stride),
};
export const MATRIX_LANES = { many: 256, few: 128 } as const;
export const MATRIX_ROWS = FEW;
export const matrixColumns = (b: Body): number => COLUMNS / sumsOf(b);
const four = indices(4);

/**
 * `bring_x`, `bring_w`: two numbers of a row, or of a column, rounded on their way into the workgroup's
 * memory. `Part`: sums of 32 rows and 32 columns of a tile, `FewPart`: of a quarter's 16 and 16. `multiply`
 * adds to them what was brought. `leave` puts, of a tile's rows from `first` on, 16 into `tile_out`, and of
 * every 64 columns the first 32 or the others; `leave_few` all.
 *
 * M, N, K and SUBGROUP, a subgroup's lanes, are constants that the device's own shape brings. Lanes of a
 * subgroup lie side by side: 128 of them have 32 rows, each subgroup as many columns as it has lanes.
 */
const native = lines`
  enable f16;
  enable subgroups;
  enable chromium_experimental_subgroup_matrix;
  diagnostic(off, chromium.subgroup_matrix_uniformity);
  alias Left = subgroup_matrix_left<f16, K, M>;
  alias Right = subgroup_matrix_right<f16, N, K>;
  alias Sums = subgroup_matrix_result<f32, N, M>;
  const PART_ROWS = 32 / M;
  const PART_COLUMNS = SUBGROUP / N;
  const FEW_ROWS = SUBGROUP / 2 / M;
  const FEW_COLUMNS = ${FEW} / N;
  alias Part = array<array<Sums, PART_COLUMNS>, PART_ROWS>;
  alias FewPart = array<array<Sums, FEW_COLUMNS>, FEW_ROWS>;
  var<workgroup> tile_x: array<f16, ${SIZES.x}>;
  var<workgroup> tile_w: array<f16, ${SIZES.w}>;
  var<workgroup> tile_out: array<f32, ${FEW * OUT}>;
  fn bring_x(at: i32, v: vec2<f32>) {
    let h = vec2<f16>(v);
    tile_x[at] = h.x;
    tile_x[at + 1] = h.y;
  }
  fn bring_w(at: i32, v: vec2<f32>) {
    let h = vec2<f16>(v);
    tile_w[at] = h.x;
    tile_w[at + 1] = h.y;
  }
  ${nativeMultiply("multiply", "Part", many, "(lane >> 7u) * 32", "lane & (128 - SUBGROUP)")}
  ${nativeMultiply(
    "multiply_few",
    "FewPart",
    few,
    `(lane >> 5u) * ${FEW} + (lane & (32 - SUBGROUP)) / 2`,
    `(lane >> 5u) * ${FEW}`,
  )}
  fn leave(sums: ptr<function, Part>, lane: i32, first: i32, half: i32) {
    let col = ((lane >> 6u) & 1) * 32 + (lane & (32 - SUBGROUP));
    for (var i = 0; i < PART_ROWS; i++) {
      let row = (lane >> 7u) * 32 + i * M - first;
      if (((lane >> 5u) & 1) == half && row >= 0 && row < ${FEW}) {
        for (var j = 0; j < PART_COLUMNS; j++) {
          subgroupMatrixStore<row_major>(&tile_out, u32(row * ${OUT} + col + j * N), (*sums)[i][j], ${OUT}u);
        }
      }
    }
  }
  fn leave_few(sums: ptr<function, FewPart>, lane: i32) {
    for (var i = 0; i < FEW_ROWS; i++) {
      let row = (lane >> 5u) * ${FEW} + (lane & (32 - SUBGROUP)) / 2 + i * M;
      for (var j = 0; j < FEW_COLUMNS; j++) {
        subgroupMatrixStore<row_major>(&tile_out, u32(row * ${FEW} + j * N), (*sums)[i][j], ${FEW}u);
      }
    }
  }`;
function nativeMultiply(
  name: string,
  type: string,
  { step, stride, rows, columns }: typeof many | typeof few,
  row: string,
  col: string,
): Lines {
  return lines`
    fn ${name}(sums: ptr<function, ${type}>, lane: i32) {
      let row = ${row};
      let col = ${col};
      for (var k = 0; k < ${step}; k += K) {
        var right = array<Right, ${columns}>();
        for (var j = 0; j < ${columns}; j++) {
          right[j] = subgroupMatrixLoad<Right, col_major>(
            &tile_w, u32((col + j * N) * ${stride} + k), ${stride}u);
        }
        for (var i = 0; i < ${rows}; i++) {
          let left = subgroupMatrixLoad<Left, row_major>(
            &tile_x, u32((row + i * M) * ${stride} + k), ${stride}u);
          for (var j = 0; j < ${columns}; j++) {
            (*sums)[i][j] = subgroupMatrixMultiplyAccumulate(left, right[j], (*sums)[i][j]);
          }
        }
      }
    }`;
}
/** Of 32 lanes each has eight rows and four columns of a part, or two rows and four columns of a few. */
const plainHead = lines`
  alias Part = array<vec4<f32>, 8>;
  alias FewPart = array<vec4<f32>, 2>;
  var<workgroup> tile_x: array<u32, ${SIZES.x / 2}>;
  var<workgroup> tile_w: array<u32, ${SIZES.w / 2}>;
  var<workgroup> tile_out: array<f32, ${FEW * OUT}>;
  fn bring_x(at: i32, v: vec2<f32>) {
    tile_x[at >> 1u] = pack2x16float(v);
  }
  fn bring_w(at: i32, v: vec2<f32>) {
    tile_w[at >> 1u] = pack2x16float(v);
  }
  ${plainMultiply(
    "multiply",
    "Part",
    { ...many, own: 8 },
    "(lane >> 7u) * 32 + ((lane >> 3u) & 3) * 8",
    "(lane & 96) + (lane & 7) * 4",
  )}
  ${plainMultiply(
    "multiply_few",
    "FewPart",
    { ...few, own: 2 },
    `(lane >> 5u) * ${FEW} + ((lane >> 2u) & 7) * 2`,
    `(lane >> 5u) * ${FEW} + (lane & 3) * 4`,
  )}
  fn leave(sums: ptr<function, Part>, lane: i32, first: i32, half: i32) {
    let row = (lane >> 7u) * 32 + ((lane >> 3u) & 3) * 8 - first;
    if (((lane >> 5u) & 1) == half && row >= 0 && row < ${FEW}) {
      for (var i = 0; i < 8; i++) {
        let o = (row + i) * ${OUT} + ((lane >> 6u) & 1) * 32 + (lane & 7) * 4;
        for (var j = 0; j < 4; j++) { tile_out[o + j] = (*sums)[i][j]; }
      }
    }
  }
  fn leave_few(sums: ptr<function, FewPart>, lane: i32) {
    for (var i = 0; i < 2; i++) {
      let o = ((lane >> 2u) * 2 + i) * ${FEW} + (lane & 3) * 4;
      for (var j = 0; j < 4; j++) { tile_out[o + j] = (*sums)[i][j]; }
    }
  }`;
function plainMultiply(
  name: string,
  type: string,
  { step, stride, own }: { step: number; stride: number; own: number },
  row: string,
  col: string,
): Lines {
  const parts = (half: string): string => `vec4<f32>(${four.map((i) => `w${i}.${half}`).join(", ")})`;
  return lines`
    fn ${name}(sums: ptr<function, ${type}>, lane: i32) {
      let row = ${row};
      let col = ${col};
      for (var k = 0; k < ${step / 2}; k++) {
        ${four.map((i) => `let w${i} = unpack2x16float(tile_w[(col + ${i}) * ${stride / 2} + k]);`)}
        for (var i = 0; i < ${own}; i++) {
          let x = unpack2x16float(tile_x[(row + i) * ${stride / 2} + k]);
          let sum = fma(vec4<f32>(x.x), ${parts("x")}, (*sums)[i]);
          (*sums)[i] = fma(vec4<f32>(x.y), ${parts("y")}, sum);
        }
      }
    }`;
}
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
/** Four numbers of a row from k on, two by two; those at `terms` and behind are 0. */
const brought = (tile: "x" | "w", at: string, v: string, terms: number, k: string, step: number): Lines => {
  const own = terms % step ? `leading(${v}, ${terms} - ${k})` : v;
  return ["xy", "zw"].map((half, i) => `bring_${tile}(${at}${i ? " + 2" : ""}, ${own}.${half});`);
};
const fourAt = ({ space }: { space: string }, at: string): string =>
  `vec4<f32>(${four.map((j) => `${space}[${at} + ${j}]`).join(", ")})`;

/** The column quad, of a tile's 32, whose numbers a lane brings, two terms of a step. */
export const manyQuad = (b: Body): readonly [quad: string, which: string] => {
  const quads = matrixColumns(b) / 4;
  return [`n0 / 4 + ((lane >> 3u) & ${quads - 1})`, "(lane >> 7u)"];
};
/**
 * A product of many rows: a tile of 64 rows and 128 columns, of two sums 64 of each. A lane brings four
 * numbers of x and two of each of four columns; it has eight rows and four columns of the spans' sums.
 */
export function manyMatrix(
  name: string,
  b: Body,
  env: KernelEnv,
  { x, panels, terms, at }: Parts,
  span: Span,
): string {
  const rows = indices(8);
  const columns = matrixColumns(b);
  const { step, stride } = many;
  const mine = rowAt(x, env, "min(m0 + (lane >> 2u), n - 1)");
  const steps = SPAN / step;
  const pair = (i: number): string => `vec2<f32>(v0.${"xyzw"[i]}, v1.${"xyzw"[i]})`;
  const w = (i: number): string =>
    terms % step ? `leading(vec4<f32>(${pair(i)}, 0.0f, 0.0f), ${terms} - k_w).xy` : pair(i);
  /** Sixteen rows, and half of the columns, at a time; `own`: of a lane that has some of them. */
  const turns = (before: Lines, own: (i: number, at: string) => Lines, then: Lines): Lines => lines`
    for (var turn = 0; turn < ${(2 * ROWS) / FEW}; turn++) {
      let first = (turn >> 1u) * ${FEW};
      let half = turn & 1;
      ${before}
      if ((ty >> 1u) == (turn >> 1u) && ((tx >> 3u) & 1) == half) {
        let o = (ty & 1) * ${8 * OUT} + (tx >> 4u) * 32 + (tx & 7) * 4;
        ${rows.flatMap((i) => own(i, `o + ${i * OUT}`))}
      }
      workgroupBarrier();
      ${then}
    }`;
  const lanes = sumsOf(b) > 1 ? 32 : 64;
  const perTurn = MATRIX_LANES.many / lanes;
  const col = sumsOf(b) > 1 ? "half * 32 + own" : "(own >> 5u) * 64 + half * 32 + (own & 31)";
  const results = ofSums(b, (i) => `tile_out[r * ${OUT} + own${i ? " + 32" : ""}]`);
  const added = (i: number, o: string): Lines => [
    `t${i} = t${i} + vec4<f32>(${four.map((j) => `tile_out[${o} + ${j}]`).join(", ")});`,
  ];
  const put = (i: number, o: string): Lines => four.map((j) => `tile_out[${o} + ${j}] = t${i}.${"xyzw"[j]};`);
  const stored = lines`
    for (var r = lane / ${lanes}; r < ${FEW}; r += ${perTurn}) {
      let row = m0 + first + r;
      let col = n0 + ${col};
      if (row < n && col < ${span.count}) {
        ${span.put(name, "row", "col", results)}
      }
    }
    workgroupBarrier();`;
  const text = lines`
    let n = ${count(b.domain)} - ${restOf(b.domain)};
    let m0 = wg.y * ${ROWS};
    let n0 = wg.x * ${columns};
    if (m0 >= n || n0 >= ${span.count}) { return; }
    let tx = lane & 31;
    let ty = (lane >> 5u) & 7;
    ${rows.map((i) => `var t${i} = vec4<f32>();`)}
    ${at.before}
    let own_x = (lane & 3) * 4;
    let own_w = (lane & 7) * 2;
    let x0 = ${mine.at} + own_x;
    let steps = ${Math.ceil(terms / step)};
    for (var span = 0; span < ${Math.ceil(terms / SPAN)}; span++) {
      var part = Part();
      let until = min(steps - span * ${steps}, ${steps});
      for (var step = 0; step < until; step++) {
        let k0 = span * ${SPAN} + step * ${step};
        let k_w = k0 + own_w;
        let y = ${fourAt(mine, "x0 + k0")};
        ${panels.some(2, at.panel, "k_w", at.quad)}
        workgroupBarrier();
        ${brought("x", `(lane >> 2u) * ${stride} + own_x`, "y", terms, "(k0 + own_x)", step)}
        ${four.map((i) => `bring_w(((lane >> 3u) * 4 + ${i}) * ${stride} + own_w, ${w(i)});`)}
        workgroupBarrier();
        // Half of the lanes has half of the rows, which may not be there.
        if (m0 + (lane >> 7u) * 32 < n) { multiply(&part, lane); }
      }
      ${turns(["leave(&part, lane, first, half);", "workgroupBarrier();"], added, [])}
    }
    let own = lane & ${lanes - 1};
    ${turns([], put, stored)}`;
  return `${epilogue(name, b, env)}\n${fn(name, text)}`;
}

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
  const { step, stride } = few;
  const perSum = 4 / sumsOf(b);
  const mine = four.map((i) => rowAt(x, env, `min(own_row + ${4 * i}, n - 1)`));
  const two = indices((FEW * FEW) / MATRIX_LANES.few);
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
    let o = ((lane >> 5u) * ${FEW} + ((lane >> 3u) & 3)) * ${stride} + own_k;
    let o_w = ((lane >> 5u) * ${FEW} + ((lane >> 3u) & 3) * 4) * ${stride} + own_k;
    ${mine.map((row, i) => `let x${i} = ${row.at} + own_k;`)}
    ${turns > 1 ? two.map((i) => `var t${i} = vec2<f32>();`) : []}
    let last = ${(Math.ceil(terms / step) - 1) * step};
    for (var turn = 0; turn < ${turns}; turn++) {
      var part = FewPart();
      let c = turn * ${slots} + slot % ${slots};
      for (var step = 0; step < ${Math.min(SPAN / step, Math.ceil(terms / step))}; step++) {
        let wanted = c * ${SPAN} + step * ${step};
        // Behind the last term there is nothing to add: what is read there was read before.
        let k0 = min(wanted, last);
        let k = k0 + own_k;
        ${four.map((i) => `var y${i} = vec4<f32>();`)}
        ${mine.map((row, i) => `if (own_row + ${4 * i} < n) { y${i} = ${fourAt(row, `x${i} + k0`)}; }`)}
        ${panels.some(4, at.panel, "k", at.quad)}
        workgroupBarrier();
        ${four.flatMap((i) => brought("x", `o + ${4 * i * stride}`, `y${i}`, terms, "k", step))}
        ${four.flatMap((i) => brought("w", `o_w + ${i * stride}`, turned(i), terms, "k", step))}
        workgroupBarrier();
        if (wanted <= last) { multiply_few(&part, lane); }
      }
      leave_few(&part, lane);
      workgroupBarrier();
      ${
        turns > 1
          ? two.flatMap(
              (i) => lines`
      {
        let e = lane + ${i * MATRIX_LANES.few};
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
            sums.map((s) => `tile_out[lane + ${i * MATRIX_LANES.few}${other(s)}] = t${i}[${s}];`),
          )
        : []
    }
    for (var i = lane; i < ${columns * FEW}; i += ${MATRIX_LANES.few}) {
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
