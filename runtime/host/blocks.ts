/**
 * The block manager: cache blocks of 32 tokens and contiguous runs of saved rows. The only allocator; every
 * sequence reserves its whole need up front.
 *
 *   block b:   free; or held by so many sequences, more than one only where it is full; or idle: held by
 *   none,
 *              and kept for the prefix that it has until somebody needs room
 *
 * Whoever holds an entry holds those before it, and lets go of the last first: so idle blocks, in the order
 * in which they were let go, never have one behind another that follows it in a prefix, and the first is the
 * least recently used that nothing depends on.
 */
import {
  BLOCK,
  BLOCKS,
  BLOCKS_PER_SEQUENCE,
  C_FREE,
  KEPT_ROWS,
  MOST_KEPT_WORDS,
  NONE,
  SAVED_ROWS,
  SEQUENCES,
  TRAIN,
} from "./config";
import { append, clearList, firstOf, LINK_BYTES, LIST_BYTES, lengthOf, unlink } from "./lists";
import { adapterIn, CHAIN, isEntry, removePrefix } from "./prefix";
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
  take,
} from "./state";
import { CLASS_BOUNDARY_WORDS, CLASS_KEPT_WORDS } from "./tables";

/** Sequences that hold a block. */
export const HOLDERS: usize = take(BLOCKS * 4);
const IDLE: usize = take(LIST_BYTES);
const LINKS: usize = take(BLOCKS * LINK_BYTES);

export function resetBlocks(): void {
  clearList(IDLE);
  for (let i: i32 = 0; i < BLOCKS; i++) {
    set(FREE_BLOCKS, i, BLOCKS - 1 - i);
    set(HOLDERS, i, 0);
  }
  bump(C_FREE, BLOCKS - counter(C_FREE));
}
/** Blocks that hold `tokens`. */
export function blocksOf(tokens: i32): i32 {
  return (tokens + BLOCK - 1) / BLOCK;
}
/** Blocks that may be had: those that are free, and those that are kept for nobody in particular. */
export function available(): i32 {
  return counter(C_FREE) + lengthOf(IDLE);
}
export function idleBlocks(): i32 {
  return lengthOf(IDLE);
}
function free(b: i32): void {
  set(FREE_BLOCKS, counter(C_FREE), b);
  bump(C_FREE, 1);
}
/** A block with nothing in it: a free one, else the least recently used of what is kept. */
function takeBlock(): i32 {
  if (counter(C_FREE) == 0) {
    const b: i32 = firstOf(IDLE);
    unlink(IDLE, LINKS, b);
    removePrefix(b);
    free(b);
  }
  bump(C_FREE, -1);
  const b: i32 = get(FREE_BLOCKS, counter(C_FREE));
  set(HOLDERS, b, 1);
  return b;
}
/** One more sequence holds an entry. */
export function hold(b: i32): void {
  if (get(HOLDERS, b) == 0) unlink(IDLE, LINKS, b);
  set(HOLDERS, b, get(HOLDERS, b) + 1);
}
/** One less does. */
export function letGo(b: i32): void {
  set(HOLDERS, b, get(HOLDERS, b) - 1);
  if (get(HOLDERS, b) > 0) return;
  if (isEntry(b)) append(IDLE, LINKS, b);
  else free(b);
}
/** Of `tokens` whose first blocks are the first `found` of CHAIN: blocks that are not held already. */
export function needOf(tokens: i32, found: i32): i32 {
  let need: i32 = blocksOf(tokens);
  for (let i: i32 = 0; i < found; i++) if (get(HOLDERS, get(CHAIN, i)) > 0) need--;
  return need;
}
/** Blocks for `tokens`: the first `found` of CHAIN, and others of its own. There must be room. */
export function allocate(seq: i32, tokens: i32, found: i32): void {
  const need: i32 = blocksOf(tokens);
  const table: i32 = seq * BLOCKS_PER_SEQUENCE;
  for (let i: i32 = 0; i < found; i++) {
    hold(get(CHAIN, i));
    set(TABLE, table + i, get(CHAIN, i));
  }
  for (let i: i32 = found; i < need; i++) set(TABLE, table + i, takeBlock());
  set(NUM_BLOCKS, seq, need);
}
export function release(seq: i32): void {
  for (let i: i32 = get(NUM_BLOCKS, seq) - 1; i >= 0; i--) letGo(get(TABLE, seq * BLOCKS_PER_SEQUENCE + i));
  set(NUM_BLOCKS, seq, 0);
}
/** What is kept of an adapter's generation (0: of the base) holds no more; ALL: of any. */
export const ALL: i32 = -1;
export function discard(adapter: i32): void {
  for (let b: i32 = 0; b < BLOCKS; b++) {
    if (!isEntry(b) || (adapter != ALL && adapterIn(b) != adapter)) continue;
    removePrefix(b);
    if (get(HOLDERS, b) > 0) continue;
    unlink(IDLE, LINKS, b);
    free(b);
  }
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
  const words: i32 = get(CLASS_KEPT_WORDS, cls);
  if (words == 0) return 0;
  const first: i32 = SAVED_ROWS * get(CLASS_BOUNDARY_WORDS, cls);
  const end: i32 = first + (KEPT_ROWS + 1) * MOST_KEPT_WORDS;
  let start: i32 = (first + words - 1) / words;
  let moved: bool = true;
  while (moved) {
    moved = false;
    for (let s: i32 = 0; s < SEQUENCES; s++) {
      if (get(KIND, s) != TRAIN || get(EXT_BASE, s) == NONE) continue;
      const its: i32 = get(CLASS_KEPT_WORDS, get(JOB_CLASS, get(JOB, s)));
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
