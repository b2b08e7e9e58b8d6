/**
 * Jobs: what the caller offers of an optimizer step, the micro-batches that are made of it when they start,
 * and whose turn it is. Turns are by cost, in rows of a forward: among jobs that could go on, the one that
 * has had the least.
 */
import { grant, rowsLeft } from "./batch";
import { available, blocksOf, findKeptRun, findSavedRun } from "./blocks";
import {
  BLOCKS,
  C_FREE_SEQUENCES,
  FEED,
  HOLD,
  JOBS,
  NONE,
  SAVED_ROWS,
  SEQUENCES,
  TRAIN,
} from "./config";
import { open } from "./sequences";
import { dropFor, holdFor, roomForJob } from "./slots";
import {
  counter,
  DONE,
  EXT_BASE,
  emitEvent,
  FORWARD,
  get,
  IDLE,
  JOB,
  JOB_CLASS,
  JOB_LAST,
  JOB_OPTIMIZER,
  JOB_PHASE,
  JOB_SEQ,
  JOB_SEQS,
  JOB_SLOT,
  LENGTH_OF,
  SAVE_BASE,
  set,
  take,
  trains,
} from "./state";
import { beginUnits, dropMicro, grantUnit, hasUnit } from "./units";

/** Of the rows on offer: how many, most in a micro-batch, whether all is kept, whether they are the last. */
const OFFERED: usize = take(JOBS * 4);
const OFFER_MOST: usize = take(JOBS * 4);
const OFFER_KEEP: usize = take(JOBS * 4);
const OFFER_LAST: usize = take(JOBS * 4);
/** Lengths of the rows on offer, in order. */
export const OFFER: usize = take(JOBS * SEQUENCES * 4);
const IS_OPEN: usize = take(JOBS * 4);
/** 1 for a job that waits for a slot, and its pages. */
const WANTS_SLOT: usize = take(JOBS * 4);
const WANTS_PAGES: usize = take(JOBS * 4);
/** The sequence of a micro-batch whose rows are next, and rows that are left of all. */
const JOB_AT: usize = take(JOBS * 4);
const JOB_LEFT: usize = take(JOBS * 4);
/** What a job has had, f64. */
const COST: usize = take(JOBS * 8);

function costOf(j: i32): f64 {
  return load<f64>(COST + ((<usize>j) << 3));
}
function setCost(j: i32, cost: f64): void {
  store<f64>(COST + ((<usize>j) << 3), cost);
}
export function resetJobs(): void {
  for (let j: i32 = 0; j < JOBS; j++) {
    set(JOB_PHASE, j, IDLE);
    set(JOB_SLOT, j, 0);
    set(IS_OPEN, j, 0);
    set(OFFERED, j, 0);
    set(WANTS_SLOT, j, 0);
  }
}
/** What a job trains from now on. */
export function openJob(j: i32, cls: i32, optimizer: i32): void {
  set(JOB_CLASS, j, cls);
  set(JOB_OPTIMIZER, j, optimizer);
  set(JOB_PHASE, j, IDLE);
  set(JOB_SEQS, j, 0);
  if (get(IS_OPEN, j) != 0) return;
  // It begins level with the one that has had least: nobody is owed for before.
  set(IS_OPEN, j, 1);
  setCost(j, leastCost(j));
}
function leastCost(but: i32): f64 {
  let least: f64 = Infinity;
  for (let k: i32 = 0; k < JOBS; k++) if (k != but && get(IS_OPEN, k) != 0) least = min(least, costOf(k));
  return least == Infinity ? 0 : least;
}
/** The job wants a slot of its own, of so many pages: SLOT says which, once it has one. */
export function wantSlot(j: i32, pages: i32): void {
  set(WANTS_SLOT, j, 1);
  set(WANTS_PAGES, j, pages);
}
/** Does a job wait for a slot that there is no room for? */
export function lacksSlot(): bool {
  for (let j: i32 = 0; j < JOBS; j++)
    if (get(WANTS_SLOT, j) != 0 && !roomForJob(j, get(WANTS_PAGES, j))) return true;
  return false;
}
/** Slots for jobs that wait for one. */
export function giveSlots(): void {
  for (let j: i32 = 0; j < JOBS; j++) {
    if (get(WANTS_SLOT, j) == 0) continue;
    const s: i32 = holdFor(j, get(WANTS_PAGES, j));
    if (s == NONE) continue;
    set(WANTS_SLOT, j, 0);
    set(JOB_SLOT, j, s);
    emitEvent(HOLD, j, s, 0);
  }
}
/** End a job, between two lists of its lane: its micro-batch is dropped, whatever its phase. */
export function closeJob(j: i32): void {
  dropMicro(j);
  set(WANTS_SLOT, j, 0);
  set(OFFERED, j, 0);
  set(IS_OPEN, j, 0);
  set(JOB_SLOT, j, 0);
  dropFor(j);
}

