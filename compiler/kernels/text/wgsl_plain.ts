/**
 * Products without workgroup memory or barriers, which a CPU behind WebGPU pays dearly for: a lane owns four
 * columns of a few rows, a tile.
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
/**
 * The columns of a lane, four or fewer of so many, from `own` on; `col`: of one that has none, but reads for
 * others, the last.
 */
export const ownColumns = (count: string | number): Lines => lines`
  let own = (wg.x * ${WG} + lane) * 4;
  if (idle(own >= ${count})) { return; }
  let columns = min(4, ${count} - own);
  let col = min(own, (${count} - 1) & ~3);`;
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
 * Adds products of so many terms to the sums t0 …, one for each row in `at`. `values` are statements that
 * declare, as `name` and a number, four columns at each of `count` terms from k on, at most `step`.
 */
function sumsOf(
  at: readonly Place[],
  { all: terms, sharded }: Terms,
  step: number,
  name: string,
  values: (count: number) => Lines,
  { of, chunk: length }: Rounding = exact,
): Lines {
  const rows = indices(at.length);
  const sums = (count: number): Lines => lines`
    ${values(count)}
    ${at.flatMap(({ space }, i) =>
      indices(Math.ceil(count / 4)).flatMap((q) => {
        const n = Math.min(4, count - q * 4);
        return [
          `let y${i}_${q} = ${of(`four_${space}(x${i} + k + ${4 * q}, 1, ${n - 1})`)};`,
          ...indices(n).map((j) => `a${i} = fma(vec4<f32>(y${i}_${q}[${j}]), ${name}${4 * q + j}, a${i});`),
        ];
      }),
    )}`;
  const [perChunk, turns, tail] = [length / step, Math.floor(terms / step), terms % step];
  const last = sharded ? `c == chunks - 1 && ${isLast(terms)}` : "c == chunks - 1";
  // One copy of the loop's body, for whole chunks and for the last: what a driver compiles it pays for.
  // Bounds are variables, so that matrices of other sizes may share the text.
  const chunk: Lines = lines`
    ${rows.map((i) => `var a${i} = vec4<f32>();`)}
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
    ${rows.map((i) => `t${i} = t${i} + a${i};`)}`;
  return lines`
    ${at.map((row, i) => `let x${i} = ${row.at}${sharded ? ` + ${shard.first}` : ""};`)}
    let turns = ${sharded ? `${shard.rows} / ${step}` : turns};
    let chunks = ${sharded ? `(${shard.rows} + ${length - 1}) / ${length}` : Math.ceil(terms / length)};
    for (var c = 0; c < chunks; c++) {
      ${chunk}
    }`;
}
/**
 * t0 … += x·Wᵀ of a matrix [n, k] at a quad of a panel, `at` the rows of x; at least four terms in a turn of
 * the loop, which costs a CPU as much as some of them.
 */
const inOrder =
  (rounding: Rounding) =>
  (
    at: readonly Place[],
    panels: Panels,
    { k, panel = "col >> 4u", quad = "((col >> 2u) & 3)" }: { k: number; panel?: string; quad?: string },
  ): Lines => {
    const place = [panel, "k", quad] as const;
    const { of } = rounding;
    const step = Math.max(4, panels.run);
    const values = (count: number): Lines =>
      panels.run < 4
        ? panels.some(count, ...place)
        : lines`
          let w = weights[${panels.at(...place)}];
          ${panels.scales(...place)}
          ${indices(count).map((j) => `let v${j} = ${panels.value("w", j)};`)}`;
    const rounded = (count: number): Lines => indices(count).map((j) => `let u${j} = ${of(`v${j}`)};`);
    const [name, all] =
      rounding === exact
        ? ["v", values]
        : ["u", (count: number): Lines => [...values(count), ...rounded(count)]];
    return sumsOf(at, { all: k, sharded: false }, step, name, all, rounding);
  };
export const ascending = inOrder(exact);
/** The same of what is rounded to f16, in spans. */
export const ascendingHalves = inOrder(halves);
const four = indices(4);
/** Of v0 … v3, four rows of W at each of four columns, row j at all of them. */
export const turned = (j: number): string => `vec4<f32>(${four.map((i) => `v${i}.${"xyzw"[j]}`).join(", ")})`;
/** t0 … += dy·W, `at` the rows of dy. */
export const across = (at: readonly Place[], panels: Panels, terms: Terms): Lines =>
  sumsOf(
    at,
    terms,
    4,
    "q",
    (count) => lines`
      ${panels.some(4, "k >> 4u", "col", "((k >> 2u) & 3)")}
      ${four.slice(0, count).map((j) => `let q${j} = ${turned(j)};`)}`,
  );

/** Begins the sums of rows with what shards before this one left. */
export const goesOn = (b: Body, env: KernelEnv, rows: readonly string[]): Lines => lines`
  if (${shard.first} > 0) {
    ${rows.map((row, i) => `t${i} = ${sumSoFar(b, env, row, "col")};`)}
  }`;
/**
 * The product; each of `sums` adds its own into t0 … of a tile, of such rows, and of rows of x at their
 * places.
 */
export function plain(
  name: string,
  b: Body,
  env: KernelEnv,
  sums: readonly ((at: (x: Operand, env: KernelEnv) => readonly Place[], rows: readonly string[]) => Lines)[],
  span: Span = wholeOf(b),
): string {
  const tile = env.plainRows;
  const rows = (n: number): Lines =>
    inTurn(
      sums.map(
        (sum, s) => lines`
          ${indices(n).map((i) => `var t${i} = vec4<f32>();`)}
          ${sum((x, env) => rowsOf(x, env, n), rowNames(n))}
          ${indices(n).map((i) => `out[${s * tile} + ${n === 1 ? "r - r0" : i}] = t${i};`)}`,
      ),
      "s",
    );
  const deltas = span.whole ? deltasOf(b) : [];
  const blocks = sums.length + deltas.length;
  const results = indices(blocks).map((s) => `out[i${s ? ` + ${s * tile}` : ""}][c]`);
  // One copy of the epilogue, whatever the tile: it is the larger part of the text.
  const text = lines`
    let n = ${count(b.domain)};
    let r0 = wg.y * ${tile};
    ${ownColumns(span.count)}
    var out = array<vec4<f32>, ${blocks * tile}>();
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
    ${deltasOfTile(b, env, deltas, sums.length * tile)}
    for (var i = 0; i < min(${tile}, n - r0); i++) {
      for (var c = 0; c < columns; c++) { ${span.put(name, "r0 + i", "own + c", results.join(", "))} }
    }`;
  return `${epilogue(name, b, env, deltas)}\n${fn(name, text)}`;
}
