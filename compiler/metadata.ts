/** The batch metadata blocks: one per forward step, backward or head unit, and update. Words of 32 bits; f32 fields hold bits. */
import type { Capacities } from "./target.ts";

/** Header words, the same in every block. */
export const headerWords = [
  "n_rows",
  "n_head",
  "job",
  "slot",
  "save_base",
  "n_keys",
  "dkv_first",
  "site_mask",
  "zero",
  "lr",
  "lr_c1",
  "rsqrt_c2",
  "beta1",
  "beta2",
  "eps",
  "decay",
  "max_norm",
] as const;
export const HEADER = 32;

export interface BlockLayout {
  readonly kind: BlockKind;
  /** Word offset of each array inside the block. */
  readonly arrays: Readonly<Record<string, number>>;
  readonly words: number;
}
export type BlockKind = "step" | "unit" | "update";

const rowArrays = ["ids", "pos", "slot", "table", "save_row", "ext_row", "drop_key", "drop_p"];

export function blockLayouts(c: Capacities): Readonly<Record<BlockKind, BlockLayout>> {
  const blocksPerSequence = Math.ceil(c.context / 32);
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
    step: build("step", [...rowArrays.map((n) => [n, c.tokens] as const), ["head_row", c.headRows], ["tables", c.sequences * blocksPerSequence]]),
    unit: build("unit", [
      ...rowArrays.map((n) => [n, c.unitRows] as const),
      ["head_row", c.headRows],
      ["head_dst", c.headRows],
      ["label", c.headRows],
      ["weight", c.headRows],
      ["tables", blocksPerSequence],
    ]),
    update: build("update", []),
  };
}
