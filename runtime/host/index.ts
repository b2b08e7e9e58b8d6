/**
 * The host: two calls a step. `schedule` grants rows and units and writes the batch; `commit` appends, stops,
 * frees and reports.
 */
import { beginStep, emitForward } from "./batch";
import { allocate, canAllocate, findKeptRun, findSavedRun, release, resetBlocks } from "./blocks";
import {
  BLOCKS,
  C_ARRIVAL,
  C_COMMANDS,
  C_EVENTS,
  C_FREE,
  C_HEAD,
  C_LANES,
  C_MANY,
  C_META,
  C_ROWS,
  C_STEPS,
  C_TRAIN_ROWS,
  CONTEXT,
  FINISHED,
  FREE,
  GENERATE,
  HYPERS,
  JOBS,
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
  TRAIN,
} from "./config";
import { policy } from "./policy";
import { logSumExp, sample } from "./sampler";
import {
  ARRIVAL,
  bump,
  COMMANDS,
  COUNTERS,
  counter,
  DONE,
  DROP_KEY,
  DROP_P,
  EVENTS,
  EXT_BASE,
  emitEvent,
  enter,
  FIRST,
  FORWARD,
  FREE_BLOCKS,
  get,
  HEAD_POS,
  HEAD_SEQ,
  HYPER,
  IDLE,
  JOB,
  JOB_CLASS,
  JOB_LAST,
  JOB_PHASE,
  JOB_SEQ,
  JOB_SEQS,
  JOB_OPTIMIZER,
  JOB_SLOT,
  KIND,
  LABELS,
  LENGTH_OF,
  LIMIT,
  LOG_SUMS,
  LOGITS,
  META,
  MIN_P,
  NUM_STOPS,
  PENALTY,
  ROW_SEQ,
  ROW_WEIGHT,
  SAVE_BASE,
  SEED,
  SLOT,
  SLOT_FRESH,
  SLOT_MASK,
  STOPS,
  set,
  setf,
  TEMPERATURE,
  TOKENS,
  TOP_K,
  TOP_P,
} from "./state";
import { dropMicro, finishMicros, refreshSlots } from "./units";

/**
 * `many`: rows from which a step takes the kernels for many. `lanes`: command lists that may be on their way
 * at once.
 */
export function init(many: i32, lanes: i32): void {
  set(COUNTERS, C_MANY, many);
  set(COUNTERS, C_LANES, lanes);
  for (let s: i32 = 0; s < SEQUENCES; s++) set(KIND, s, FREE);
  for (let j: i32 = 0; j < JOBS; j++) set(JOB_PHASE, j, IDLE);
  resetBlocks();
}
// Addresses of what the engine reads and writes.
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
export function addrLogSums(): usize {
  return LOG_SUMS;
}
export function counterOf(lane: i32, i: i32): i32 {
  enter(lane);
  return counter(i);
}
export function addrTokens(seq: i32): usize {
  return TOKENS + ((<usize>(seq * CONTEXT)) << 2);
}
export function addrLabels(seq: i32): usize {
  return LABELS + ((<usize>(seq * CONTEXT)) << 2);
}
export function addrHyper(job: i32): usize {
  return HYPER + <usize>(job * HYPERS) * 4;
}
export function addrStops(seq: i32): usize {
  return STOPS + ((<usize>(seq * STOPS_PER_SEQUENCE)) << 2);
}
export function freeBlocks(): i32 {
  return counter(C_FREE);
}
export function addrFreeBlocks(): usize {
  return FREE_BLOCKS;
}
export function kindOf(seq: i32): i32 {
  return get(KIND, seq);
}
export function jobOf(seq: i32): i32 {
  return get(JOB, seq);
}
export function doneOf(seq: i32): i32 {
  return get(DONE, seq);
}
export function saveBase(seq: i32): i32 {
  return get(SAVE_BASE, seq);
}
export function jobPhase(j: i32): i32 {
  return get(JOB_PHASE, j);
}
export function setMask(slot: i32, word: i32, mask: i32): void {
  set(SLOT_MASK, slot * MASK_WORDS + word, mask);
  set(SLOT_FRESH, slot, 1);
}

/**
 * Requests take rows of the table from the front, training from the back; a quarter of it is never
 * training's.
 */
function freeForRequest(): i32 {
  for (let s: i32 = 0; s < SEQUENCES; s++) if (get(KIND, s) == FREE) return s;
  return NONE;
}
function freeForTraining(): i32 {
  for (let s: i32 = SEQUENCES - 1; s >= SEQUENCES / 4; s--) if (get(KIND, s) == FREE) return s;
  return NONE;
}
function open(seq: i32, kind: i32, length: i32, limit: i32, slot: i32): void {
  set(KIND, seq, kind);
  set(LENGTH_OF, seq, length);
  set(DONE, seq, 0);
  set(LIMIT, seq, limit);
  set(SLOT, seq, slot);
  set(SAVE_BASE, seq, NONE);
  set(EXT_BASE, seq, NONE);
  set(ARRIVAL, seq, counter(C_ARRIVAL));
  bump(C_ARRIVAL, 1);
  allocate(seq, limit);
}

/**
 * Admit a request of `length` tokens, the first `virtual` an adapter's own, that may grow to `limit`; its
 * tokens are then written at addrTokens. NONE: no room now.
 */