/**
 * The next rows of a job's optimizer step: `n` lengths at OFFER, at most `most` of them in a micro-batch;
 * `last` when they end the step. No rows: what was not taken is not any more.
 */
export function offer(j: i32, n: i32, most: i32, keep: i32, last: i32): void {
  set(OFFERED, j, n);
  set(OFFER_MOST, j, most);
  set(OFFER_KEEP, j, keep);
  set(OFFER_LAST, j, last);
}
/** Rows of the first sequence of the micro-batch that a job waits to start; 0 where it does not. */
export function offeredRows(j: i32): i32 {
  return get(OFFERED, j) > 0 && get(JOB_PHASE, j) == IDLE ? get(OFFER, j * SEQUENCES) : 0;
}
/**
 * Start a micro-batch of what is on offer: its first sequence, for which there is room, and what else fits,
 * but of blocks and of the table of sequences not the last quarter, nor what others (`blocks`, `sequences`)
 * wait for.
 */
export function startMicro(j: i32, blocks: i32, sequences: i32): void {
  const offered: i32 = min(get(OFFERED, j), get(OFFER_MOST, j));
  const freeBlocks: i32 = available() - blocks - BLOCKS / 4;
  const freeSequences: i32 = counter(C_FREE_SEQUENCES) - sequences - SEQUENCES / 4;
  let rows: i32 = 0;
  let used: i32 = 0;
  let n: i32 = 0;
  while (n < offered) {
    const length: i32 = get(OFFER, j * SEQUENCES + n);
    const fits: bool = used + blocksOf(length) <= freeBlocks && n < freeSequences;
    if (n > 0 && !fits) break;
    const base: i32 = findSavedRun(length);
    if (base == NONE) break;
    const ext: i32 = get(OFFER_KEEP, j) != 0 ? findKeptRun(get(JOB_CLASS, j), length) : NONE;
    const seq: i32 = open(TRAIN, length, length, get(JOB_SLOT, j), 0);
    set(SAVE_BASE, seq, base);
    set(EXT_BASE, seq, ext);
    set(JOB, seq, j);
    set(JOB_SEQ, j * SEQUENCES + n, seq);
    rows += length;
    used += blocksOf(length);
    n++;
    set(JOB_SEQS, j, n);
  }
  set(JOB_LAST, j, get(OFFER_LAST, j) != 0 && n == get(OFFERED, j) ? 1 : 0);
  set(OFFERED, j, 0);
  set(JOB_AT, j, 0);
  set(JOB_LEFT, j, rows);
  set(JOB_PHASE, j, FORWARD);
  // Who had nothing to do for long is not owed all of it.
  let most: f64 = costOf(j);
  for (let k: i32 = 0; k < JOBS; k++) if (get(IS_OPEN, k) != 0) most = max(most, costOf(k));
  setCost(j, max(costOf(j), most - <f64>(4 * SAVED_ROWS)));
  emitEvent(FEED, j, n, 0);
}
/** Micro-batches whose whole forward is committed go on to their units. Called when a step begins. */
export function settleForwards(): void {
  if (!trains()) return;
  for (let j: i32 = 0; j < JOBS; j++)
    if (get(JOB_PHASE, j) == FORWARD && get(JOB_LEFT, j) == 0) beginUnits(j);
}
function hasRows(j: i32): bool {
  return get(JOB_PHASE, j) == FORWARD && get(JOB_LEFT, j) > 0;
}
/** Jobs that have anything to compute; those whose next rows are in a forward. */
export function working(): i32 {
  let n: i32 = 0;
  if (trains()) for (let j: i32 = 0; j < JOBS; j++) if (hasUnit(j) || hasRows(j)) n++;
  return n;
}
export function anyRows(): bool {
  if (trains()) for (let j: i32 = 0; j < JOBS; j++) if (hasRows(j)) return true;
  return false;
}
/** The job whose turn it is, of those that this step has room for; NONE. */
export function nextJob(): i32 {
  let best: i32 = NONE;
  if (!trains()) return best;
  for (let j: i32 = 0; j < JOBS; j++)
    if ((hasUnit(j) || (hasRows(j) && rowsLeft() > 0)) && (best == NONE || costOf(j) < costOf(best)))
      best = j;
  return best;
}
/** A job goes on by a unit, or by at most `left` rows of its forward. Returns what it cost. */
export function grantJob(j: i32, left: i32): i32 {
  let cost: i32 = 0;
  if (hasUnit(j)) cost = grantUnit(j, left);
  else {
    const seq: i32 = get(JOB_SEQ, j * SEQUENCES + get(JOB_AT, j));
    cost = grant(seq, left);
    set(JOB_LEFT, j, get(JOB_LEFT, j) - cost);
    if (get(DONE, seq) == get(LENGTH_OF, seq)) set(JOB_AT, j, get(JOB_AT, j) + 1);
  }
  setCost(j, costOf(j) + <f64>cost);
  return cost;
}
