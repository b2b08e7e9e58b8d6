/**
 * The host: three calls a step. `decide` says what comes in, `schedule` grants rows and units and writes the
 * batch, `commit` appends, stops, frees and reports.
 */
import { decide, resetAdmission } from "./admission";
import { beginStep, emitForward } from "./batch";
import { logSum } from "./candidates";
import { ALL, available, discard, HOLDERS, idleBlocks, resetBlocks } from "./blocks";
import {
  BIASES_PER_SEQUENCE,
  BLOCKS,
  BLOCKS_PER_SEQUENCE,
  C_PICKS,
  C_COMMANDS,
  C_EVENTS,
  C_HEAD,
  C_LANES,
  C_FEW,
  C_META,
  C_ROWS,
  C_SPENT,
  C_STEPS,
  C_TRAIN_ROWS,
  C_UNITS,
  CONTEXT,
  FINISHED,
  HYPERS,
  LENGTH,
  MASK_WORDS,
  META_WORDS,
  NONE,
  SCORE,
  SCORED,
  SEQUENCES,
  STOP,
  STOPS_PER_SEQUENCE,
  TOKEN,
} from "./config";
import { closeJob, OFFER, offer, openJob, resetJobs, settleForwards, wantSlot } from "./jobs";
import { resetPages } from "./pages";
import { paced, took, want as wantPace } from "./pace";
import { policy } from "./policy";
import { isEntry, parentOf, resetPrefixes } from "./prefix";
import { ready, resetReady } from "./ready";
import { foundIn } from "./reuse";
import { sample } from "./sampler";
import { cancel, close, closeGone, isGone, resetSequences, setRow, setSampling } from "./sequences";
import { forget as forgetSlot, PARTS_GIVEN, resetSlots } from "./slots";
import {
  BIASES,
  bump,
  COMMANDS,
  COUNTERS,
  counter,
  EVENTS,
  emitEvent,
  enter,
  FREE_BLOCKS,
  get,
  HEAD_POS,
  HEAD_SEQ,
  HYPER,
  JOB,
  JOB_SEQ,
  KIND,
  LABELS,
  LENGTH_OF,
  LIMIT,
  LOG_SUMS,
  LOGITS,
  META,
  NUM_BLOCKS,
  NUM_STOPS,
  PICKED,
  RAISED,
  ROW_SEQ,
  SAVE_BASE,
  SLOT_FRESH,
  SLOT_MASK,
  STOPS,
  serves,
  set,
  setFlying,
  TABLE,
  TOKENS,
  TOLD,
  WHOLE,
} from "./state";
import { TABLES } from "./tables";
import { finishMicros, refreshSlots } from "./units";
import { resetWaiting, submit, withdraw } from "./waiting";

/**
 * `few`: rows that kernels for a few take at most, beside whole tiles; 0: none, negative: plain ones take
 * all. `lanes`: command lists that may be on their way at once. `queued`: requests that may
 * wait. `picks`: 1 where the device picks some out of logits rows.
 */
