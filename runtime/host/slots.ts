/**
 * Which adapter is in which slot; longer than most files, and one thing: who may have a slot, and its pages,
 * when. An adapter is a number of the caller's, 0 the base; the host knows those
 * that requests wait for or that a slot holds. Slots are a cache: least recently used, pinned while a request
 * runs on it. A slot has as many pages as its adapter takes. What somebody has waited for long enough is
 * drained: its adapters' next requests wait until they have other slots.
 *
 * A sum of adapters has a slot without pages, which points to those of its parts: they are in slots of their
 * own, and pinned with it. It has one no longer than requests run on it.
 *
 *   entry e:   adapter, slot, pages, running, when it was last used; the requests that wait for it, in order
 *   sum u:     an entry, and those of its parts
 *   slot s:    an entry, a job's own weights, or nothing; who it is drained for
 */
import { JOBS, LOAD, MOST_PARTS, MOST_SUMS, NONE, PAGES, PAGES_PER_SLOT, SLOTS } from "./config";
import { append, clearList, firstOf, LINK_BYTES, LIST_BYTES, lengthOf, nextOf, unlink } from "./lists";
import { freePages, freePagesOf, givePages, pagesOf } from "./pages";
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
let ENTRY_PAGES: usize = 0;
/** The sum that an entry is; NONE. And sums that it is part of. */
let ENTRY_SUM: usize = 0;
let PART_OF: usize = 0;
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
/** Of each sum: its entry (NONE: nobody's), how many parts, and their entries. */
const SUM_ENTRY: usize = take(MOST_SUMS * 4);
const SUM_PARTS: usize = take(MOST_SUMS * 4);
const PARTS: usize = take(MOST_SUMS * MOST_PARTS * 4);
/** What a caller says of a sum's parts: [adapter, pages] of each. */
export const PARTS_GIVEN: usize = take(MOST_PARTS * 8);
/** Admissions that overtook the first absent entry, and which that is. */
let passes: i32 = 0;
let passed: i32 = NONE;
/** Admissions that may overtake an adapter without a slot before one is drained for it. */
export const MAX_PASSES: i32 = 16;

/** Room for `requests` that wait, each for an adapter of its own. */
export function resetSlots(requests: i32): void {
  entries = requests + SLOTS + 1 + MOST_SUMS * MOST_PARTS;
  let chains: i32 = 1;
  while (chains < entries) chains *= 2;
  mask = chains - 1;
  ADAPTER = take(entries * 4);
  ENTRY_SLOT = take(entries * 4);
  ENTRY_PAGES = take(entries * 4);
  ENTRY_SUM = take(entries * 4);
  PART_OF = take(entries * 4);
  RUNS = take(entries * 4);
  USED = take(entries * 4);
  WAITING = take(entries * (LIST_BYTES / 4) * 4);
  LINKS = take(entries * (LINK_BYTES / 4) * 4);
  IS_ABSENT = take(entries * 4);
  CHAINS = take(chains * 4);
  CHAIN = take(entries * 4);
  for (let i: i32 = 0; i < chains; i++) set(CHAINS, i, NONE);
  for (let e: i32 = 0; e < entries; e++) set(CHAIN, e, e + 1);
  for (let u: i32 = 0; u < MOST_SUMS; u++) set(SUM_ENTRY, u, NONE);
  spare = 0;
  clearList(ABSENT);
  for (let s: i32 = 0; s <= SLOTS; s++) {
    set(SLOT_ENTRY, s, EMPTY);
    set(SLOT_FOR, s, NOBODY);
  }
  // The base is where it always is.
  const base: i32 = entryOf(0, 0);
  set(ENTRY_SLOT, base, 0);
  set(SLOT_ENTRY, 0, base);
}