export function addRequest(kind: i32, length: i32, limit: i32, slot: i32, virtual: i32): i32 {
  const seq: i32 = freeForRequest();
  if (seq == NONE || !canAllocate(limit)) return NONE;
  open(seq, kind, length, limit, slot);
  set(FIRST, seq, virtual);
  setSampling(seq, 0, 0, 1, 0, 1, 0, 0);
  return seq;
}
export function setSampling(
  seq: i32,
  temperature: f32,
  topK: i32,
  topP: f32,
  minP: f32,
  penalty: f32,
  seed: i32,
  stops: i32,
): void {
  setf(TEMPERATURE, seq, temperature);
  set(TOP_K, seq, topK);
  setf(TOP_P, seq, topP);
  setf(MIN_P, seq, minP);
  setf(PENALTY, seq, penalty);
  set(SEED, seq, seed);
  set(NUM_STOPS, seq, stops);
}
/** Forget a request, between two lists of its lane; its blocks are free. */
export function cancel(seq: i32): void {
  release(seq);
  set(KIND, seq, FREE);
}

export function jobOpen(j: i32, slot: i32, cls: i32, optimizer: i32): void {
  set(JOB_SLOT, j, slot);
  set(JOB_CLASS, j, cls);
  set(JOB_OPTIMIZER, j, optimizer);
  set(JOB_PHASE, j, IDLE);
  set(JOB_SEQS, j, 0);
}
/**
 * Add a training sequence of `length` rows to the job's next micro-batch, reserving all it will need. NONE:
 * it does not fit now.
 */
export function jobAdd(j: i32, length: i32, weight: f32, dropKey: i32, dropP: f32, keep: i32): i32 {
  const seq: i32 = freeForTraining();
  if (seq == NONE || !canAllocate(length)) return NONE;
  const base: i32 = findSavedRun(length);
  if (base == NONE) return NONE;
  const ext: i32 = keep != 0 ? findKeptRun(get(JOB_CLASS, j), length) : NONE;
  open(seq, TRAIN, length, length, get(JOB_SLOT, j));
  set(SAVE_BASE, seq, base);
  set(EXT_BASE, seq, ext);
  set(JOB, seq, j);
  setf(ROW_WEIGHT, seq, weight);
  set(DROP_KEY, seq, dropKey);
  setf(DROP_P, seq, dropP);
  set(JOB_SEQ, j * SEQUENCES + get(JOB_SEQS, j), seq);
  set(JOB_SEQS, j, get(JOB_SEQS, j) + 1);
  return seq;
}
export function jobStart(j: i32, last: i32): void {
  set(JOB_LAST, j, last);
  set(JOB_PHASE, j, FORWARD);
}
/** End a job, between two lists of its lane: its micro-batch is dropped, whatever its phase. */
export function jobClose(j: i32): void {
  dropMicro(j);
  set(JOB_SLOT, j, 0);
}

/**
 * Grant and pack one step of a lane. Returns the number of commands; when it is 0 and no unit was granted,
 * there is nothing to do.
 */
export function schedule(lane: i32, budget: i32, idle: i32): i32 {
  enter(lane);
  for (let i: i32 = C_ROWS; i <= C_TRAIN_ROWS; i++) bump(i, -counter(i));
  bump(C_STEPS, 1);
  beginStep();
  // Units are packed by the policy into their own blocks; the forward's commands come first in the list only
  // if rows were granted before them, and units never read what this step's forward writes: a job is in its
  // unit phases only once its whole forward was committed.
  refreshSlots();
  policy(budget, idle);
  emitForward();
  bump(C_META, META_WORDS);
  return counter(C_COMMANDS);
}

/**
 * After a lane's step ran and logits rows were copied to addrLogits: append sampled tokens, finish, free,
 * report. Returns the number of events.
 */
export function commit(lane: i32): i32 {
  enter(lane);
  finishMicros();
  for (let h: i32 = 0; h < counter(C_HEAD); h++) {
    const seq: i32 = get(HEAD_SEQ, h);
    const kind: i32 = get(KIND, seq);
    store<f64>(LOG_SUMS + ((<usize>h) << 3), logSumExp(h));
    if (kind == SCORE) {
      emitEvent(SCORED, seq, get(HEAD_POS, h), h);
      if (get(HEAD_POS, h) == get(LENGTH_OF, seq) - 1) {
        release(seq);
        set(KIND, seq, FREE);
        emitEvent(FINISHED, seq, STOP, 0);
      }
    } else if (kind == GENERATE) {
      const id: i32 = sample(seq, h);
      const length: i32 = get(LENGTH_OF, seq);
      let stop: bool = false;
      for (let i: i32 = 0; i < get(NUM_STOPS, seq); i++)
        if (get(STOPS, seq * STOPS_PER_SEQUENCE + i) == id) stop = true;
      emitEvent(TOKEN, seq, id, h);
      if (stop || length + 1 >= get(LIMIT, seq)) {
        release(seq);
        set(KIND, seq, FREE);
        emitEvent(FINISHED, seq, stop ? STOP : LENGTH, 0);
      } else {
        set(TOKENS, seq * CONTEXT + length, id);
        set(LENGTH_OF, seq, length + 1);
      }
    }
  }
  return counter(C_EVENTS);
}
export function blocksTotal(): i32 {
  return BLOCKS;
}