export function init(few: i32, lanes: i32, queued: i32, picks: i32): void {
  set(COUNTERS, C_FEW, few);
  set(COUNTERS, C_PICKS, picks);
  set(COUNTERS, C_LANES, lanes);
  resetSequences();
  resetPrefixes();
  resetBlocks();
  resetReady();
  resetPages();
  resetSlots(queued);
  resetWaiting(queued);
  resetJobs();
  resetAdmission();
}
export { decide } from "./admission";
export { settle } from "./candidates";
export {
  closeJob as jobClose,
  offer as jobOffer,
  openJob as jobOpen,
  wantSlot as jobSlot,
} from "./jobs";
export { pause } from "./ready";
export { share } from "./reuse";
export { cancel, setRow, setSampling } from "./sequences";
export { addrPages, freePages, pagesOf } from "./pages";
export { pagesInUse, slotOf, slotsInUse, sumFits } from "./slots";
export { submit, withdraw } from "./waiting";
/** Nobody asks for an adapter any more: its slot and what is kept of it go first. */
export function forget(adapter: i32): void {
  forgetSlot(adapter);
  discard(adapter);
}
/** The base weights change: what was computed with them holds no more. */
export function forgetAll(): void {
  discard(ALL);
}
/** Tokens of a request that were not computed for it. */
export function foundOf(seq: i32): i32 {
  return foundIn(seq);
}
// Addresses of what the engine reads and writes.
/** What a bundle tells is to be here before anything is asked. */
export function addrTables(): usize {
  return TABLES;
}
export function addrMeta(lane: i32): usize {
  enter(lane);
  return META;
}
export function addrCommands(lane: i32): usize {
  enter(lane);
  return COMMANDS;
}
export function addrEvents(lane: i32): usize {
  enter(lane);
  return EVENTS;
}
export function addrRowSeq(lane: i32): usize {
  enter(lane);
  return ROW_SEQ;
}
export function addrLogits(): usize {
  return LOGITS;
}
/** What was picked out of each row, where the device picks something. */
export function addrPicked(): usize {
  return PICKED;
}
/** Of each logits row: is it to be read whole? After a schedule, and after a settle that said so. */
export function addrWhole(): usize {
  return WHOLE;
}
/** Of each, the ids whose logits are read one by one: how many, then which, MAX_RAISED + 1 a row. */
export function addrRaised(): usize {
  return RAISED;
}
export function addrLogSums(): usize {
  return LOG_SUMS;
}
export function addrTokens(seq: i32): usize {
  return TOKENS + ((<usize>(seq * CONTEXT)) << 2);
}
export function addrLabels(seq: i32): usize {
  return LABELS + ((<usize>(seq * CONTEXT)) << 2);
}
export function addrStops(seq: i32): usize {
  return STOPS + ((<usize>(seq * STOPS_PER_SEQUENCE)) << 2);
}
export function addrHyper(j: i32): usize {
  return HYPER + ((<usize>(j * HYPERS)) << 2);
}
export function addrBiases(seq: i32): usize {
  return BIASES + ((<usize>(2 * seq * BIASES_PER_SEQUENCE)) << 2);
}
/** [adapter, pages] of each part of the sum that the next request is for. */
export function addrParts(): usize {
  return PARTS_GIVEN;
}
/** Lengths of the rows that a job offers. */
export function addrOffer(j: i32): usize {
  return OFFER + ((<usize>(j * SEQUENCES)) << 2);
}
/** Sequences of a job's micro-batch. */
export function addrMicro(j: i32): usize {
  return JOB_SEQ + ((<usize>(j * SEQUENCES)) << 2);
}
export function addrFreeBlocks(): usize {
  return FREE_BLOCKS;
}
export function counterOf(lane: i32, i: i32): i32 {
  enter(lane);
  return counter(i);
}
export function blocksTotal(): i32 {
  return BLOCKS;
}
/** Blocks that may be had; of these, those that are kept for their prefix until then. */
export function freeBlocks(): i32 {
  return available();
}
export function keptBlocks(): i32 {
  return idleBlocks();
}
/** Blocks of a sequence, in order. */
export function addrTable(seq: i32): usize {
  return TABLE + ((<usize>(seq * BLOCKS_PER_SEQUENCE)) << 2);
}
export function blocksOfSequence(seq: i32): i32 {
  return get(NUM_BLOCKS, seq);
}
/** How many sequences hold each block. */
export function addrHolders(): usize {
  return HOLDERS;
}
/** Is a block an entry of the prefixes, and which one does it go on from? */
export function isPrefix(block: i32): bool {
  return isEntry(block);
}
export function prefixBefore(block: i32): i32 {
  return parentOf(block);
}
export function kindOf(seq: i32): i32 {
  return get(KIND, seq);
}
export function jobOf(seq: i32): i32 {
  return get(JOB, seq);
}
export function saveBase(seq: i32): i32 {
  return get(SAVE_BASE, seq);
}
export function setMask(slot: i32, word: i32, mask: i32): void {
  set(SLOT_MASK, slot * MASK_WORDS + word, mask);
  set(SLOT_FRESH, slot, 1);
}
/** Microseconds that a step with requests should take at most, where `schedule` is given no budget. */
export function want(micros: i32): void {
  wantPace(micros);
}
/**
 * Grant and pack one step of a lane, of so many row-equivalents with requests (0: as many as take the time
 * that is wanted) and without. Returns the number of commands; when it is 0 and no unit was granted, there is
 * nothing to do.
 */
export function schedule(lane: i32, budget: i32, idle: i32): i32 {
  enter(lane);
  for (let i: i32 = C_ROWS; i <= C_TRAIN_ROWS; i++) bump(i, -counter(i));
  bump(C_STEPS, 1);
  beginStep();
  // Units are packed by the policy into their own blocks; the forward's commands come first in the list only
  // if rows were granted before them, and units never read what this step's forward writes: a job is in its
  // unit phases only once its whole forward was committed.
  settleForwards();
  refreshSlots();
  bump(C_SPENT, policy(budget > 0 ? budget : paced(), idle) - counter(C_SPENT));
  emitForward();
  bump(C_META, META_WORDS);
  setFlying(counter(C_COMMANDS) > 0 || counter(C_UNITS) > 0);
  return counter(C_COMMANDS);
}

/**
 * After a lane's step ran, in so many microseconds (0: nobody measured), logits rows that are read whole were
 * copied to addrLogits, and settle has nothing more to ask for: append sampled tokens, finish, free, report.
 * Returns the number of events.
 */
export function commit(lane: i32, micros: i32): i32 {
  enter(lane);
  setFlying(false);
  if (micros > 0 && serves()) took(micros);
  finishMicros();
  for (let h: i32 = 0; h < counter(C_HEAD); h++) {
    const seq: i32 = get(HEAD_SEQ, h);
    if (isGone(seq)) continue;
    store<f64>(LOG_SUMS + ((<usize>h) << 3), logSum(h));
    if (get(KIND, seq) == SCORE) scored(seq, h);
    else drawn(seq, h);
  }
  if (serves()) closeGone();
  return counter(C_EVENTS);
}
function scored(seq: i32, h: i32): void {
  emitEvent(SCORED, seq, get(HEAD_POS, h), h);
  if (get(HEAD_POS, h) < get(LENGTH_OF, seq) - 1) return;
  close(seq);
  emitEvent(FINISHED, seq, STOP, 0);
}
function drawn(seq: i32, h: i32): void {
  const id: i32 = get(TOLD, h) == NONE ? sample(seq, h) : get(TOLD, h);
  const length: i32 = get(LENGTH_OF, seq);
  let stop: bool = false;
  for (let i: i32 = 0; i < get(NUM_STOPS, seq); i++)
    if (get(STOPS, seq * STOPS_PER_SEQUENCE + i) == id) stop = true;
  emitEvent(TOKEN, seq, id, h);
  if (stop || length + 1 >= get(LIMIT, seq)) {
    close(seq);
    emitEvent(FINISHED, seq, stop ? STOP : LENGTH, 0);
  } else {
    set(TOKENS, seq * CONTEXT + length, id);
    set(LENGTH_OF, seq, length + 1);
    ready(seq);
  }
}
