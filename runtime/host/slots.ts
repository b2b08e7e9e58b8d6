/**
 * Which adapter is in which slot. An adapter is a number of the caller's, 0 the base; the host knows those
 * that requests wait for or that a slot holds. Slots are a cache: least recently used, pinned while a request
 * runs on it. A slot that somebody has waited for long enough is drained: its adapter's next requests wait
 * until it has another.
 *
 *   entry e:   adapter, slot, running, when it was last used; the requests that wait for it, in order
 *   slot s:    an entry, a job's own weights, or nothing; who it is drained for
 */
import { LOAD, NONE, SLOTS } from "./config";
import { append, clearList, firstOf, LINK_BYTES, LIST_BYTES, lengthOf, nextOf, unlink } from "./lists";
import { emitEvent, get, SLOT_FRESH, set, take, within } from "./state";

/** What a slot holds beside entries: nothing, or (below) the weights that job `EMPTY - 1 - j` trains. */
const EMPTY: i32 = -1;
const SLOT_ENTRY: usize = take((SLOTS + 1) * 4);
/** Who a slot is drained for. */
const SLOT_FOR: usize = take((SLOTS + 1) * 4);
const NOBODY: i32 = 0;
/** The first adapter that waits for a slot; a job is `JOBS_FROM + j`. */
export const ADAPTERS: i32 = 1;
export const JOBS_FROM: i32 = 2;

/** Of each entry; made at the start, as many as there may be requests. */
let ADAPTER: usize = 0;
let ENTRY_SLOT: usize = 0;
let RUNS: usize = 0;
let USED: usize = 0;
let WAITING: usize = 0;
/** Entries without a slot that requests wait for, in order; else the next of a chain, or of the free ones. */
const ABSENT: usize = take(LIST_BYTES);
let LINKS: usize = 0;
let IS_ABSENT: usize = 0;
/** Entries by adapter: chains, and the next of each. */
let CHAINS: usize = 0;
let CHAIN: usize = 0;
let mask: i32 = 0;
let entries: i32 = 0;
let spare: i32 = 0;
let clock: i32 = 0;
/** Admissions that overtook the first absent entry, and which that is. */
let passes: i32 = 0;
let passed: i32 = NONE;
/** Admissions that may overtake an adapter without a slot before one is drained for it. */
export const MAX_PASSES: i32 = 16;

/** Room for `requests` that wait, each for an adapter of its own. */
export function resetSlots(requests: i32): void {
  entries = requests + SLOTS + 1;
  let chains: i32 = 1;
  while (chains < entries) chains *= 2;
  mask = chains - 1;
  ADAPTER = take(entries * 4);
  ENTRY_SLOT = take(entries * 4);
  RUNS = take(entries * 4);
  USED = take(entries * 4);
  WAITING = take(entries * (LIST_BYTES / 4) * 4);
  LINKS = take(entries * (LINK_BYTES / 4) * 4);
  IS_ABSENT = take(entries * 4);
  CHAINS = take(chains * 4);
  CHAIN = take(entries * 4);
  for (let i: i32 = 0; i < chains; i++) set(CHAINS, i, NONE);
  for (let e: i32 = 0; e < entries; e++) set(CHAIN, e, e + 1);
  spare = 0;
  clearList(ABSENT);
  for (let s: i32 = 0; s <= SLOTS; s++) {
    set(SLOT_ENTRY, s, EMPTY);
    set(SLOT_FOR, s, NOBODY);
  }
  // The base is where it always is.
  const base: i32 = entryOf(0);
  set(ENTRY_SLOT, base, 0);
  set(SLOT_ENTRY, 0, base);
}

