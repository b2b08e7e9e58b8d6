/**
 * Products of a body on the CPU: blocks of 64 rows × 64 columns, a thread owns whole panels of columns. The
 * epilogue runs over the sums of a row of a block, its low-rank deltas made beside them.
 */
import { pairsOf, type Type } from "../../../ops/index.ts";
import { assemblyPrinter, storeLoops } from "../../emit/assemblyscript_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import { type Body, sumsOf, widthOf } from "../body.ts";
import { deltasOf, type Expand, shiftOf } from "../deltas.ts";
import {
  BESIDE_AT,
  BLOCK_COLS,
  BLOCK_ROWS,
  BLOCK_STRIDE,
  count,
  DELTA_AT,
  DELTA_BYTES,
  fn,
  MAX_SEGMENTS,
  P,
  PACK_AT,
  passed,
  ROWS_AT,
  rowPtr,
  shareOf,
  signature,
  tableAt,
} from "./assemblyscript.ts";
import { isIntegral, roundedBytes } from "./assemblyscript_integers.ts";
import { type Lines, lines } from "./lines.ts";

export const PANEL_GROUP = BLOCK_COLS / P;

/** Where a body's sums are in scratch: a block, or two. */
const blocksOf = (b: Body): readonly number[] => [0, BESIDE_AT].slice(0, sumsOf(b));
export type Tiles = "product" | "turned";
type Matrix = Type & { kind: "weight" | "experts" };
const isMatrix = (t: Type): t is Matrix => t.kind === "weight" || t.kind === "experts";

/** Where rounded rows of each matrix's product begin in scratch, if it is of integers; where all ends. */
function roundedRows(tiles: Tiles, b: Body, env: KernelEnv) {
  let end = DELTA_AT + deltasOf(b).length * DELTA_BYTES;
  const each = b.operands
    .map((o) => o.value.type)
    .filter(isMatrix)
    .map((type, s) => {
      if (tiles === "turned" || env.products !== "integers" || !isIntegral(type.format))
        return { type, at: null };
      // Two products side by side are of the same rows.
      if (b.beside && s) return { type, at: end - roundedBytes(BLOCK_ROWS, type.k) };
      const at = end;
      end += roundedBytes(BLOCK_ROWS, type.k);
      return { type, at };
    });
  return { each, end };
}
/** Bytes of a thread's scratch that a product needs. */
export const productScratch =
  (tiles: Tiles) =>
  (b: Body, env: KernelEnv): number =>
    roundedRows(tiles, b, env).end;
/**
 * Product `s` of a body, of \`rows\` rows whose pointers are at `xs` with the matrix at `w`: what comes
 * before all panels, and the text for panels p to pe: one for each of the body's sums that are of it.
 */
export function productWith(
  tiles: Tiles,
  b: Body,
  env: KernelEnv,
  [s, xs, w]: readonly [number, string, string],
): { readonly before: Lines; readonly text: Lines } {
  const { type, at } = roundedRows(tiles, b, env).each[s]!;
  const blocks = b.half ? blocksOf(b) : [b.beside ? blocksOf(b)[s]! : 0];
  const call = (f: string, x: string): Lines =>
    blocks.flatMap((block, upper) => {
      const on = upper ? ` + ${b.half! / P}` : "";
      return lines`
        ${f}_${type.format}(
          ${x}, rows, ${w}, ${type.n}, ${type.k},
          p${on}, pe${on}, scratch + ${block}, scratch + ${PACK_AT});`;
    });
  if (at === null) return { before: [], text: call(tiles, xs) };
  const rounded = `scratch + ${at}`;
  const before = b.beside && s ? [] : [`roundRows(${xs}, rows, ${type.k}, ${rounded});`];
  return { before, text: call("integers", rounded) };
}

