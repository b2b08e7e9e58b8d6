/** The table of sequences: who has a row of it, and what is given back when one ends. */
import { allocate, release } from "./blocks";
import {
  C_FREE_SEQUENCES,
  C_GIVEN,
  C_REQUESTS,
  FINISHED,
  FREE,
  GIVEN_UP,
  NONE,
  PREEMPT,
  SEQUENCES,
  TRAIN,
} from "./config";
import { leave } from "./ready";
import { keepsApart } from "./reuse";
import { runOff } from "./slots";
import {
  BEGIN,
  bump,
  counter,
  DONE,
  DROP_KEY,
  DROP_P,
  EXT_BASE,
  emitEvent,
  FREQUENCY,
  flies,
  get,
  KIND,
  LENGTH_OF,
  LIMIT,
  MIN_P,
  NUM_BIASES,
  NUM_STOPS,
  PENALTY,
  PRESENCE,
  REPORTED,
  ROW_WEIGHT,
  SAVE_BASE,
  SEED,
  SLOT,
  set,
  setf,
  TEMPERATURE,
  TOP_K,
  TOP_P,
  take,
} from "./state";

/** Rows of the table that nobody has: a stack. */
const FREE_SEQUENCES: usize = take(SEQUENCES * 4);
/** The entry of a request's adapter; NONE for those of jobs. */
export const ENTRY: usize = take(SEQUENCES * 4);
/** A request was given up while a list that has rows of it is on its way: it ends with that. */
const GONE: usize = take(SEQUENCES * 4);
let gone: i32 = 0;

export function resetSequences(): void {
  for (let s: i32 = 0; s < SEQUENCES; s++) {
    set(KIND, s, FREE);
    set(GONE, s, 0);
    set(FREE_SEQUENCES, s, SEQUENCES - 1 - s);
  }
  bump(C_FREE_SEQUENCES, SEQUENCES - counter(C_FREE_SEQUENCES));
}
/**
 * A sequence of `length` tokens that may grow to `limit`, with the blocks for them, the first `found` of them
 * those of CHAIN. There must be room.
 */
export function open(kind: i32, length: i32, limit: i32, slot: i32, found: i32): i32 {
  bump(C_FREE_SEQUENCES, -1);
  const seq: i32 = get(FREE_SEQUENCES, counter(C_FREE_SEQUENCES));
  set(KIND, seq, kind);
  set(LENGTH_OF, seq, length);
  set(BEGIN, seq, length);
  set(DONE, seq, 0);
  set(LIMIT, seq, limit);
  set(SLOT, seq, slot);
  set(SAVE_BASE, seq, NONE);
  set(EXT_BASE, seq, NONE);
  set(ENTRY, seq, NONE);
  keepsApart(seq);
  allocate(seq, limit, found);
  return seq;
}
/** Its blocks, its row of the table and its slot are free for others. */
export function close(seq: i32): void {
  release(seq);
  if (get(KIND, seq) != TRAIN) {
    leave(seq);
    bump(C_REQUESTS, -1);
    if (get(ENTRY, seq) != NONE) runOff(get(ENTRY, seq));
  }
  set(KIND, seq, FREE);
  set(FREE_SEQUENCES, counter(C_FREE_SEQUENCES), seq);
  bump(C_FREE_SEQUENCES, 1);
  bump(C_GIVEN, 1);
}
/**
 * A paused request gives what it holds to others, between two lists: it is asked for again when its reader
 * wants more, and what nobody needed meanwhile of what it had computed is found again by its prefix.
 */
export function preempt(seq: i32): void {
  emitEvent(PREEMPT, seq, 0, 0);
  close(seq);
}
/** Give a request up: at once, or (false) with the list that it may be in; FINISHED says so. */
export function cancel(seq: i32): bool {
  leave(seq);
  if (!flies(0)) {
    close(seq);
    return true;
  }
  set(GONE, seq, 1);
  gone++;
  return false;
}
export function isGone(seq: i32): bool {
  return get(GONE, seq) != 0;
}
/** The list is back: what was given up meanwhile ends. */
export function closeGone(): void {
  for (let s: i32 = 0; gone > 0 && s < SEQUENCES; s++) {
    if (get(GONE, s) == 0) continue;
    set(GONE, s, 0);
    gone--;
    close(s);
    emitEvent(FINISHED, s, GIVEN_UP, 0);
  }
}

/** How a request's tokens are drawn; its last `said` ones are of the answer already. */
export function setSampling(
  seq: i32,
  temperature: f32,
  topK: i32,
  topP: f32,
  minP: f32,
  penalty: f32,
  presence: f32,
  frequency: f32,
  biases: i32,
  seed: i32,
  stops: i32,
  said: i32,
  reported: i32,
): void {
  setf(TEMPERATURE, seq, temperature);
  set(TOP_K, seq, topK);
  setf(TOP_P, seq, topP);
  setf(MIN_P, seq, minP);
  setf(PENALTY, seq, penalty);
  setf(PRESENCE, seq, presence);
  setf(FREQUENCY, seq, frequency);
  set(NUM_BIASES, seq, biases);
  set(SEED, seq, seed);
  set(REPORTED, seq, reported);
  set(NUM_STOPS, seq, stops);
  set(BEGIN, seq, get(LENGTH_OF, seq) - said);
}
/** What a training sequence's rows weigh, and their dropout. */
export function setRow(seq: i32, weight: f32, key: i32, p: f32): void {
  setf(ROW_WEIGHT, seq, weight);
  set(DROP_KEY, seq, key);
  setf(DROP_P, seq, p);
}
