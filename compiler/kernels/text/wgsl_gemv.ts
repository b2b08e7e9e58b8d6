/** The product of a few rows, whose time is that of reading the matrix. */
import type { KernelEnv } from "../../kernel.ts";
import { type Body, type Operand, sumsOf } from "../body.ts";
import { foldShared } from "./library.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, header, restOf, rowAt } from "./wgsl.ts";
import { fewIntegers } from "./wgsl_integers.ts";
import { madeRow } from "./wgsl_made.ts";
import type { Panels } from "./wgsl_panels.ts";
import { CHUNK, chunkOf, epilogue, indices, type quadAt, type Span, wholeOf } from "./wgsl_products.ts";

/**
 * Lanes of a workgroup that makes `terms` a sum: four for each chunk, of which some wait for their turn.
 * Where a body has two sums, half of the lanes make the one and half the other.
 */
export const gemvLanes = (b: Body, terms: number): number => (sumsOf(b) > 1 || terms > 16 * CHUNK ? 128 : 64);
const slotsOf = (b: Body, lanes: number): number => lanes / (4 * sumsOf(b));
/** Columns of a workgroup. */
export function gemvColumns(b: Body, terms: number, lanes: number): number {
  const slots = slotsOf(b, lanes);
  return 16 * Math.max(1, Math.floor(slots / Math.ceil(terms / CHUNK)));
}
/** Rows of a workgroup, which share what is read of the matrix. */
export const GEMV_ROWS = 4;

/** The rows, of so many terms; the matrix, and where in it a lane's four columns are. */
interface Parts {
  readonly x: Operand;
  readonly panels: Panels;
  readonly terms: number;
  readonly at: ReturnType<typeof quadAt>;
  /** How it is multiplied as integers, if it is. */
  readonly integers: Parameters<typeof fewIntegers>[2] | null;
}
/** The one of `names` that `index` says; they are numbered from `from` on. */
const pick = (index: string, names: readonly string[], from = 0): string => {
  if (names.length === 1) return names[0]!;
  const half = names.length >> 1;
  const [low, high] = [pick(index, names.slice(0, half), from), pick(index, names.slice(half), from + half)];
  return `select(${low}, ${high}, ${index} >= ${from + half})`;
};
/**
 * y = x·Wᵀ of the few rows that tiles leave. Four lanes, of four columns each, make a chunk; all chunks of a
 * panel side by side, and then some lanes add up the chunks' sums in order. Weights are asked for well before
 * they are needed: a row costs about what reading them does.
 */
