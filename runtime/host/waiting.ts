/**
 * Requests that wait to be admitted: of callers, by adapter, as many as the load allows; and those with which
 * a job evaluates, which are the job's. A request is a ticket until it runs.
 */
import { needOf } from "./blocks";
import { C_REQUESTS, GENERATE, JOBS, NONE, SLOTS, START } from "./config";
import { append, clearList, firstOf, LINK_BYTES, LIST_BYTES, unlink } from "./lists";
import { begins } from "./ready";
import { lookUp, shares } from "./reuse";
import { ENTRY, open, setSampling } from "./sequences";
import {
  adapterOf,
  entryOf,
  firstAbsent,
  left,
  overtake,
  residentIn,
  roomFor,
  runOn,
  settle,
  sumOf,
  waitingFor,
} from "./slots";
import { bump, emitEvent, FIRST, get, JOB_SLOT, set, take } from "./state";

/** Words of a ticket. */
const T_KIND: i32 = 0;
const T_LENGTH: i32 = 1;
const T_LIMIT: i32 = 2;
const T_VIRTUAL: i32 = 3;
/** Its adapter's entry; NONE for a job's. */
const T_ENTRY: i32 = 4;
const T_JOB: i32 = 5;
/** Order of arrival: the smaller came first. */
const T_ARRIVAL: i32 = 6;
/** Whose prefixes it may share, of those with its adapter; 0: of all without one. */
const T_SALT: i32 = 7;
const T_WORDS: i32 = 8;
let TICKETS: usize = 0;
let LINKS: usize = 0;
let spare: i32 = 0;
let queued: i32 = 0;
let limit: i32 = 0;
let arrivals: i32 = 0;
/** Requests of each job. */
const EVALUATIONS: usize = take(JOBS * LIST_BYTES);

export function resetWaiting(most: i32): void {
  const tickets: i32 = most + JOBS;
  TICKETS = take(tickets * T_WORDS * 4);
  LINKS = take(tickets * (LINK_BYTES / 4) * 4);
  for (let t: i32 = 0; t < tickets; t++) set(LINKS, t * 2, t + 1 < tickets ? t + 1 : NONE);
  spare = 0;
  queued = 0;
  limit = most;
  for (let j: i32 = 0; j < JOBS; j++) clearList(evaluationsOf(j));
}
function word(t: i32, w: i32): i32 {
  return get(TICKETS, t * T_WORDS + w);
}
function note(t: i32, w: i32, value: i32): void {
  set(TICKETS, t * T_WORDS + w, value);
}
function evaluationsOf(j: i32): usize {
  return EVALUATIONS + <usize>(j * LIST_BYTES);
}
function listOf(t: i32): usize {
  const j: i32 = word(t, T_JOB);
  return j == NONE ? waitingFor(word(t, T_ENTRY)) : evaluationsOf(j);
}

/**
 * Queue a request of `length` tokens, the first `virtual` an adapter's own, that may grow to `limit`: of a
 * caller for an adapter that takes `pages`, or is the sum of `parts` (that many of PARTS_GIVEN); or of a job
 * on what it trains. Returns its ticket; NONE where the queue is full.
 */
export function submit(
  kind: i32,
  length: i32,
  most: i32,
  virtual: i32,
  adapter: i32,
  pages: i32,
  parts: i32,
  job: i32,
  salt: i32,
): i32 {
  if (spare == NONE || (job == NONE && queued == limit)) return NONE;
  const t: i32 = spare;
  spare = get(LINKS, t * 2);
  note(t, T_KIND, kind);
  note(t, T_LENGTH, length);
  note(t, T_LIMIT, most);
  note(t, T_VIRTUAL, virtual);
  note(t, T_JOB, job);
  const e: i32 = job != NONE ? NONE : parts > 0 ? sumOf(adapter, parts) : entryOf(adapter, pages);
  note(t, T_ENTRY, e);
  note(t, T_SALT, salt);
  note(t, T_ARRIVAL, ++arrivals);
  append(listOf(t), LINKS, t);
  if (job == NONE) {
    queued++;
    settle(word(t, T_ENTRY));
  }
  return t;
}
/** A request waits no more: it was given up, or runs. */
export function withdraw(t: i32): void {
  unlink(listOf(t), LINKS, t);
  set(LINKS, t * 2, spare);
  spare = t;
  if (word(t, T_JOB) != NONE) return;
  queued--;
  left(word(t, T_ENTRY));
}
function cameBefore(t: i32, other: i32): bool {
  return other == NONE || word(t, T_ARRIVAL) - word(other, T_ARRIVAL) < 0;
}
/** The first request for an entry; NONE. */
function firstFor(e: i32): i32 {
  return e == NONE ? NONE : firstOf(waitingFor(e));
}
/** The request that is next: the first whose adapter is in a slot, or may be put into one now. */
export function nextRequest(): i32 {
  if (queued == 0) return NONE;
  let best: i32 = NONE;
  for (let s: i32 = 0; s <= SLOTS; s++) {
    const t: i32 = firstFor(residentIn(s));
    if (t != NONE && cameBefore(t, best)) best = t;
  }
  const t: i32 = firstFor(firstAbsent());
  return t != NONE && cameBefore(t, best) && roomFor(firstAbsent()) ? t : best;
}
export function nextEvaluation(j: i32): i32 {
  return firstOf(evaluationsOf(j));
}
/** Does a request read and fill prefixes? */
function generates(t: i32): bool {
  return word(t, T_KIND) == GENERATE && word(t, T_JOB) == NONE;
}
/** Blocks of a request's prompt that are there already: into CHAIN. */
export function foundFor(t: i32): i32 {
  if (!generates(t)) return 0;
  return lookUp(t, word(t, T_LENGTH), adapterOf(word(t, T_ENTRY)), word(t, T_SALT));
}
/** Blocks that a request needs beside those of `found` that others hold. */
export function needOfTicket(t: i32, found: i32): i32 {
  return needOf(word(t, T_LIMIT), found);
}
/** Run a request, `found` blocks of which are in CHAIN: there is room, and a slot. */
export function run(t: i32, found: i32): void {
  const e: i32 = word(t, T_ENTRY);
  const j: i32 = word(t, T_JOB);
  const waits: i32 = firstFor(firstAbsent());
  const overtakes: bool = e != NONE && waits != NONE && waits != t && cameBefore(waits, t);
  const slot: i32 = j == NONE ? runOn(e) : get(JOB_SLOT, j);
  const seq: i32 = open(word(t, T_KIND), word(t, T_LENGTH), word(t, T_LIMIT), slot, found);
  if (generates(t)) shares(seq, adapterOf(e), word(t, T_SALT), found);
  set(ENTRY, seq, e);
  set(FIRST, seq, word(t, T_VIRTUAL));
  setSampling(seq, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0);
  begins(seq);
  bump(C_REQUESTS, 1);
  emitEvent(START, t, seq, slot);
  withdraw(t);
  if (overtakes) overtake();
}
