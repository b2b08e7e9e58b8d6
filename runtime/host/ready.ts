/**
 * Requests that have rows to compute: those that decode take turns, prompts and scores are first come, first
 * served. Those that are paused, since their readers have enough for now, take none. Policies ask here and
 * grant; they never touch a sequence.
 */
import { grant } from "./batch";
import { NONE, SCORE, SEQUENCES } from "./config";
import { append, clearList, firstOf, LINK_BYTES, LIST_BYTES, lengthOf, nextOf, unlink } from "./lists";
import { fillPrefix, readPrefix } from "./reuse";
import { DONE, get, KIND, LENGTH_OF, serves, set, take } from "./state";

const DECODING: usize = take(LIST_BYTES);
const READING: usize = take(LIST_BYTES);
const SCORING: usize = take(LIST_BYTES);
/** In the order in which they came to a halt. */
const PAUSED: usize = take(LIST_BYTES);
const LINKS: usize = take(SEQUENCES * LINK_BYTES);
/** The list that a sequence is in; 0: none, its rows are on their way. */
const IN: usize = take(SEQUENCES * 4);
const IS_PAUSED: usize = take(SEQUENCES * 4);

export function resetReady(): void {
  clearList(DECODING);
  clearList(READING);
  clearList(SCORING);
  clearList(PAUSED);
}
/** Tokens of a sequence that have not been through the forward. */
export function remaining(s: i32): i32 {
  return get(LENGTH_OF, s) - get(DONE, s);
}
function joins(s: i32): void {
  let list: usize = remaining(s) == 1 ? DECODING : READING;
  if (get(KIND, s) == SCORE) list = SCORING;
  else if (get(IS_PAUSED, s) != 0) list = PAUSED;
  append(list, LINKS, s);
  set(IN, s, <i32>list);
}
/** A request begins to run. */
export function begins(s: i32): void {
  set(IS_PAUSED, s, 0);
  joins(s);
}
/** A request's next token is drawn: it has one to compute. */
export function ready(s: i32): void {
  joins(s);
}
/** It takes no rows from now on; or (false) it does again. Rows on their way go on to their end. */
export function pause(s: i32, on: bool): void {
  set(IS_PAUSED, s, on ? 1 : 0);
  if (get(IN, s) == 0) return;
  leave(s);
  joins(s);
}
/** Who has been paused for longest; NONE. And how many are. */
export function firstPaused(): i32 {
  return firstOf(PAUSED);
}
export function pausedAfter(s: i32): i32 {
  return nextOf(LINKS, s);
}
export function paused(): i32 {
  return lengthOf(PAUSED);
}
/** It ends, or is dropped. */
export function leave(s: i32): void {
  if (get(IN, s) == 0) return;
  unlink(<usize>get(IN, s), LINKS, s);
  set(IN, s, 0);
}
/**
 * Grant `n` rows to a request, behind what others computed of it; what is left of it waits where it belongs.
 * Returns what was granted.
 */
export function serve(s: i32, n: i32): i32 {
  readPrefix(s);
  const granted: i32 = grant(s, n);
  fillPrefix(s);
  const left: i32 = remaining(s);
  if (left == 0) leave(s);
  else if (left == 1 && get(IN, s) == <i32>READING) {
    leave(s);
    joins(s);
  }
  return granted;
}
/** How many decode: one token each is left to compute. None in a lane without requests. */
export function decoding(): i32 {
  return serves() ? lengthOf(DECODING) : 0;
}
/** Who waited longest of those that decode, of prompts, of scores; NONE where there is none. */
export function nextDecoding(): i32 {
  return serves() ? firstOf(DECODING) : NONE;
}
export function nextPrompt(): i32 {
  return serves() ? firstOf(READING) : NONE;
}
export function nextScore(): i32 {
  return serves() ? firstOf(SCORING) : NONE;
}