export function gemv(
  name: string,
  b: Body,
  env: KernelEnv,
  lanes: number,
  { x, panels, terms: all, at, integers }: Parts,
  span: Span = wholeOf(b),
): string {
  const chunks = Math.ceil(all / CHUNK);
  const slots = Math.min(chunks, slotsOf(b, lanes));
  const columns = gemvColumns(b, all, lanes);
  const turns = Math.ceil(chunks / slots);
  const names = ["total", "other"].slice(0, sumsOf(b));

  const rows = (n: number): string => {
    const each = indices(n);
    const xs = each.map((i) => rowAt(x, env, n === 1 ? "r0" : `min(r0 + ${i}, n - 1)`));
    const made = x.made && n === 1 ? madeRow(x.made, env, "r0", all, lanes) : null;
    /** Terms k to k + count, count at most what is loaded in one go. */
    const terms = (count: number): Lines => {
      const words = indices(Math.ceil(count / panels.run));
      const fours = made ? indices(Math.ceil(count / 4)).map((i) => made.four(`k + ${4 * i}`)) : [];
      return lines`
        let p = ${panels.at(at.panel, "k", at.quad)};
        ${words.map((i) => `let w${i} = weights[p + ${4 * i}];`)}
        ${panels.scales(at.panel, "k", at.quad)}
        ${indices(count).flatMap((j) => {
          const [word, step] = [Math.floor(j / panels.run), j % panels.run];
          const term = (i: number): string =>
            made ? `${fours[j >> 2]!.value}[${j & 3}]` : `${xs[i]!.space}[x${i} + k + ${j}]`;
          return [
            ...(made && j % 4 === 0 ? fours[j >> 2]!.text : []),
            `let v${j} = ${panels.value(`w${word}`, step)};`,
            ...each.map((i) => `a${i} = fma(vec4<f32>(${term(i)}), v${j}, a${i});`),
          ];
        })}`;
    };
    // For one row four loads of the matrix in one go; for several, what takes as many of x.
    const step = n === 1 ? 4 * panels.run : Math.max(4, panels.run);
    /** Chunk c, added to a0 …. */
    const chunk: Lines = integers
      ? fewIntegers(n, xs, integers, { panels, k: all, at, columns: span.count })
      : lines`
        if (panel * 16 < ${span.count}) {
          ${chunkOf(all, step, terms)}
        }`;
    const fold = (total: readonly string[]): Lines => lines`
      for (var c = 0; c < ${slots}; c++) {
        let o = ((col >> 4u) * ${slots} + c) * 4 + ((col >> 2u) & 3);
        ${total.map((t, s) => `${t} = ${t} + sums[o${s ? ` + ${lanes / 2}` : ""}][col & 3];`)}
      }`;
    const store = (row: string, total: readonly string[]): Lines => lines`
      if (r0 + ${row} < n && wg.x * ${columns} + col < ${span.count}) {
        ${span.put(name, `r0 + ${row}`, `wg.x * ${columns} + col`, total.join(", "))}
      }`;
    const total = names.map((_, i) => `total[${i}]`);
    // Row by row, so that little of a workgroup's memory is in use; in a loop, so that there is one epilogue:
    // it is most of the text that a driver compiles. Where chunks take several turns, a lane has at most one
    // column.
    const folded = (row: string): Lines => lines`
      sums[lane] = ${pick(
        row,
        each.map((i) => `a${i}`),
      )};
      workgroupBarrier();
      ${
        turns > 1
          ? lines`
      if (lane < ${columns}) {
        let col = lane;
        var total = kept[${row} * ${columns} + col];
        ${fold(total)}
        kept[${row} * ${columns} + col] = total;
      }`
          : lines`
      for (var i = 0; i < ${Math.ceil(columns / lanes)}; i++) {
        let col = lane + i * ${lanes};
        if (col < ${columns}) {
          var total = vec2<f32>();
          ${fold(total)}
          ${store(row, total)}
        }
      }`
      }
      workgroupBarrier();`;
    const keeping = (text: Lines): Lines => lines`
      if (lane < ${columns}) {
        let col = lane;
        ${text}
      }`;
    return fn(
      `${name}_${n}`,
      lines`
        let slot = ${sumsOf(b) > 1 ? `(lane & ${lanes / 2 - 1})` : "lane"} >> 2u;
        let quad = lane & 3;
        let panel = wg.x * ${columns / 16} + slot / ${slots};
        ${at.before}
        ${made ? made.before : xs.map((row, i) => `let x${i} = ${row.at};`)}
        ${turns > 1 ? keeping(each.map((row) => `kept[${row} * ${columns} + col] = vec2<f32>();`)) : []}
        for (var turn = 0; turn < ${turns}; turn++) {
          let c = turn * ${slots} + slot % ${slots};
          ${each.map((i) => `var a${i} = vec4<f32>();`)}
          ${chunk}
          ${
            n === 1
              ? folded("0")
              : lines`
          for (var row = 0; row < ${n}; row++) {
            ${folded("row")}
          }`
          }
        }
        ${
          turns > 1
            ? keeping(lines`
        for (var row = ${header("zero")}; row < ${n}; row++) {
          let total = kept[row * ${columns} + col];
          ${store("row", total)}
        }`)
            : []
        }`,
      "wg: vec3<i32>, lane: i32, r0: i32, n: i32",
    );
  };
  const text = lines`
    if (wg.x * ${columns} >= ${span.count}) { return; }
    let n = ${count(b.domain)};
    let r0 = n - ${restOf(b.domain)} + wg.y * ${GEMV_ROWS};
    if (r0 + 1 == n) {
      ${name}_1(wg, lane, r0, n);
    } else {
      ${name}_${GEMV_ROWS}(wg, lane, r0, n);
    }`;
  return [epilogue(name, b, env), rows(1), rows(GEMV_ROWS), fn(name, text)].join("\n");
}
/** Do chunks of so many terms take several turns of a workgroup? */
export const inTurns = (b: Body, terms: number, lanes: number): boolean =>
  Math.ceil(terms / CHUNK) > slotsOf(b, lanes);
/** `turns`: is there a body whose chunks take several? `made`: one that makes a row anew? */
export const gemvShared = (lanes: number, turns: boolean, made: boolean): Lines => [
  `var<workgroup> sums: array<vec4<f32>, ${lanes}>;`,
  // What turns add up: in registers it would be there beside what is on its way.
  ...(turns ? [`var<workgroup> kept: array<vec2<f32>, ${16 * GEMV_ROWS}>;`] : []),
  ...(made ? foldShared : []),
];
