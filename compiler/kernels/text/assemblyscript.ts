/**
 * Pieces of AssemblyScript text that every kernel is made of, and the layout of a thread's scratch memory.
 */
import type { Domain } from "../../../ops/index.ts";
import { DROPOUT_BIT, headerWords, QUAD_WORDS, SLOT_ROW, SLOT_TABLE } from "../../../runtime/bundle.ts";
import { type KernelEnv, memorySpaces, type ParamAddress, ROWS_HEADER, SEGMENT_ROWS } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { indent, type Lines, lines } from "./lines.ts";

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
 * block's rows for every operand; the block of a second sum; blocks of low-rank deltas.
 */
export const PACK_AT = BLOCK_ROWS * BLOCK_STRIDE;
export const ROWS_AT = PACK_AT + 4 * K_CHUNK * P * 4 + K_CHUNK * P * 4;
export const MAX_SEGMENTS = 16;
export const BESIDE_AT = ROWS_AT + MAX_SEGMENTS * BLOCK_ROWS * 4;
export const DELTA_AT = BESIDE_AT + BLOCK_ROWS * BLOCK_STRIDE;
export const DELTA_BYTES = BLOCK_ROWS * BLOCK_STRIDE;

export const f32 = (v: number): string => {
  const s = Object.is(v, -0) ? "-0" : String(v);
  return `<f32>(${/[.e]/.test(s) ? s : `${s}.0`})`;
};
export const header = (name: string): string =>
  `load<i32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
export const headerF = (name: string): string =>
  `load<f32>(meta, ${headerWords.indexOf(name as (typeof headerWords)[number]) * 4})`;
/**
 * A kernel runs on every thread at once: thread `part` of `parts` does its share, with scratch memory of its
 * own.
 */
export const signature = "bind: usize, meta: usize, scratch: usize, part: i32, parts: i32";
export const passed = "bind, meta, scratch, part, parts";
/** Base pointers of the memory spaces, from the group's bind record. */
const bases = (text: string): string =>
  memorySpaces
    .filter((c) => c !== "meta" && new RegExp(`\\b${c}\\b`).test(text))
    .map((c) => `  const ${c}: usize = load<u32>(bind, ${memorySpaces.indexOf(c) * 4});`)
    .join("\n");
/** A function over a body's share, with the base pointers that its text names. */
export function fn(name: string, body: Lines, params = signature): string {
  const text = indent(body, 2).join("\n");
  return `${head(name, params)}\n${bases(text)}\n${text}\n}\n`;
}
/** The first line of a function, or three where it is long. */
export function head(name: string, params = signature): string {
  const line = `function ${name}(${params}): void {`;
  return line.length > 110 ? `function ${name}(\n  ${params}\n): void {` : line;
}
/** The thread's contiguous share of `total` equal pieces, as `lo` and `hi`. */
export const shareOf = (total: string | number): Lines => lines`
  const lo: i32 = share(${total}, part, parts);
  const hi: i32 = share(${total}, part + 1, parts);`;
export const count = (domain: Domain): string => header(ROWS_HEADER[domain]);
/** 1 when a mask bit is set in the block's header. */
export const maskBit = (bit: number): string => `(${header(`mask_${bit >> 5}`)} >> ${bit & 31} & 1)`;
/** Return where the body has nothing to do. */
export const guard = (bits: readonly number[]): Lines => bits.map((bit) => `if (!${maskBit(bit)}) return;`);
/** Words of a slot tensor that the job's slot uses: what lies beyond its rank is zero. */
export const wordsInUse = (p: ParamAddress, env: KernelEnv): string =>
  p.kind !== "factor" || p.rows === "one"
    ? String(p.words)
    : `min(${p.words}, (${jobRank(p.branch!, env)} * ${p.k} + 3) & ~3)`;
/** Bytes from a table's start to a word of a branch in the first slot's row. */
export const tableAt = (branch: number, word: keyof typeof SLOT_ROW, env: KernelEnv): number =>
  (SLOT_TABLE + env.slots.branches[branch]!.at + SLOT_ROW[word]) * 4;
/** A slot's row of the table. */
export const tableRow = (slot: string, env: KernelEnv): string =>
  `tables + ((<usize>(${slot} * ${env.slots.row})) << 2)`;
/** A branch's word in it. */
export const inTable = (slot: string, branch: number, word: "rank" | "home", env: KernelEnv): string =>
  `load<i32>(${tableRow(slot, env)}, ${tableAt(branch, word, env)})`;
/** Where its quads are: pairs of words, a quad's place and its scale. */
export const quadsAt = (slot: string, branch: number, env: KernelEnv): string =>
  `${tableRow(slot, env)} + ${tableAt(branch, "quads", env)}`;
/** Bytes of a quad's pair. */
export const QUAD_SHIFT = Math.log2(QUAD_WORDS * 4);
/** A vector of a slot's branch, whose vectors begin at the branch's home. */
export const vectorOf = (slot: string, branch: number, offset: number, env: KernelEnv): string =>
  `adapters + ((<usize>${inTable(slot, branch, "home", env)}) << 2) + ${offset * 4}`;
export const jobRank = (branch: number, env: KernelEnv): string =>
  inTable(header("slot"), branch, "rank", env);

/**
 * A loop over the unit's segments, each of `n` rows from row `r0`: a segment is summed on its own, then
 * added.
 */
export function overSegments(domain: Domain, env: KernelEnv, each: Lines): Lines {
  const [first, rows] = SEGMENT_ROWS[domain]!;
  return lines`
    for (let s: i32 = 0; s < ${header("n_segments")}; s++) {
      const r0: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[first]! * 4});
      const n: i32 = load<i32>(meta + ((<usize>s) << 2), ${env.layout.arrays[rows]! * 4});
      if (n == 0) continue;
      ${each}
    }`;
}

/** The job's gradient of the parameter that a body is of. */
export function gradient(b: Body, env: KernelEnv): string {
  const { accum } = env.param(String(b.node!.attrs.of));
  return `accum + ((<usize>(${header("job")} * ${env.jobWords} + ${accum})) << 2)`;
}
/** A vector of the job's slot. */
export const jobVector = (p: ParamAddress, env: KernelEnv): string =>
  vectorOf(header("slot"), p.branch!, p.offset, env);
/** Quads of a branch of the job's slot. */
export const jobQuads = (branch: number, env: KernelEnv): string => quadsAt(header("slot"), branch, env);
/** The job's gradient norms: [group sums…, clip scale, total norm]. */
export const norms = (env: KernelEnv): string =>
  `arena + ((<usize>(${header("job")} * ${env.groups + 2})) << 2) + ${env.norms * 4}`;
/** All gradients of the job in this group. */
export const gradients = (env: KernelEnv): string =>
  `accum + ((<usize>(${header("job")} * ${env.jobWords})) << 2)`;

/** Pointer to row `r` of an operand. */
export function rowPtr(o: Operand, env: KernelEnv, r: string): string {
  const ad = env.address(o.value);
  if (o.undropped) {
    const plain = env.address(o.undropped);
    const start = `(${maskBit(DROPOUT_BIT)} ? ${ad.offset * 4} : ${plain.offset * 4})`;
    return `${ad.space} + ((<usize>((${r}) * ${ad.stride})) << 2) + ${start}`;
  }
  const at =
    o.index === null ? r : `load<i32>(meta + ((<usize>(${r})) << 2), ${env.layout.arrays[o.index]! * 4})`;
  return `${ad.space} + ((<usize>((${at}) * ${ad.stride})) << 2) + ${ad.offset * 4}`;
}
export const stride = (o: Operand, env: KernelEnv): number => env.address(o.value).stride;
