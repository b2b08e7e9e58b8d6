/**
 * The batch metadata blocks: one per forward step, backward or head unit, and update. Words of 32 bits; f32
 * fields hold bits.
 */
import { cacheBlocks, HEADER, SPLIT } from "../runtime/bundle.ts";
import type { Capacities } from "./target.ts";

export interface BlockLayout {
  readonly kind: BlockKind;
  /** Word offset of each array inside the block. */
  readonly arrays: Readonly<Record<string, number>>;
  readonly words: number;
}
export type BlockKind = "step" | "unit" | "update";

/**
 * Segments of a unit: whole quanta of sequences, summed one after another, so that packing several into one
 * launch never changes a bit.
 */
export const segmentsOf = (c: Capacities): number => Math.min(c.unitRows, 32);
/** Words of a unit's block tables: one whole context, or many short sequences. */
export const unitTableWords = (c: Capacities): number => cacheBlocks(c.context) + c.unitRows;
/**
 * Of each segment: its rows, its label rows, where its sequence's saved rows begin, whether it is the
 * sequence's last quantum (its key gradients start from zero), and the keys it is the first in this unit to
 * touch (0 for a further quantum of the same sequence).
 */
const segmentArrays = ["seg_row", "seg_rows", "seg_head", "seg_heads", "seg_base", "seg_fresh", "seg_keys"];
/** Splits of single rows that attention runs at once: what they leave has room for so many. */
export const splitsOf = (c: Capacities): number => Math.max(2 * c.tokens, Math.ceil(c.context / SPLIT));
const rowArrays = ["ids", "pos", "slot", "table", "save_row", "drop_key", "drop_p"];
/** In a step, rows of several training classes meet: each class has its own index of what only it keeps. */
export const extArray = (cls: string): string => `ext_${cls}`;

export function blockLayouts(
  c: Capacities,
  train: readonly string[],
): Readonly<Record<BlockKind, BlockLayout>> {
  const build = (kind: BlockKind, arrays: readonly (readonly [string, number])[]): BlockLayout => {
    const at: Record<string, number> = {};
    let words = HEADER;
    for (const [name, n] of arrays) {
      at[name] = words;
      words += Math.ceil(n / 4) * 4;
    }
    return { kind, arrays: at, words: Math.ceil(words / 64) * 64 };
  };
  return {
    step: build("step", [
      ...[...rowArrays, ...train.map(extArray)].map((n) => [n, c.tokens] as const),
      // Of a logits row: its row; how many candidates are wanted, and 1 / temperature.
      ...["head_row", "head_wanted", "head_scale"].map((n) => [n, c.headRows] as const),
      // Items of attention: rows of a tile from its first on; a split's row, and which it is; a row of
      // several, and its first.
      ...["tile_row", "tile_rows", "merge_row", "merge_item"].map((n) => [n, c.tokens] as const),
      ...["split_row", "split_part"].map((n) => [n, splitsOf(c)] as const),
      // As long as a load has sequences: the block's words end where they begin.
      ["tables", 0],
    ]),
    unit: build("unit", [
      ...[...rowArrays, "ext_row"].map((n) => [n, c.unitRows] as const),
      ["head_row", c.headRows],
      ["head_dst", c.headRows],
      ["label", c.headRows],
      ["weight", c.headRows],
      ...segmentArrays.map((n) => [n, segmentsOf(c)] as const),
      ["tables", unitTableWords(c)],
    ]),
    update: build("update", []),
  };
}
