/**
 * Matrices with a row for each token of the vocabulary are groups of their own, whose chambers a device holds
 * in as many shards as its bindings ask for. A chamber is still one range of words, for whoever reads or
 * writes it; a kernel over such a matrix is launched once a shard, in order, and is told which rows those
 * are. Pure arithmetic: the number of shards is no part of a bundle.
 *
 * Rows lie in blocks: a chunk of a sum over rows is one, so sums over all shards are those over the whole.
 */
import { packedWords } from "./formats.ts";
import type { Chambers, ParamEntry, TargetEntry } from "./manifest.ts";

/** Rows of a block; a shard begins with one. */
export const SHARD_ROWS = 128;
const blocksOf = (rows: number): number => Math.ceil(rows / SHARD_ROWS);

type Matrix = Pick<ParamEntry, "own" | "format" | "n" | "k">;
/** Rows of a block of a matrix: all of one that is in a group with others. */
export const blockRows = ({ own, n }: Pick<Matrix, "own" | "n">): number => (own === null ? n : SHARD_ROWS);
/** Words of a matrix [n, k], its last block whole. */
export const matrixWords = (p: Matrix, panel: number): number =>
  Math.ceil(p.n / blockRows(p)) * packedWords(p.format, blockRows(p), p.k, panel);

/** The group of a parameter of the region whose group is given. */
export const groupOf = ({ own }: Pick<ParamEntry, "own">, region: number): number =>
  own === null ? region : region + 1 + own;
/** Groups: the layers, the outer one, and those of single matrices. */
export const groupsOf = ({ own }: Pick<TargetEntry, "own">, layers: number): number =>
  layers + 1 + own.length;

/** Rows of a matrix that one buffer has. */
export interface Shard {
  readonly first: number;
  readonly rows: number;
}
/**
 * Rows [0, rows) in as few shards as have at most `bytes` in a chamber each, of about the same size. Where
 * not even a block has so few, a block each.
 */
export function shardsOf(rows: number, chambers: Chambers, bytes: number): Shard[] {
  const blocks = blocksOf(rows);
  const block = (Math.max(chambers.weights, chambers.accum) * 4) / blocks;
  const count = Math.ceil(blocks / Math.max(1, Math.floor(bytes / block)));
  const each = Math.ceil(blocks / count) * SHARD_ROWS;
  return Array.from({ length: Math.ceil(rows / each) }, (_, i) => ({
    first: i * each,
    rows: Math.min(each, rows - i * each),
  }));
}
/** A run of a chamber's words in a shard's buffer. */
export interface Run {
  readonly shard: number;
  /** Words from the chamber's start, and from the buffer's. */
  readonly from: number;
  readonly at: number;
  readonly words: number;
}
/**
 * Where the words of a chamber are, in order, of `arrays` arrays over all rows, one after another: weights
 * are one, a gradient and the states of an optimizer several. A shard has its rows of each.
 */
export function runsOf(shards: readonly Shard[], words: number, arrays: number): Run[] {
  const blocks = shards.reduce((n, s) => n + blocksOf(s.rows), 0);
  const block = words / arrays / blocks;
  return Array.from({ length: arrays }, (_, array) =>
    shards.map(({ first, rows }, shard): Run => {
      const length = blocksOf(rows) * block;
      const from = (array * blocks + first / SHARD_ROWS) * block;
      return { shard, from, at: array * length, words: length };
    }),
  ).flat();
}
