/**
 * Products without workgroup memory or barriers, which a CPU behind WebGPU pays dearly for: a lane owns a
 * quad of columns, or two, of a few rows, a tile.
 */
import type { KernelEnv } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { deltasOf } from "../deltas.ts";
import { inTurn } from "./alike.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, header, rowAt, shard, WG } from "./wgsl.ts";
import { deltasOfTile } from "./wgsl_deltas.ts";
import type { Panels } from "./wgsl_panels.ts";
import {
  CHUNK,
  epilogue,
  indices,
  isLast,
  SPAN,
  type Span,
  sumSoFar,
  type Terms,
  wholeOf,
} from "./wgsl_products.ts";

/** Rows of a tile: two quads. */
export const PLAIN_ROWS = 8;
/** The same, for trials: a model's kernels compile in two thirds of the time. */
export const QUICK_ROWS = 2;
/**
 * A tail of at least so many takes a tile too, its missing rows being the last one again; of fewer each is
 * alone. Tiles for trials have all tails.
 */
export const PLAIN_FROM = 3;

/** Where a row of an operand is. */
export interface Place {
  readonly space: string;
  readonly at: string;
}
/** Lanes of a workgroup for products: few, so that of one row's there are workgroups for all cores. */
export const PLAIN_LANES = 16;
/** Quads of columns of a lane for y = x·Wᵀ: with two of them it reads a row half as often. */
export const plainQuads = ({ plainRows }: KernelEnv): number => (plainRows < PLAIN_FROM ? 1 : 2);
/** Where the quads of a lane begin, that many: names of variables. */
const columnsOf = (quads: number): string[] => indices(quads).map((q) => (q ? `col${q}` : "col"));
/**
 * The columns of a lane, a quad or more, or fewer of so many, from `own` on; `col` …: where its quads are; of
 * one that is not there, but read for others, where the last is.
 */
export const ownColumns = (count: string | number, lanes: number = WG, quads = 1): Lines => {
  const own = 4 * quads;
  return lines`
    let own = (wg.x * ${lanes} + lane) * ${own};
    if (idle(own >= ${count})) { return; }
    let columns = min(${own}, ${count} - own);
    ${columnsOf(quads).map(
      (col, q) => `let ${col} = min(own${q ? ` + ${4 * q}` : ""}, (${count} - 1) & ~3);`,
    )}`;
};
/** Places of the rows of an operand that a tile of `n` rows reads. */
const rowsOf = (o: Operand, env: KernelEnv, n: number): Place[] =>
  rowNames(n).map((row) => rowAt(o, env, row));
const rowNames = (n: number): string[] => indices(n).map((i) => (n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));
/** How what is multiplied is rounded, and how many terms are a chunk. */
interface Rounding {
  readonly of: (values: string) => string;
  readonly chunk: number;
}
const exact: Rounding = { of: (values) => values, chunk: CHUNK };
const halves: Rounding = { of: (values) => `to_half(${values}, u32(${header("zero")}))`, chunk: SPAN };
/**
 * Adds products of so many terms to the sums t0 …, one for each row in `at`, and then of the next quad.
 * `values`, of each quad, are statements that declare, as `name` and a number, its columns at each of `count`
 * terms from k on, at most `step`.
 */
