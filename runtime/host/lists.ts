/**
 * Lists of numbered things, linked through an array of pairs [next, previous]: one thing is in one list of an
 * array at most, and joins or leaves it at the same cost however many are in it.
 */
import { NONE } from "./config";
import { get, set } from "./state";

/** A list is three words: its first, its last, and how many there are. */
export const LIST_BYTES: i32 = 12;
/** Bytes of the links of one thing. */
export const LINK_BYTES: i32 = 8;

export function clearList(list: usize): void {
  set(list, 0, NONE);
  set(list, 1, NONE);
  set(list, 2, 0);
}
export function firstOf(list: usize): i32 {
  return get(list, 0);
}
export function lengthOf(list: usize): i32 {
  return get(list, 2);
}
export function nextOf(links: usize, i: i32): i32 {
  return get(links, i * 2);
}
export function append(list: usize, links: usize, i: i32): void {
  const last: i32 = get(list, 1);
  set(links, i * 2, NONE);
  set(links, i * 2 + 1, last);
  if (last == NONE) set(list, 0, i);
  else set(links, last * 2, i);
  set(list, 1, i);
  set(list, 2, get(list, 2) + 1);
}
export function unlink(list: usize, links: usize, i: i32): void {
  const next: i32 = get(links, i * 2);
  const before: i32 = get(links, i * 2 + 1);
  if (before == NONE) set(list, 0, next);
  else set(links, before * 2, next);
  if (next == NONE) set(list, 1, before);
  else set(links, next * 2 + 1, before);
  set(list, 2, get(list, 2) - 1);
}
