/**
 * Pages of adapters' tensors: each is free, or a slot's. A slot has as many as what is in it takes.
 *
 *   slot s:  pages by number, in the order of its adapter's layout
 */
import { NONE, PAGES, PAGES_PER_SLOT, SLOTS } from "./config";
import { get, set, take, within } from "./state";

/** Pages that no slot has: a stack. */
const FREE_PAGES: usize = take(PAGES * 4);
let free: i32 = 0;
const SLOT_PAGES: usize = take((SLOTS + 1) * PAGES_PER_SLOT * 4);
const COUNT: usize = take((SLOTS + 1) * 4);

export function resetPages(): void {
  for (let p: i32 = 0; p < PAGES; p++) set(FREE_PAGES, p, PAGES - 1 - p);
  free = PAGES;
  for (let s: i32 = 0; s <= SLOTS; s++) set(COUNT, s, 0);
}
export function freePages(): i32 {
  return free;
}
/** Pages of a slot: how many, and their numbers. */
export function pagesOf(s: i32): i32 {
  return get(COUNT, s);
}
export function addrPages(s: i32): usize {
  return SLOT_PAGES + ((<usize>(s * PAGES_PER_SLOT)) << 2);
}
/** A slot without pages has `n` of those that are free. There must be so many. */
export function givePages(s: i32, n: i32): void {
  within(n, min(free, PAGES_PER_SLOT) + 1, "pages of a slot");
  for (let i: i32 = 0; i < n; i++) set(SLOT_PAGES, s * PAGES_PER_SLOT + i, get(FREE_PAGES, --free));
  set(COUNT, s, n);
}
/** Its pages are free for others. */
export function freePagesOf(s: i32): void {
  for (let i: i32 = get(COUNT, s) - 1; i >= 0; i--) {
    set(FREE_PAGES, free++, get(SLOT_PAGES, s * PAGES_PER_SLOT + i));
    set(SLOT_PAGES, s * PAGES_PER_SLOT + i, NONE);
  }
  set(COUNT, s, 0);
}
