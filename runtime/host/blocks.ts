/**
 * The block manager: cache blocks of 32 tokens and contiguous runs of saved rows. The only allocator; every
 * sequence reserves its whole need up front.
 */
import {
  BLOCK,
  BLOCKS,
  BLOCKS_PER_SEQUENCE,
  C_FREE,
  CLASS_BOUNDARY_WORDS,
  CLASS_KEPT_WORDS,
  KEPT_ROWS,
  MOST_KEPT_WORDS,
  NONE,
  SAVED_ROWS,
  SEQUENCES,
  TRAIN,
} from "./config";
import {
  bump,
  counter,
  EXT_BASE,
  FREE_BLOCKS,
  get,
  JOB,
  JOB_CLASS,
  KIND,
  LENGTH_OF,
  NUM_BLOCKS,
  SAVE_BASE,
  set,
  TABLE,
} from "./state";

export function resetBlocks(): void {
  for (let i: i32 = 0; i < BLOCKS; i++) set(FREE_BLOCKS, i, BLOCKS - 1 - i);
  bump(C_FREE, BLOCKS - counter(C_FREE));
}
/** Blocks that hold `tokens`. */
export function blocksOf(tokens: i32): i32 {
  return (tokens + BLOCK - 1) / BLOCK;
}
export function canAllocate(tokens: i32): bool {
  return blocksOf(tokens) <= counter(C_FREE);
}
export function allocate(seq: i32, tokens: i32): void {
  const need: i32 = blocksOf(tokens);
  for (let i: i32 = 0; i < need; i++) {
    bump(C_FREE, -1);
    set(TABLE, seq * BLOCKS_PER_SEQUENCE + i, get(FREE_BLOCKS, counter(C_FREE)));
  }
  set(NUM_BLOCKS, seq, need);
}
export function release(seq: i32): void {
  for (let i: i32 = get(NUM_BLOCKS, seq) - 1; i >= 0; i--) {
    set(FREE_BLOCKS, counter(C_FREE), get(TABLE, seq * BLOCKS_PER_SEQUENCE + i));
    bump(C_FREE, 1);
  }
  set(NUM_BLOCKS, seq, 0);
}
/**
 * First fit of `rows` saved rows in a run, given those that live training sequences hold; NONE if there is
 * none.
 */
export function findSavedRun(rows: i32): i32 {
  let start: i32 = 0;
  let moved: bool = true;
  while (moved) {
    moved = false;
    for (let s: i32 = 0; s < SEQUENCES; s++) {
      if (get(KIND, s) != TRAIN) continue;
      const b: i32 = get(SAVE_BASE, s);
      const e: i32 = b + get(LENGTH_OF, s);
      if (b < start + rows && start < e) {
        start = e;
        moved = true;
      }
    }
  }
  return start + rows <= SAVED_ROWS ? start : NONE;
}
/**
 * First fit of `rows` records that class `cls` keeps. Classes share the words behind the saved rows; a run
 * counts records of its class's length from the start of the chamber. NONE if there is none.
 */
export function findKeptRun(cls: i32, rows: i32): i32 {
  const words: i32 = CLASS_KEPT_WORDS[cls];
  if (words == 0) return 0;
  const first: i32 = SAVED_ROWS * CLASS_BOUNDARY_WORDS[cls];
  const end: i32 = first + (KEPT_ROWS + 1) * MOST_KEPT_WORDS;
  let start: i32 = (first + words - 1) / words;
  let moved: bool = true;
  while (moved) {
    moved = false;
    for (let s: i32 = 0; s < SEQUENCES; s++) {
      if (get(KIND, s) != TRAIN || get(EXT_BASE, s) == NONE) continue;
      const its: i32 = CLASS_KEPT_WORDS[get(JOB_CLASS, get(JOB, s))];
      const b: i32 = get(EXT_BASE, s) * its;
      const e: i32 = b + get(LENGTH_OF, s) * its;
      if (b < (start + rows) * words && start * words < e) {
        start = (e + words - 1) / words;
        moved = true;
      }
    }
  }
  return (start + rows) * words <= end ? start : NONE;
}