function find(adapter: i32): i32 {
  let e: i32 = get(CHAINS, adapter & mask);
  while (e != NONE && get(ADAPTER, e) != adapter) e = get(CHAIN, e);
  return e;
}
/** The entry of an adapter, made where there is none. */
export function entryOf(adapter: i32): i32 {
  const known: i32 = find(adapter);
  if (known != NONE) return known;
  const e: i32 = spare;
  within(e, entries, "adapters that requests wait for");
  spare = get(CHAIN, e);
  set(ADAPTER, e, adapter);
  set(ENTRY_SLOT, e, NONE);
  set(RUNS, e, 0);
  set(USED, e, 0);
  set(IS_ABSENT, e, 0);
  clearList(waitingFor(e));
  set(CHAIN, e, get(CHAINS, adapter & mask));
  set(CHAINS, adapter & mask, e);
  return e;
}
/** The adapter of an entry. */
export function adapterOf(e: i32): i32 {
  return get(ADAPTER, e);
}
/** Forget an entry that nothing holds. */
function tidy(e: i32): void {
  if (get(ENTRY_SLOT, e) != NONE || lengthOf(waitingFor(e)) > 0) return;
  const head: i32 = get(ADAPTER, e) & mask;
  if (get(CHAINS, head) == e) set(CHAINS, head, get(CHAIN, e));
  else {
    let before: i32 = get(CHAINS, head);
    while (get(CHAIN, before) != e) before = get(CHAIN, before);
    set(CHAIN, before, get(CHAIN, e));
  }
  set(CHAIN, e, spare);
  spare = e;
}
/** Requests that wait for an entry: a list. */
export function waitingFor(e: i32): usize {
  return WAITING + <usize>(e * LIST_BYTES);
}
/** Is an entry's adapter in a slot that takes requests? */
function resident(e: i32): bool {
  const s: i32 = get(ENTRY_SLOT, e);
  return s != NONE && get(SLOT_FOR, s) == NOBODY;
}
/** Requests came to an entry, or left it; or its slot changed: is it among those that wait for one? */
export function settle(e: i32): void {
  const waits: bool = lengthOf(waitingFor(e)) > 0 && !resident(e);
  if (waits == (get(IS_ABSENT, e) != 0)) return;
  set(IS_ABSENT, e, waits ? 1 : 0);
  if (waits) append(ABSENT, LINKS, e);
  else unlink(ABSENT, LINKS, e);
}
/** A request that waited for an entry waits no more. */
export function left(e: i32): void {
  settle(e);
  tidy(e);
  // A slot that is drained for nobody would keep its own adapter's requests waiting.
  if (firstAbsent() == NONE) undrain(ADAPTERS);
}
/** The entry in a slot that takes requests; NONE. */
export function residentIn(s: i32): i32 {
  const e: i32 = get(SLOT_ENTRY, s);
  return e >= 0 && get(SLOT_FOR, s) == NOBODY ? e : NONE;
}
/** The entry that has waited longest for a slot; not one that still runs in a slot that is drained. */
export function firstAbsent(): i32 {
  let e: i32 = firstOf(ABSENT);
  while (e != NONE && get(ENTRY_SLOT, e) != NONE) e = nextOf(LINKS, e);
  return e;
}

