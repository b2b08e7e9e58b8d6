/**
 * What was computed and may be read again: full cache blocks, each known by the block before it (its parent),
 * by whose keys and values they are (an adapter's generation, 0 the base; a tenant's salt, 0 none) and by its
 * tokens. A hash finds candidates; only what is equal word for word is found. An entry never changes, and its
 * parent is an entry as long as it is one.
 */
import { BLOCK, BLOCKS, BLOCKS_PER_SEQUENCE, NONE } from "./config";
import { get, set, take } from "./state";

/** Of each block: is it an entry, and which. */
const IS_ENTRY: usize = take(BLOCKS * 4);
const PARENT: usize = take(BLOCKS * 4);
const ADAPTER: usize = take(BLOCKS * 4);
const SALT: usize = take(BLOCKS * 4);
const IDS: usize = take(BLOCKS * BLOCK * 4);
/** Entries by hash: the first of each chain, and the next of each entry. */
const HASH: usize = take(BLOCKS * 4);
const NEXT: usize = take(BLOCKS * 4);
const CHAINS: i32 = atLeast(BLOCKS);
const FIRST_OF: usize = take(CHAINS * 4);
/** The blocks that `findChain` found, in order. */
export const CHAIN: usize = take(BLOCKS_PER_SEQUENCE * 4);

/** The power of two from `n` up. */
function atLeast(n: i32): i32 {
  let power: i32 = 1;
  while (power < n) power *= 2;
  return power;
}
export function resetPrefixes(): void {
  for (let i: i32 = 0; i < CHAINS; i++) set(FIRST_OF, i, NONE);
  for (let b: i32 = 0; b < BLOCKS; b++) set(IS_ENTRY, b, 0);
}
function idsOf(b: i32): usize {
  return IDS + ((<usize>(b * BLOCK)) << 2);
}
function hashOf(parent: i32, adapter: i32, salt: i32, ids: usize): i32 {
  let h: u32 = (<u32>parent * 0x9e3779b1) ^ (<u32>adapter * 0x85ebca6b) ^ (<u32>salt * 0xc2b2ae35);
  for (let i: i32 = 0; i < BLOCK; i++) h = rotl<u32>(h ^ <u32>get(ids, i), 15) * 0x9e3779b1;
  return <i32>((h ^ (h >>> 15)) & (<u32>CHAINS - 1));
}
function isOf(b: i32, ids: usize): bool {
  const own: usize = idsOf(b);
  for (let i: i32 = 0; i < BLOCK; i++) if (get(own, i) != get(ids, i)) return false;
  return true;
}

export function isEntry(b: i32): bool {
  return get(IS_ENTRY, b) != 0;
}
/** The entry before an entry; NONE at position 0. */
export function parentOf(b: i32): i32 {
  return get(PARENT, b);
}
/** Whose keys and values an entry has. */
export function adapterIn(b: i32): i32 {
  return get(ADAPTER, b);
}
/** The entry of a block's worth of tokens behind `parent` (NONE: from position 0); NONE. */
export function find(parent: i32, adapter: i32, salt: i32, ids: usize): i32 {
  let b: i32 = get(FIRST_OF, hashOf(parent, adapter, salt, ids));
  while (
    b != NONE &&
    (get(PARENT, b) != parent || get(ADAPTER, b) != adapter || get(SALT, b) != salt || !isOf(b, ids))
  )
    b = get(NEXT, b);
  return b;
}
/** The entries of the first blocks of `ids`, at most `most`: into CHAIN. Returns how many. */
export function findChain(ids: usize, most: i32, adapter: i32, salt: i32): i32 {
  let n: i32 = 0;
  for (let parent: i32 = NONE; n < most; n++) {
    parent = find(parent, adapter, salt, ids + ((<usize>(n * BLOCK)) << 2));
    if (parent == NONE) break;
    set(CHAIN, n, parent);
  }
  return n;
}
/** A block with these tokens behind `parent` is an entry from now on; there is no other like it. */
export function enterPrefix(b: i32, parent: i32, adapter: i32, salt: i32, ids: usize): void {
  const chain: i32 = hashOf(parent, adapter, salt, ids);
  set(IS_ENTRY, b, 1);
  set(PARENT, b, parent);
  set(ADAPTER, b, adapter);
  set(SALT, b, salt);
  memory.copy(idsOf(b), ids, BLOCK * 4);
  set(HASH, b, chain);
  set(NEXT, b, get(FIRST_OF, chain));
  set(FIRST_OF, chain, b);
}
/** An entry is one no more. */
export function removePrefix(b: i32): void {
  const chain: i32 = get(HASH, b);
  if (get(FIRST_OF, chain) == b) set(FIRST_OF, chain, get(NEXT, b));
  else {
    let before: i32 = get(FIRST_OF, chain);
    while (get(NEXT, before) != b) before = get(NEXT, before);
    set(NEXT, before, get(NEXT, b));
  }
  set(IS_ENTRY, b, 0);
}
