/**
 * Pieces of AssemblyScript text that every kernel is made of, and the layout of a thread's scratch memory.
 */
import type { Domain } from "../../ops/index.ts";
import { DROPOUT_BIT, headerWords } from "../../runtime/bundle.ts";
import type { Operand } from "../fuse.ts";
import {
  type KernelEnv,
  memoryClasses,
  type ParamAddress,
  ROWS_HEADER,
  SEGMENT_ROWS,
  SLOT_TABLE,
} from "../kernel.ts";

/** Columns of a weight panel on this target: two vectors. */
export const P = 8;
/**
 * Rows and columns of a product's block of sums, [64][64] f32 in scratch: a panel group is read once for so
 * many rows.
 */
export const BLOCK_ROWS = 64;
export const BLOCK_COLS = 64;
/** Bytes of one row of such a block. */
export const BLOCK_STRIDE = BLOCK_COLS * 4;
/**
 * Terms that are summed before the next panels' turn, where panels are unpacked or turned: what of four
 * panels stays in the first-level cache.
 */
export const K_CHUNK = 256;
/** The same where panels are read as they are: of eight, what stays in the second-level cache. */
export const K_DIRECT = 2048;
/**
 * A thread's scratch, bytes: a block of sums at 0; four panels of a chunk, unpacked or turned; pointers of a
 * block's rows for every operand; blocks of low-rank deltas.
 */
export const PACK_AT = BLOCK_ROWS * BLOCK_STRIDE;
export const ROWS_AT = PACK_AT + 4 * K_CHUNK * P * 4 + K_CHUNK * P * 4;
export const MAX_SEGMENTS = 16;
export const DELTA_AT = ROWS_AT + MAX_SEGMENTS * BLOCK_ROWS * 4;
export const DELTA_BYTES = BLOCK_ROWS * BLOCK_STRIDE;

export const f32 = (v: number): string =>
  `<f32>(${Object.is(v, -0) ? "-0.0" : Number.isInteger(v) ? `${v}.0` : String(v)})`;
export const header = (name: string): string =>
  `load<i32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
export const headerF = (name: string): string =>
  `load<f32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
export const indent = (lines: readonly string[], n: number): string[] => lines.map((l) => " ".repeat(n) + l);
/**
 * A kernel runs on every thread at once: thread `part` of `parts` does its share, with scratch memory of its
 * own.
 */
export const signature = "bind: usize, meta: usize, scratch: usize, part: i32, parts: i32";
export const passed = "bind, meta, scratch, part, parts";
/** Base pointers of the memory classes, from the group's bind record. */
const bases = (text: string): string =>
  memoryClasses
    .filter((c) => c !== "meta" && new RegExp(`\\b${c}\\b`).test(text))
    .map((c) => `  const ${c}: usize = load<u32>(bind, ${memoryClasses.indexOf(c) * 4});`)
    .join("\n");
export function wrap(name: string, lines: readonly string[], params = signature): string {
  const text = lines.join("\n");
  return `function ${name}(${params}): void {\n${bases(text)}\n${text}\n}\n`;
}
/** The thread's contiguous share of `total` equal pieces, as `lo` and `hi`. */
export const shareOf = (total: string): string[] => [
  `  const lo: i32 = share(${total}, part, parts);`,
  `  const hi: i32 = share(${total}, part + 1, parts);`,
];
export const count = (domain: Domain): string => header(ROWS_HEADER[domain]);
/** 1 when a mask bit is set in the block's header. */
export const maskBit = (bit: number): string => `(${header(`mask_${bit >> 5}`)} >> ${bit & 31} & 1)`;
export const guard = (bit: number | null): string[] =>
  bit === null ? [] : [`  if (!${maskBit(bit)}) return;`];
/** Words of a slot tensor that the job's slot uses: what lies beyond its rank is zero. */
export const wordsInUse = (p: ParamAddress, env: KernelEnv): string =>
  p.kind !== "factor" || p.rows === "one"
    ? String(p.words)
    : `min(${p.words}, (${jobRank(p.branch!, env)} * ${p.k} + 3) & ~3)`;
export const jobRank = (branch: number, env: KernelEnv): string =>
  `load<i32>(tables + ((<usize>(${header("slot")} * ${env.branches * 2})) << 2), ${(SLOT_TABLE + branch * 2) * 4})`;

/**
 * A loop over the unit's segments, each of `n` rows from row `r0`: a segment is summed on its own, then
 * added.
 */
export function overSegments(domain: Domain, env: KernelEnv, each: readonly string[]): string[] {
  const [first, rows] = SEGMENT_ROWS[domain]!;
  return [
    `  for (let s: i32 = 0; s < ${header("n_segments")}; s++) {`,
    `    const r0: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[first]! * 4});`,
    `    const n: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[rows]! * 4});`,
    "    if (n == 0) continue;",
    ...indent(each, 4),
    "  }",
  ];
}

/** Pointer to row `r` of an operand. */
export function rowPtr(o: Operand, env: KernelEnv, r: string): string {
  const ad = env.address(o.value);
  if (o.undropped) {
    const plain = env.address(o.undropped);
    return `${ad.cls} + ((<usize>((${r}) * ${ad.stride})) << 2) + (${maskBit(DROPOUT_BIT)} ? ${ad.offset * 4} : ${plain.offset * 4})`;
  }
  const at =
    o.index === null ? r : `load<i32>(meta + ((<usize>(${r})) << 2), ${env.layout.arrays[o.index]! * 4})`;
  return `${ad.cls} + ((<usize>((${at}) * ${ad.stride})) << 2) + ${ad.offset * 4}`;
}
export const stride = (o: Operand, env: KernelEnv): number => env.address(o.value).stride;
