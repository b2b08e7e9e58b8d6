/**
 * The block manager: cache blocks of 32 tokens and contiguous runs of saved rows. The only allocator; every
 * sequence reserves its whole need up front.
 */
import {
  BLOCK,
  BLOCKS,
  BLOCKS_PER_SEQUENCE,
  C_FREE,
  KEPT_ROWS,
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
 * First fit of `rows` contiguous rows below `capacity`, given the runs that live training sequences hold at
 * `bases`; NONE if there is none.
 */
function findRun(bases: usize, rows: i32, capacity: i32): i32 {
  let start: i32 = 0;
  let moved: bool = true;
  while (moved) {
    moved = false;
    for (let s: i32 = 0; s < SEQUENCES; s++) {
      if (get(KIND, s) != TRAIN) continue;
      const b: i32 = get(bases, s);
      if (b == NONE) continue;
      const e: i32 = b + get(LENGTH_OF, s);
      if (b < start + rows && start < e) {
        start = e;
        moved = true;
      }
    }
  }
  return start + rows <= capacity ? start : NONE;
}
export function findSavedRun(rows: i32): i32 {
  return findRun(SAVE_BASE, rows, SAVED_ROWS);
}
export function findKeptRun(rows: i32): i32 {
  return findRun(EXT_BASE, rows, KEPT_ROWS);
}
