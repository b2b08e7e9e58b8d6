/**
 * Who gets room: cache blocks, a row of the table of sequences, saved rows. Requests are one queue and each
 * job is one; the first of a queue that finds no room claims it. Claims are served in the order in which they
 * were made, and what a claim waits for nobody else may take: as everything that runs ends, every first of a
 * queue is served after those that claimed before it. What is paused has no end of its own: where it holds
 * what somebody waits for, it gives way, who has been paused for longest first.
 */
import { available, blocksOf, findSavedRun } from "./blocks";
import { C_EVENTS, C_FOUND, C_FREE_SEQUENCES, JOBS, NONE } from "./config";
import { giveSlots, lacksSlot, offeredRows, startMicro } from "./jobs";
import { firstPaused, pausedAfter } from "./ready";
import { preempt } from "./sequences";
import { firstAbsent, roomFor } from "./slots";
import { bump, counter, enter, get, SLOT, serves, set, take, trains } from "./state";
import { foundFor, needOfTicket, nextEvaluation, nextRequest, run } from "./waiting";

/** When each queue (requests, then jobs) claimed room: 0 where it has not, else the smaller is the older. */
const CLAIM: usize = take((JOBS + 1) * 4);
const PASSED_OVER: usize = take((JOBS + 1) * 4);
let claims: i32 = 0;

export function resetAdmission(): void {
  for (let q: i32 = 0; q <= JOBS; q++) set(CLAIM, q, 0);
  claims = 0;
}
/** Of the queues that are not passed over: the oldest claim, else the first without one. */
function nextQueue(): i32 {
  let best: i32 = NONE;
  for (let q: i32 = 0; q <= JOBS; q++) {
    if (get(PASSED_OVER, q) != 0) continue;
    const claim: i32 = get(CLAIM, q);
    if (best == NONE || (claim != 0 && (get(CLAIM, best) == 0 || claim - get(CLAIM, best) < 0))) best = q;
  }
  return best;
}
/** Are there so many blocks, and a row of the table beside so many others? */
function fits(blocks: i32, sequences: i32): bool {
  return blocks <= available() && sequences < counter(C_FREE_SEQUENCES);
}
/** Does an adapter, or a job, wait for a slot that there is no room for? */
function lacksSlots(): bool {
  return (firstAbsent() != NONE && !roomFor(firstAbsent())) || lacksSlot();
}
/** Who is paused on an adapter gives its slot to those that wait for one. */
function yieldSlots(): void {
  let s: i32 = firstPaused();
  while (s != NONE && lacksSlots()) {
    const next: i32 = pausedAfter(s);
    if (get(SLOT, s) != 0) preempt(s);
    s = next;
  }
}
/**
 * Decide what comes in before a lane's next step: slots for jobs, requests, micro-batches. The caller does
 * what the events say before it schedules. Returns how many there are.
 */
export function decide(lane: i32): i32 {
  enter(lane);
  bump(C_EVENTS, -counter(C_EVENTS));
  bump(C_FOUND, -counter(C_FOUND));
  if (serves()) yieldSlots();
  if (trains()) giveSlots();
  let blocks: i32 = 0;
  let sequences: i32 = 0;
  let runs: bool = false;
  for (let q: i32 = 0; q <= JOBS; q++) set(PASSED_OVER, q, 0);
  for (let q: i32 = nextQueue(); q != NONE; q = nextQueue()) {
    const t: i32 = q == 0 ? nextRequest() : nextEvaluation(q - 1);
    const rows: i32 = q == 0 || t != NONE ? 0 : offeredRows(q - 1);
    if (t == NONE && rows == 0) {
      set(CLAIM, q, 0);
      set(PASSED_OVER, q, 1);
      continue;
    }
    const found: i32 = rows > 0 ? 0 : foundFor(t);
    let need: i32 = rows > 0 ? blocksOf(rows) : needOfTicket(t, found);
    // A block that was held may be one that the prompt found: it has to be had then.
    while (!fits(need + blocks, sequences) && serves() && firstPaused() != NONE) {
      preempt(firstPaused());
      if (rows == 0) need = needOfTicket(t, found);
    }
    const room: bool =
      fits(need + blocks, sequences) && (rows == 0 || (!runs && findSavedRun(rows) != NONE));
    if (room && (rows > 0 ? trains() : serves())) {
      set(CLAIM, q, 0);
      if (rows > 0) startMicro(q - 1, blocks, sequences);
      else run(t, found);
      continue;
    }
    set(PASSED_OVER, q, 1);
    if (!room && get(CLAIM, q) == 0) set(CLAIM, q, ++claims);
    if (get(CLAIM, q) == 0) continue;
    blocks += need;
    sequences++;
    if (rows > 0) runs = true;
  }
  return counter(C_EVENTS);
}