/** A slot that `who` may have now: one drained for it, an empty one, the least recently used; NONE. */
export function slotFor(who: i32): i32 {
  let best: i32 = NONE;
  for (let s: i32 = 1; s <= SLOTS; s++) {
    const e: i32 = get(SLOT_ENTRY, s);
    if (e < EMPTY || (e >= 0 && get(RUNS, e) > 0)) continue;
    if (get(SLOT_FOR, s) == who) return s;
    if (get(SLOT_FOR, s) != NOBODY || (e >= 0 && lengthOf(waitingFor(e)) > 0)) continue;
    if (best == NONE || usedAt(s) < usedAt(best)) best = s;
  }
  return best;
}
function usedAt(s: i32): i32 {
  const e: i32 = get(SLOT_ENTRY, s);
  return e < 0 ? -1 : get(USED, e);
}
/** Drain a slot for `who`, unless one is: the one with the fewest requests on it. */
export function drainFor(who: i32): void {
  let best: i32 = NONE;
  for (let s: i32 = 1; s <= SLOTS; s++) {
    if (get(SLOT_FOR, s) == who) return;
    const e: i32 = get(SLOT_ENTRY, s);
    if (e < 0 || get(SLOT_FOR, s) != NOBODY) continue;
    if (best == NONE || lessBusy(e, get(SLOT_ENTRY, best))) best = s;
  }
  if (best == NONE) return;
  set(SLOT_FOR, best, who);
  settle(get(SLOT_ENTRY, best));
}
function lessBusy(a: i32, b: i32): bool {
  const by: i32 = get(RUNS, a) - get(RUNS, b);
  return by < 0 || (by == 0 && get(USED, a) < get(USED, b));
}
/** Nothing is drained for `who` any more. */
export function undrain(who: i32): void {
  for (let s: i32 = 1; s <= SLOTS; s++) {
    if (get(SLOT_FOR, s) != who) continue;
    set(SLOT_FOR, s, NOBODY);
    if (get(SLOT_ENTRY, s) >= 0) settle(get(SLOT_ENTRY, s));
  }
}
/** Take a slot that `slotFor` gave; what was in it is not any more. */
function empty(s: i32, who: i32): void {
  const e: i32 = get(SLOT_ENTRY, s);
  set(SLOT_ENTRY, s, EMPTY);
  set(SLOT_FOR, s, NOBODY);
  set(SLOT_FRESH, s, 0);
  if (e >= 0) {
    set(ENTRY_SLOT, e, NONE);
    left(e);
  }
  undrain(who);
}

/** A request begins to run on an entry: its slot. Where it has none yet, `slotFor(ADAPTERS)` is its own. */
export function runOn(e: i32, ticket: i32): i32 {
  let s: i32 = get(ENTRY_SLOT, e);
  if (s == NONE) {
    s = slotFor(ADAPTERS);
    empty(s, ADAPTERS);
    set(SLOT_ENTRY, s, e);
    set(ENTRY_SLOT, e, s);
    settle(e);
    emitEvent(LOAD, ticket, s, 0);
  }
  set(RUNS, e, get(RUNS, e) + 1);
  set(USED, e, ++clock);
  return s;
}
/** It runs no more. */
export function runOff(e: i32): void {
  set(RUNS, e, get(RUNS, e) - 1);
}
/** Does a request run on the slot? */
export function runsOn(s: i32): bool {
  const e: i32 = get(SLOT_ENTRY, s);
  return e >= 0 && get(RUNS, e) > 0;
}
/** An admission overtook the first absent entry; too many, and a slot is drained for it. */
export function overtake(): void {
  const e: i32 = firstAbsent();
  if (e != passed) passes = 0;
  passed = e;
  if (e == NONE) undrain(ADAPTERS);
  else if (++passes >= MAX_PASSES) drainFor(ADAPTERS);
}
/** Nobody asks for an adapter any more: its slot is the first to be taken. */
export function forget(adapter: i32): void {
  const e: i32 = find(adapter);
  if (e != NONE) set(USED, e, 0);
}

/** A job's own weights have a slot from now on; NONE: it waits. */
export function holdFor(j: i32): i32 {
  const who: i32 = JOBS_FROM + j;
  const s: i32 = slotFor(who);
  if (s == NONE) drainFor(who);
  else {
    empty(s, who);
    set(SLOT_ENTRY, s, EMPTY - 1 - j);
  }
  return s;
}
/** The job has, and wants, no slot. */
export function dropFor(j: i32): void {
  undrain(JOBS_FROM + j);
  for (let s: i32 = 1; s <= SLOTS; s++) if (get(SLOT_ENTRY, s) == EMPTY - 1 - j) set(SLOT_ENTRY, s, EMPTY);
}
/** Slots that a request runs on, or a job trains. */
export function slotsInUse(): i32 {
  let n: i32 = 0;
  for (let s: i32 = 1; s <= SLOTS; s++) if (get(SLOT_ENTRY, s) < EMPTY || runsOn(s)) n++;
  return n;
}