function find(adapter: i32): i32 {
  let e: i32 = get(CHAINS, adapter & mask);
  while (e != NONE && get(ADAPTER, e) != adapter) e = get(CHAIN, e);
  return e;
}
/** The entry of an adapter that takes so many pages, made where there is none. */
export function entryOf(adapter: i32, pages: i32): i32 {
  const known: i32 = find(adapter);
  if (known != NONE) return known;
  const e: i32 = spare;
  within(e, entries, "adapters that requests wait for");
  spare = get(CHAIN, e);
  set(ADAPTER, e, adapter);
  set(ENTRY_SLOT, e, NONE);
  set(ENTRY_PAGES, e, pages);
  set(ENTRY_SUM, e, NONE);
  set(PART_OF, e, 0);
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
/** The entry of a sum of `n` parts, which PARTS_GIVEN names. */
export function sumOf(adapter: i32, n: i32): i32 {
  const known: i32 = find(adapter);
  if (known != NONE) return known;
  let u: i32 = 0;
  while (u < MOST_SUMS && get(SUM_ENTRY, u) != NONE) u++;
  within(u, MOST_SUMS, "sums of adapters");
  within(n, MOST_PARTS + 1, "parts of a sum");
  const e: i32 = entryOf(adapter, 0);
  set(ENTRY_SUM, e, u);
  set(SUM_ENTRY, u, e);
  set(SUM_PARTS, u, n);
  for (let i: i32 = 0; i < n; i++) {
    const p: i32 = entryOf(get(PARTS_GIVEN, i * 2), get(PARTS_GIVEN, i * 2 + 1));
    set(PARTS, u * MOST_PARTS + i, p);
    set(PART_OF, p, get(PART_OF, p) + 1);
  }
  return e;
}
/** Parts of an entry: none where it is no sum. */
function partsOf(e: i32): i32 {
  const u: i32 = get(ENTRY_SUM, e);
  return u == NONE ? 0 : get(SUM_PARTS, u);
}
function part(e: i32, i: i32): i32 {
  return get(PARTS, get(ENTRY_SUM, e) * MOST_PARTS + i);
}
function hasPart(e: i32, p: i32): bool {
  if (e == NONE) return false;
  for (let i: i32 = 0; i < partsOf(e); i++) if (part(e, i) == p) return true;
  return false;
}
/** Forget an entry that nothing holds. */
function tidy(e: i32): void {
  if (get(ENTRY_SLOT, e) != NONE || lengthOf(waitingFor(e)) > 0 || get(PART_OF, e) > 0) return;
  const head: i32 = get(ADAPTER, e) & mask;
  if (get(CHAINS, head) == e) set(CHAINS, head, get(CHAIN, e));
  else {
    let before: i32 = get(CHAINS, head);
    while (get(CHAIN, before) != e) before = get(CHAIN, before);
    set(CHAIN, before, get(CHAIN, e));
  }
  set(CHAIN, e, spare);
  spare = e;
  const n: i32 = partsOf(e);
  if (n > 0) set(SUM_ENTRY, get(ENTRY_SUM, e), NONE);
  for (let i: i32 = 0; i < n; i++) {
    const p: i32 = part(e, i);
    set(PART_OF, p, get(PART_OF, p) - 1);
    tidy(p);
  }
}
/** Requests that wait for an entry: a list. */
export function waitingFor(e: i32): usize {
  return WAITING + <usize>(e * LIST_BYTES);
}
/** Is an entry's adapter in a slot that takes requests, and all that it is a sum of? */
function resident(e: i32): bool {
  const s: i32 = get(ENTRY_SLOT, e);
  if (s == NONE || get(SLOT_FOR, s) != NOBODY) return false;
  for (let i: i32 = 0; i < partsOf(e); i++) if (!resident(part(e, i))) return false;
  return true;
}
/** Requests came to an entry, or left it; or its slot changed: is it among those that wait for one? */
export function settle(e: i32): void {
  const waits: bool = lengthOf(waitingFor(e)) > 0 && !resident(e);
  if (waits != (get(IS_ABSENT, e) != 0)) {
    set(IS_ABSENT, e, waits ? 1 : 0);
    if (waits) append(ABSENT, LINKS, e);
    else unlink(ABSENT, LINKS, e);
  }
  if (get(PART_OF, e) == 0) return;
  for (let u: i32 = 0; u < MOST_SUMS; u++) {
    const sum: i32 = get(SUM_ENTRY, u);
    if (sum != NONE && hasPart(sum, e)) settle(sum);
  }
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
  return e >= 0 && resident(e) ? e : NONE;
}
/** The entry that has waited longest for a slot; not one that still runs in a slot that is drained. */
export function firstAbsent(): i32 {
  let e: i32 = firstOf(ABSENT);
  while (e != NONE && get(ENTRY_SLOT, e) != NONE) e = nextOf(LINKS, e);
  return e;
}

/** Slots, and pages, that an entry needs before a request can run on it. */
function slotsFor(e: i32): i32 {
  let n: i32 = get(ENTRY_SLOT, e) == NONE ? 1 : 0;
  for (let i: i32 = 0; i < partsOf(e); i++) n += slotsFor(part(e, i));
  return n;
}
function pagesFor(e: i32): i32 {
  let n: i32 = get(ENTRY_SLOT, e) == NONE ? get(ENTRY_PAGES, e) : 0;
  for (let i: i32 = 0; i < partsOf(e); i++) n += pagesFor(part(e, i));
  return n;
}
/** May a slot be emptied for `who` now, who keeps what `e` is a sum of? */
function yields(s: i32, who: i32, e: i32): bool {
  const holds: i32 = get(SLOT_ENTRY, s);
  if (holds < EMPTY) return false;
  const drained: bool = get(SLOT_FOR, s) == who;
  if (!drained && get(SLOT_FOR, s) != NOBODY) return false;
  if (holds == EMPTY) return true;
  if (get(RUNS, holds) > 0 || hasPart(e, holds)) return false;
  return drained || lengthOf(waitingFor(holds)) == 0;
}
/** Are there so many slots and pages for `who`, of what is free, drained for it, or may be emptied? */
function room(who: i32, e: i32, slots: i32, pages: i32): bool {
  let s: i32 = 0;
  let n: i32 = 0;
  let p: i32 = freePages();
  while ((n < slots || p < pages) && ++s <= SLOTS)
    if (yields(s, who, e)) {
      n++;
      p += pagesOf(s);
    }
  return n >= slots && p >= pages;
}
/**
 * May requests ask for a sum of so many parts, which take so many pages in all? As many must be left as jobs
 * may take for as long as they run.
 */
export function sumFits(parts: i32, pages: i32): bool {
  return parts <= MOST_PARTS && parts + 1 <= SLOTS - JOBS && pages <= PAGES - JOBS * PAGES_PER_SLOT;
}
/** May a request run on an entry that has no slot, now? */
export function roomFor(e: i32): bool {
  // What it is a sum of may be drained for a job: it is not there any more once that has it.
  for (let i: i32 = 0; i < partsOf(e); i++) {
    const s: i32 = get(ENTRY_SLOT, part(e, i));
    if (s != NONE && get(SLOT_FOR, s) >= JOBS_FROM) return false;
  }
  return room(ADAPTERS, e, slotsFor(e), pagesFor(e));
}
function isFree(s: i32): bool {
  return get(SLOT_ENTRY, s) == EMPTY && get(SLOT_FOR, s) == NOBODY;
}
function usedAt(s: i32): i32 {
  const e: i32 = get(SLOT_ENTRY, s);
  return e < 0 ? -1 : get(USED, e);
}
/**
 * A slot of `pages` for `who`, who keeps what `e` is a sum of: those are emptied that were drained, or idle
 * longest.
 */
function takeSlot(who: i32, e: i32, pages: i32): i32 {
  let at: i32 = NONE;
  while (at == NONE || freePages() < pages) {
    let best: i32 = NONE;
    for (let s: i32 = 1; s <= SLOTS; s++) {
      if (s == at || !yields(s, who, e) || (at != NONE && pagesOf(s) == 0)) continue;
      const drained: bool = get(SLOT_FOR, s) == who;
      const first: bool = best == NONE || (drained && get(SLOT_FOR, best) != who);
      if (first || (drained == (get(SLOT_FOR, best) == who) && usedAt(s) < usedAt(best))) best = s;
    }
    empty(best);
    if (at == NONE) at = best;
  }
  givePages(at, pages);
  return at;
}
/** What was in a slot is not any more. */
function empty(s: i32): void {
  const e: i32 = get(SLOT_ENTRY, s);
  set(SLOT_ENTRY, s, EMPTY);
  set(SLOT_FOR, s, NOBODY);
  set(SLOT_FRESH, s, 0);
  freePagesOf(s);
  if (e >= 0) {
    set(ENTRY_SLOT, e, NONE);
    left(e);
  }
}
/** Drain slots for `who`, until so many and their pages will be: those with the fewest requests on them. */
function drainFor(who: i32, e: i32, slots: i32, pages: i32): void {
  let n: i32 = 0;
  let p: i32 = freePages();
  for (let s: i32 = 1; s <= SLOTS; s++)
    if (get(SLOT_FOR, s) == who ? !hasPart(e, get(SLOT_ENTRY, s)) : isFree(s)) {
      n++;
      p += pagesOf(s);
    }
  while (n < slots || p < pages) {
    let best: i32 = NONE;
    for (let s: i32 = 1; s <= SLOTS; s++) {
      const holds: i32 = get(SLOT_ENTRY, s);
      if (holds < 0 || get(SLOT_FOR, s) != NOBODY || hasPart(e, holds)) continue;
      if (best == NONE || lessBusy(holds, get(SLOT_ENTRY, best))) best = s;
    }
    if (best == NONE) return;
    set(SLOT_FOR, best, who);
    settle(get(SLOT_ENTRY, best));
    n++;
    p += pagesOf(best);
  }
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

/** An entry without a slot has one, and before it what it is a sum of: for `e`, which a request runs on. */
function bring(entry: i32, e: i32): void {
  for (let i: i32 = 0; i < partsOf(entry); i++) bring(part(entry, i), e);
  if (get(ENTRY_SLOT, entry) != NONE) return;
  const s: i32 = takeSlot(ADAPTERS, e, get(ENTRY_PAGES, entry));
  set(SLOT_ENTRY, s, entry);
  set(ENTRY_SLOT, entry, s);
  settle(entry);
  emitEvent(LOAD, get(ADAPTER, entry), s, 0);
}
function touch(e: i32, by: i32): void {
  set(RUNS, e, get(RUNS, e) + by);
  for (let i: i32 = 0; i < partsOf(e); i++) touch(part(e, i), by);
}
function use(e: i32): void {
  set(USED, e, ++clock);
  for (let i: i32 = 0; i < partsOf(e); i++) use(part(e, i));
}
/** A request begins to run on an entry: its slot. Where it has none yet, `roomFor` said that it may. */
export function runOn(e: i32): i32 {
  // Pinned from here on, so that no part makes room for another.
  touch(e, 1);
  use(e);
  if (get(ENTRY_SLOT, e) == NONE) {
    bring(e, e);
    undrain(ADAPTERS);
  }
  return get(ENTRY_SLOT, e);
}
/** It runs no more. */
export function runOff(e: i32): void {
  touch(e, -1);
  if (partsOf(e) > 0 && get(RUNS, e) == 0) empty(get(ENTRY_SLOT, e));
}
/** Does a request run on the slot? */
export function runsOn(s: i32): bool {
  const e: i32 = get(SLOT_ENTRY, s);
  return e >= 0 && get(RUNS, e) > 0;
}
/** The slot of an adapter that is in one. */
export function slotOf(adapter: i32): i32 {
  return get(ENTRY_SLOT, find(adapter));
}
/** An admission overtook the first absent entry; too many, and slots are drained for it. */
export function overtake(): void {
  const e: i32 = firstAbsent();
  if (e != passed) passes = 0;
  passed = e;
  if (e == NONE) undrain(ADAPTERS);
  else if (++passes >= MAX_PASSES) drainFor(ADAPTERS, e, slotsFor(e), pagesFor(e));
}
/** Nobody asks for an adapter any more: its slot is the first to be taken. */
export function forget(adapter: i32): void {
  const e: i32 = find(adapter);
  if (e != NONE) set(USED, e, 0);
}

/** Is there a slot of `pages` for a job's own weights now? */
export function roomForJob(j: i32, pages: i32): bool {
  return room(JOBS_FROM + j, NONE, 1, pages);
}
/** A job's own weights have a slot of `pages` from now on; NONE: it waits. */
export function holdFor(j: i32, pages: i32): i32 {
  const who: i32 = JOBS_FROM + j;
  if (!roomForJob(j, pages)) {
    drainFor(who, NONE, 1, pages);
    return NONE;
  }
  const s: i32 = takeSlot(who, NONE, pages);
  set(SLOT_ENTRY, s, EMPTY - 1 - j);
  undrain(who);
  return s;
}
/** The job has, and wants, no slot. */
export function dropFor(j: i32): void {
  undrain(JOBS_FROM + j);
  for (let s: i32 = 1; s <= SLOTS; s++) if (get(SLOT_ENTRY, s) == EMPTY - 1 - j) empty(s);
}
/** Slots that a request runs on, or a job trains; and their pages. */
export function slotsInUse(): i32 {
  let n: i32 = 0;
  for (let s: i32 = 1; s <= SLOTS; s++) if (inUse(s)) n++;
  return n;
}
export function pagesInUse(): i32 {
  let n: i32 = 0;
  for (let s: i32 = 1; s <= SLOTS; s++) if (inUse(s)) n += pagesOf(s);
  return n;
}
function inUse(s: i32): bool {
  return get(SLOT_ENTRY, s) < EMPTY || runsOn(s);
}