/** Statements that fill the deltas of `rows` rows from row `r`, of `panels` panels from column `c0`. */
function fillDeltas(b: Body, env: KernelEnv, r: string, rows: string, c0: string, panels: string): Lines {
  return deltasOf(b).flatMap((e, i) => {
    const t = e.factor.type as Type & { kind: "factor" };
    const [u, f] = [env.address(e.u), env.address(e.factor)];
    return lines`
      delta(
        ${u.space} + ((<usize>((${r}) * ${u.stride})) << 2) + ${u.offset * 4}, ${u.stride * 4}, ${rows},
        meta + ((<usize>(${r})) << 2) + ${env.layout.arrays.slot! * 4},
        tables + ${tableAt(t.branch, "rank", env)}, ${env.slots.row * 4},
        ${f.space} + ${(f.offset + shiftOf(e)) * 4} + ((<usize>(${c0})) << 2), ${t.cols * 4},
        ${panels}, scratch + ${DELTA_AT + i * DELTA_BYTES});`;
  });
}

/** `name_e`: the epilogue as a function of (row, columns [c0, end), sums of the row from c0). */
export function epilogue(name: string, b: Body, env: KernelEnv, deltas: readonly Expand[]): string {
  const p = assemblyPrinter(env, 1, deltas);
  const loops = storeLoops(p, b.stores, env, b.cols, "c0", "end");
  const accs = blocksOf(b)
    .map((_, i) => `acc${i}: usize`)
    .join(", ");
  const params = `${signature}, row: i32, c0: i32, end: i32, ${accs}, delta_: usize`;
  return fn(`${name}_e`, [...p.row, ...loops], params);
}

/** y = x·Wᵀ (`product`) or dx = Σ dy·W (`turned`), by the tiles of each weight's format. */
export function product(tiles: Tiles, name: string, b: Body, env: KernelEnv): string {
  const pairs = pairsOf(b.operands);
  if (pairs.length > MAX_SEGMENTS) throw new Error(`${name}: ${pairs.length} products in one sum`);
  const blocks = blocksOf(b);
  const rowsAt = (s: number): string => `scratch + ${ROWS_AT + s * BLOCK_ROWS * 4}`;
  const products = pairs.map(([, w], s) =>
    productWith(tiles, b, env, [s, rowsAt(s), `weights + ${env.address(w.value).offset * 4}`]),
  );
  // Panels of lower halves, none of which goes over into an upper one.
  const half = (b.half ?? 0) / P;
  const panels = half
    ? lines`
      for (let q: i32 = lo, p: i32 = 0, pe: i32 = 0; q < hi; q += pe - p) {
        p = q + q / ${half} * ${half};
        pe = p + min(${PANEL_GROUP}, min(hi - q, ${half} - q % ${half}));`
    : lines`
      for (let p: i32 = lo; p < hi; p += ${PANEL_GROUP}) {
        const pe: i32 = min(p + ${PANEL_GROUP}, hi);`;
  const text = lines`
    const n: i32 = ${count(b.domain)};
    ${shareOf(Math.ceil(widthOf(b) / P))}
    for (let rb: i32 = 0; rb < n; rb += ${BLOCK_ROWS}) {
      const rows: i32 = min(${BLOCK_ROWS}, n - rb);
      for (let i: i32 = 0; i < rows; i++) {
        ${pairs.map(([x], s) => `store<u32>(${rowsAt(s)} + ((<usize>i) << 2), ${rowPtr(x, env, "rb + i")});`)}
      }
      ${products.flatMap(({ before }) => before)}
      ${panels}
        const end: i32 = min(pe * ${P}, ${b.cols});
        ${blocks.map((at) => `clear(scratch + ${at}, rows * ${BLOCK_STRIDE});`)}
        ${products.flatMap(({ text }) => text)}
        ${fillDeltas(b, env, "rb", "rows", `p * ${P}`, "pe - p")}
        for (let i: i32 = 0; i < rows; i++) {
          const at: usize = <usize>i * ${BLOCK_STRIDE};
          ${name}_e(
            ${passed}, rb + i, p * ${P}, end,
            ${blocks.map((block) => `scratch + ${block} + at,`)}
            scratch + ${DELTA_AT} + at);
        }
      }
    }`;
  return `${epilogue(name, b, env, deltasOf(b))}${fn(name, text)}`;
}