function sumsOf(
  at: readonly Place[],
  { all: terms, sharded }: Terms,
  step: number,
  name: string,
  values: readonly ((count: number) => Lines)[],
  { of, chunk: length }: Rounding = exact,
): Lines {
  const sumsAt = indices(values.length * at.length);
  const rows = (count: number): Lines =>
    at.flatMap(({ space }, i) => {
      if (step > 2)
        return indices(Math.ceil(count / 4)).map((q) => {
          const last = Math.min(4, count - q * 4) - 1;
          return `let y${i}_${q} = ${of(`four_${space}(x${i} + k + ${4 * q}, 1, ${last})`)};`;
        });
      // Two terms of two rows at once.
      if (i % 2) return [`let y${i}_0 = y${i - 1}.zw;`];
      const both = `two_${space}(x${i} + k, x${i + 1} + k, ${count - 1})`;
      return [`let y${i} = ${of(both)};`, `let y${i}_0 = y${i}.xy;`];
    });
  const sums = (count: number): Lines => lines`
    ${rows(count)}
    ${values.flatMap(
      (quad, q) => lines`
        {
          ${quad(count)}
          ${at.flatMap((_, i) => {
            const a = `a${q * at.length + i}`;
            return indices(count).map(
              (j) => `${a} = fma(vec4<f32>(y${i}_${j >> 2}[${j & 3}]), ${name}${j}, ${a});`,
            );
          })}
        }`,
    )}`;
  const [perChunk, turns, tail] = [length / step, Math.floor(terms / step), terms % step];
  const last = sharded ? `c == chunks - 1 && ${isLast(terms)}` : "c == chunks - 1";
  // One copy of the loop's body, for whole chunks and for the last: what a driver compiles it pays for.
  // Bounds are variables, so that matrices of other sizes may share the text.
  const chunk: Lines = lines`
    ${sumsAt.map((i) => `var a${i} = vec4<f32>();`)}
    let until = min(turns - c * ${perChunk}, ${perChunk});
    for (var i = 0; i < until; i++) {
      let k = c * ${length} + i * ${step};
      ${sums(step)}
    }
    ${
      tail
        ? lines`
    if (${last}) {
      let k = turns * ${step};
      ${sums(tail)}
    }`
        : []
    }
    ${sumsAt.map((i) => `t${i} = t${i} + a${i};`)}`;
  return lines`
    ${at.map((row, i) => `let x${i} = ${row.at}${sharded ? ` + ${shard.first}` : ""};`)}
    let turns = ${sharded ? `${shard.rows} / ${step}` : turns};
    let chunks = ${sharded ? `(${shard.rows} + ${length - 1}) / ${length}` : Math.ceil(terms / length)};
    for (var c = 0; c < chunks; c++) {
      ${chunk}
    }`;
}
/** Where a quad of columns is in panels. */
export interface Quad {
  readonly panel: string;
  readonly quad: string;
}
export const ownQuad: Quad = { panel: "col >> 4u", quad: "((col >> 2u) & 3)" };
/**
 * t0 … += x·Wᵀ of a matrix [n, k] at quads of panels, `at` the rows of x. A turn of the loop costs a CPU as
 * much as some terms: it has four at least. But with two quads of many rows these would be more than the 32
 * KB of instructions that most CPUs have at hand, and take 1.7 times as long as two at a time.
 */
const inOrder =
  (rounding: Rounding) =>
  (
    at: readonly Place[],
    panels: Panels,
    { k, quads = [ownQuad] }: { readonly k: number; readonly quads?: readonly Quad[] },
  ): Lines => {
    const { of } = rounding;
    const step = Math.max(quads.length > 1 && at.length > 1 ? 2 : 4, panels.run);
    const rounded = (count: number): Lines => indices(count).map((j) => `let u${j} = ${of(`v${j}`)};`);
    const values = quads.map(({ panel, quad }) => (count: number): Lines => {
      const place = [panel, "k", quad] as const;
      const read =
        panels.run < 4
          ? panels.some(count, ...place)
          : lines`
            let w = weights[${panels.at(...place)}];
            ${panels.scales(...place)}
            ${indices(count).map((j) => `let v${j} = ${panels.value("w", j)};`)}`;
      return rounding === exact ? read : [...read, ...rounded(count)];
    });
    return sumsOf(at, { all: k, sharded: false }, step, rounding === exact ? "v" : "u", values, rounding);
  };
