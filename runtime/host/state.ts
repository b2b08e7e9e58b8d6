/**
 * Every array of the host, one field an array (struct of arrays), as long as what was chosen at load says.
 * They are taken once, when the module starts.
 *
 *   sequence s:  kind status length done slot job …            one row of each SEQ_* array
 *                TOKENS  [s][CONTEXT]   prompt, then what was generated; training rows' input ids
 *                LABELS  [s][CONTEXT]   training only: label of each row, -100 for none
 *                TABLE   [s][BLOCKS_PER_SEQUENCE]  cache block ids
 *   job j:       phase, cursor of its units, hyper-parameters
 *   lane:        metadata, commands, events and counters of one command list; two lists may be on their way
 *                at once
 */
import {
  BIASES_PER_SEQUENCE,
  BLOCKS,
  BLOCKS_PER_SEQUENCE,
  C_EVENTS,
  C_LANES,
  C_ROWS,
  CANDIDATE_WORDS,
  COMMAND_WORDS,
  CONTEXT,
  EVENT_WORDS,
  HEAD_ROWS,
  HYPERS,
  JOBS,
  MASK_WORDS,
  MAX_COMMANDS,
  MAX_EVENTS,
  MAX_LANES,
  MAX_RAISED,
  META_WORDS,
  SEQUENCES,
  SLOTS,
  STOPS_PER_SEQUENCE,
  TOKENS_PER_STEP,
  VOCAB,
} from "./config";

// job phases
export const IDLE: i32 = 0;
export const FORWARD: i32 = 1;
export const HEAD: i32 = 2;
export const BACKWARD: i32 = 3;
export const UPDATE: i32 = 4;
/** All units of a micro-batch are granted; with the commit of their step it is done. */
export const OVER: i32 = 5;
let top: usize = __heap_base;
/** Bytes of an array, zeros. */
export function take(bytes: i32): usize {
  const at: usize = (top + 15) & ~15;
  top = at + bytes;
  const more: i32 = <i32>((top + 0xffff) >>> 16) - memory.size();
  if (more > 0 && memory.grow(more) < 0) abort("bytes of memory");
  return at;
}

// @ts-ignore: decorator
@inline export function get(a: usize, i: i32): i32 {
  return load<i32>(a + ((<usize>i) << 2));
}
// @ts-ignore: decorator
@inline export function set(a: usize, i: i32, v: i32): void {
  store<i32>(a + ((<usize>i) << 2), v);
}
// @ts-ignore: decorator
@inline export function getf(a: usize, i: i32): f32 {
  return load<f32>(a + ((<usize>i) << 2));
}
// @ts-ignore: decorator
@inline export function setf(a: usize, i: i32, v: f32): void {
  store<f32>(a + ((<usize>i) << 2), v);
}

export const KIND: usize = take(SEQUENCES * 4);
/** Tokens known; tokens whose keys and values are in the cache. */
export const LENGTH_OF: usize = take(SEQUENCES * 4);
export const DONE: usize = take(SEQUENCES * 4);
/** Length at which generation ends. */
export const LIMIT: usize = take(SEQUENCES * 4);
/** Position of the first token that has a meaning: those before it are an adapter's own. */
export const FIRST: usize = take(SEQUENCES * 4);
/** Position of the first token that is generated. */
export const BEGIN: usize = take(SEQUENCES * 4);
export const SLOT: usize = take(SEQUENCES * 4);
export const NUM_BLOCKS: usize = take(SEQUENCES * 4);
export const TABLE: usize = take(SEQUENCES * BLOCKS_PER_SEQUENCE * 4);
export const TOKENS: usize = take(SEQUENCES * CONTEXT * 4);
export const LABELS: usize = take(SEQUENCES * CONTEXT * 4);
// sampling
export const TEMPERATURE: usize = take(SEQUENCES * 4);
export const TOP_K: usize = take(SEQUENCES * 4);
export const TOP_P: usize = take(SEQUENCES * 4);
export const MIN_P: usize = take(SEQUENCES * 4);
export const PENALTY: usize = take(SEQUENCES * 4);
export const PRESENCE: usize = take(SEQUENCES * 4);
export const FREQUENCY: usize = take(SEQUENCES * 4);
export const SEED: usize = take(SEQUENCES * 4);
/** How many of the likeliest tokens are reported with each. */
export const REPORTED: usize = take(SEQUENCES * 4);
/** Pairs of a token id and what is added to its logit. */
export const NUM_BIASES: usize = take(SEQUENCES * 4);
export const BIASES: usize = take(SEQUENCES * BIASES_PER_SEQUENCE * 8);
export const NUM_STOPS: usize = take(SEQUENCES * 4);
export const STOPS: usize = take(SEQUENCES * STOPS_PER_SEQUENCE * 4);
// training sequences
export const JOB: usize = take(SEQUENCES * 4);
export const SAVE_BASE: usize = take(SEQUENCES * 4);
export const EXT_BASE: usize = take(SEQUENCES * 4);
export const ROW_WEIGHT: usize = take(SEQUENCES * 4);
export const DROP_KEY: usize = take(SEQUENCES * 4);
export const DROP_P: usize = take(SEQUENCES * 4);
/** Sequences of a job's micro-batch, in order. */
export const JOB_SEQ: usize = take(JOBS * SEQUENCES * 4);
export const JOB_SEQS: usize = take(JOBS * 4);
export const JOB_PHASE: usize = take(JOBS * 4);
export const JOB_SLOT: usize = take(JOBS * 4);
/** Index of the training class: what the job trains. */
export const JOB_CLASS: usize = take(JOBS * 4);
/** 1 when this micro-batch ends an optimizer step. */
export const JOB_LAST: usize = take(JOBS * 4);
/** Index of its optimizer. */
export const JOB_OPTIMIZER: usize = take(JOBS * 4);
/** Cursor: layer, index into JOB_SEQ, quantum, chunk of label rows. */
export const CUR_LAYER: usize = take(JOBS * 4);
export const CUR_SEQ: usize = take(JOBS * 4);
export const CUR_QUANTUM: usize = take(JOBS * 4);
export const CUR_CHUNK: usize = take(JOBS * 4);
/** What each job tells its updates: the words of their headers from the learning rate on. */
export const HYPER: usize = take(JOBS * HYPERS * 4);