export const ascending = inOrder(exact);
/** The same of what is rounded to f16, in spans. */
export const ascendingHalves = inOrder(halves);
const four = indices(4);
/** Of v0 … v3, four rows of W at each of four columns, row j at all of them. */
export const turned = (j: number): string => `vec4<f32>(${four.map((i) => `v${i}.${"xyzw"[j]}`).join(", ")})`;
/** t0 … += dy·W, `at` the rows of dy; at a quad of columns. */
export const across = (at: readonly Place[], panels: Panels, terms: Terms): Lines =>
  sumsOf(at, terms, 4, "q", [
    (count) => lines`
      ${panels.some(4, "k >> 4u", "col", "((k >> 2u) & 3)")}
      ${four.slice(0, count).map((j) => `let q${j} = ${turned(j)};`)}`,
  ]);

/** Begins the sums of rows with what shards before this one left. */
export const goesOn = (b: Body, env: KernelEnv, rows: readonly string[]): Lines => lines`
  if (${shard.first} > 0) {
    ${rows.map((row, i) => `t${i} = ${sumSoFar(b, env, row, "col")};`)}
  }`;
/** The rows of a tile: their places in an operand, and their names; and where its quads of columns begin. */
export interface Tile {
  readonly at: (x: Operand, env: KernelEnv) => readonly Place[];
  readonly rows: readonly string[];
  readonly cols: readonly string[];
}
/** The product; each of `sums` adds its own into t0 … of a tile: a quad of all rows, then the next. */
export function plain(
  name: string,
  b: Body,
  env: KernelEnv,
  quads: number,
  sums: readonly ((tile: Tile) => Lines)[],
  span: Span = wholeOf(b),
): string {
  const tile = env.plainRows;
  const cols = columnsOf(quads);
  /** Of a sum or delta in `out`: rows of a quad, then of the next. */
  const block = quads * tile;
  const rows = (n: number): Lines =>
    inTurn(
      sums.map(
        (sum, s) => lines`
          ${indices(quads * n).map((i) => `var t${i} = vec4<f32>();`)}
          ${sum({ at: (x, env) => rowsOf(x, env, n), rows: rowNames(n), cols })}
          ${indices(quads).flatMap((q) =>
            indices(n).map(
              (i) => `out[${s * block + q * tile} + ${n === 1 ? "r - r0" : i}] = t${q * n + i};`,
            ),
          )}`,
      ),
      "s",
    );
  const deltas = span.whole ? deltasOf(b) : [];
  const blocks = sums.length + deltas.length;
  const own = quads > 1 ? [` + c / 4 * ${tile}`, "c % 4"] : ["", "c"];
  const results = indices(blocks).map((s) => `out[i${s ? ` + ${s * block}` : ""}${own[0]}][${own[1]}]`);
  const nth = quads > 1 ? ` + q * ${tile}` : "";
  const beside = deltasOfTile(b, env, deltas, (i) => `${(sums.length + i) * block}${nth}`);
  // One copy of the epilogue, whatever the tile: it is the larger part of the text.
  const text = lines`
    let n = ${count(b.domain)};
    let r0 = wg.y * ${tile};
    ${ownColumns(span.count, PLAIN_LANES, quads)}
    var out = array<vec4<f32>, ${blocks * block}>();
    ${
      // A unit has many rows, and a second form of its sums would take a quarter of the time to compile.
      b.domain === "W" || tile < PLAIN_FROM
        ? lines`
    {
      ${rows(tile)}
    }`
        : lines`
    if (n - r0 >= ${PLAIN_FROM}) {
      ${rows(tile)}
    } else {
      for (var r = r0; r < n; r++) {
        ${rows(1)}
      }
    }`
    }
    ${
      quads > 1 && beside.length
        ? lines`
    let cols = array<i32, ${quads}>(${cols.join(", ")});
    for (var q = 0; q < ${quads}; q++) {
      let col = cols[q];
      ${beside}
    }`
        : beside
    }
    for (var i = 0; i < min(${tile}, n - r0); i++) {
      for (var c = 0; c < columns; c++) { ${span.put(name, "r0 + i", "own + c", results.join(", "))} }
    }`;
  return `${epilogue(name, b, env, deltas)}\n${fn(name, text)}`;
}