/** Mask words of each slot: the adapter branches it has. */
export const SLOT_MASK: usize = take((SLOTS + 1) * MASK_WORDS * 4);
/** 1 for a slot that was filled since the last step. */
export const SLOT_FRESH: usize = take((SLOTS + 1) * 4);
export const FREE_BLOCKS: usize = take(BLOCKS * 4);

/**
 * A lane is a queue of command lists: requests have the first, jobs the last. A device that plays one list at
 * a time has one lane for both. Everything below is a lane's own, and these names mean the lane that was
 * entered.
 */
/** Counters of all lanes, then those of each. */
export const COUNTERS: usize = take(64 + MAX_LANES * 64);
const METAS: usize = take(MAX_LANES * META_WORDS * 4);
export let META: usize = METAS;
const COMMAND_LISTS: usize = take(MAX_LANES * MAX_COMMANDS * COMMAND_WORDS * 4);
export let COMMANDS: usize = COMMAND_LISTS;
const EVENT_LISTS: usize = take(MAX_LANES * MAX_EVENTS * EVENT_WORDS * 4);
export let EVENTS: usize = EVENT_LISTS;
/** Sequence and position of each logits row; only requests have some. */
export const HEAD_SEQ: usize = take(HEAD_ROWS * 4);
export const HEAD_POS: usize = take(HEAD_ROWS * 4);
export const LOGITS: usize = take(HEAD_ROWS * VOCAB * 4);
/** What was picked out of each row. */
export const PICKED: usize = take(HEAD_ROWS * CANDIDATE_WORDS * 4);
/**
 * Is a logits row to be read whole? The token that its candidates tell; NONE: one is drawn from all of it.
 */
export const WHOLE: usize = take(HEAD_ROWS * 4);
/** The token that a row's candidates tell; NONE: one is drawn from all of it. */
export const TOLD: usize = take(HEAD_ROWS * 4);
/** Ids whose logits are read one by one: how many, then which, MAX_RAISED + 1 a row. */
export const RAISED: usize = take(HEAD_ROWS * (MAX_RAISED + 1) * 4);
/** ln Σ exp of each logits row, f64. */
export const LOG_SUMS: usize = take(HEAD_ROWS * 8);
export const HEAP: usize = take(VOCAB * 4);
const ROW_SEQS: usize = take(MAX_LANES * TOKENS_PER_STEP * 4);
export let ROW_SEQ: usize = ROW_SEQS;
let lane: i32 = 0;

/**
 * There is room for number `i` of at most `room`; where there is not, the bounds that the compiler computed
 * are wrong.
 */
// @ts-ignore: decorator
@inline export function within(i: i32, room: i32, what: string): void {
  if (<u32>i >= <u32>room) abort(what);
}

export function enter(l: i32): void {
  within(l, MAX_LANES, "lanes");
  lane = l;
  META = METAS + <usize>l * META_WORDS * 4;
  COMMANDS = COMMAND_LISTS + <usize>l * MAX_COMMANDS * COMMAND_WORDS * 4;
  EVENTS = EVENT_LISTS + <usize>l * MAX_EVENTS * EVENT_WORDS * 4;
  ROW_SEQ = ROW_SEQS + <usize>l * TOKENS_PER_STEP * 4;
}
/** 1 while a list of the lane is on its way. */
const FLYING: usize = take(MAX_LANES * 4);
export function flies(l: i32): bool {
  return get(FLYING, l) != 0;
}
export function setFlying(flying: bool): void {
  set(FLYING, lane, flying ? 1 : 0);
}
/** Has the entered lane requests; has it jobs? */
export function serves(): bool {
  return lane == 0;
}
export function trains(): bool {
  return lane == counter(C_LANES) - 1;
}

// @ts-ignore: decorator
@inline function counterAt(i: i32): usize {
  return COUNTERS + ((<usize>(i < C_ROWS ? i : i + lane * 16)) << 2);
}
export function counter(i: i32): i32 {
  return get(counterAt(i), 0);
}
export function bump(i: i32, by: i32): void {
  set(counterAt(i), 0, counter(i) + by);
}
export function emitEvent(type: i32, a: i32, b: i32, c: i32): void {
  within(counter(C_EVENTS), MAX_EVENTS, "events");
  const at: i32 = counter(C_EVENTS) * EVENT_WORDS;
  set(EVENTS, at, type);
  set(EVENTS, at + 1, a);
  set(EVENTS, at + 2, b);
  set(EVENTS, at + 3, c);
  bump(C_EVENTS, 1);
}
