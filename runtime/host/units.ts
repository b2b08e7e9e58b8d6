/**
 * The units of a job: head chunks, backward of one layer over one quantum, the update. Their order is fixed (head; layers down → sequences →
 * quanta last to first), so load never changes a sum.
 */
import {
  A_UNIT_DROP_KEY, A_UNIT_DROP_P, A_UNIT_EXT_ROW, A_UNIT_HEAD_DST, A_UNIT_HEAD_ROW, A_UNIT_IDS, A_UNIT_LABEL, A_UNIT_POS, A_UNIT_SAVE_ROW, A_UNIT_SLOT, A_UNIT_TABLE, A_UNIT_TABLES, A_UNIT_WEIGHT,
  BLOCKS_PER_SEQUENCE, CONTEXT, H_DKV_FIRST, H_JOB, H_LR, H_N_HEAD, H_N_KEYS, H_N_ROWS, H_SAVE_BASE, H_SITE_MASK, H_SLOT, HEAD_ROWS, HEADER_WORDS, LAYERS, P_BACKWARD_ALL, P_BACKWARD_BOUNDARY, P_BACKWARD_FULL_ALL, P_BACKWARD_FULL_BOUNDARY, P_CLIP, P_EMBED_BACKWARD,
  P_HEAD_TRAIN, P_HEAD_TRAIN_FULL, P_STEP_ADAMW, P_STEP_FULL_ADAMW, P_STEP_FULL_OUTER_ADAMW, P_STEP_FULL_OUTER_SGD, P_STEP_FULL_SGD, P_STEP_SGD, P_SUMSQ, P_SUMSQ_FULL, P_SUMSQ_FULL_OUTER,
  STEP_WORDS, UNIT_ROWS, UNIT_WORDS, UNITS, UPDATE_WORDS,
} from "./config";
import { DROPOUT, dropKey, emitProgram } from "./batch";
import { release } from "./blocks";
import {
  BACKWARD, bump, C_UNITS, counter, CUR_CHUNK, CUR_LAYER, CUR_QUANTUM, CUR_SEQ, DONE, DROP_KEY, DROP_P, emitEvent, EXT_BASE, FORWARD, FREE, get, getf, HEAD, HYPER, HYPERS, IDLE, IGNORE, JOB_FULL, JOB_LAST,
  JOB_PHASE, JOB_SEQ, JOB_SEQS, JOB_SGD, JOB_SITES, JOB_SLOT, KIND, LABELS, LENGTH_OF, META, MICRO_DONE, NONE, NUM_BLOCKS, ROW_WEIGHT, SAVE_BASE, set, setf, TABLE, TOKENS, UPDATE,
} from "./state";
import { SEQUENCES } from "./config";

function seqOf(j: i32): i32 {
  return get(JOB_SEQ, j * SEQUENCES + get(CUR_SEQ, j));
}
function lastQuantum(seq: i32): i32 {
  return (get(LENGTH_OF, seq) - 1) / UNIT_ROWS;
}

/** Have all rows of the micro-batch gone through the forward? Called before units are granted, after the forward's rows are committed. */
export function settleForward(j: i32): void {
  if (get(JOB_PHASE, j) != FORWARD) return;
  for (let i: i32 = 0; i < get(JOB_SEQS, j); i++) {
    const s: i32 = get(JOB_SEQ, j * SEQUENCES + i);
    if (get(DONE, s) < get(LENGTH_OF, s)) return;
  }
  set(JOB_PHASE, j, HEAD);
  set(CUR_SEQ, j, 0);
  set(CUR_CHUNK, j, 0);
  set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
}
export function hasUnit(j: i32): bool {
  return get(JOB_PHASE, j) >= HEAD && counter(C_UNITS) < UNITS;
}

/** Fill the unit's metadata block for rows [row0, row0 + n) of a sequence; returns its word offset. */
function openUnit(j: i32, seq: i32, row0: i32, n: i32): i32 {
  const b: i32 = STEP_WORDS + counter(C_UNITS) * UNIT_WORDS;
  bump(C_UNITS, 1);
  memory.fill(META + ((<usize>b) << 2), 0, HEADER_WORDS * 4);
  set(META, b + H_N_ROWS, n);
  set(META, b + H_JOB, get(JOB_FULL, j) != 0 ? 0 : j);
  set(META, b + H_SLOT, get(JOB_SLOT, j));
  set(META, b + H_SITE_MASK, get(JOB_SITES, j) | (get(DROP_KEY, seq) != 0 ? DROPOUT : 0));
  set(META, b + H_SAVE_BASE, get(SAVE_BASE, seq));
  set(META, b + H_N_KEYS, row0 + n);
  for (let i: i32 = 0; i < n; i++) {
    const pos: i32 = row0 + i;
    set(META, b + A_UNIT_IDS + i, get(TOKENS, seq * CONTEXT + pos));
    set(META, b + A_UNIT_POS + i, pos);
    set(META, b + A_UNIT_SLOT + i, get(JOB_SLOT, j));
    set(META, b + A_UNIT_TABLE + i, A_UNIT_TABLES);
    set(META, b + A_UNIT_SAVE_ROW + i, get(SAVE_BASE, seq) + pos);
    set(META, b + A_UNIT_EXT_ROW + i, get(EXT_BASE, seq) == NONE ? NONE : get(EXT_BASE, seq) + pos);
    set(META, b + A_UNIT_DROP_KEY + i, dropKey(get(DROP_KEY, seq), pos));
    set(META, b + A_UNIT_DROP_P + i, get(DROP_P, seq));
  }
  memory.copy(META + ((<usize>(b + A_UNIT_TABLES)) << 2), TABLE + ((<usize>(seq * BLOCKS_PER_SEQUENCE)) << 2), (<usize>get(NUM_BLOCKS, seq)) << 2);
  return b;
}

/** Run the job's next unit: emits its commands and moves the cursor. Returns its kind, or 0 when there is none. */
export function grantUnit(j: i32): i32 {
  const phase: i32 = get(JOB_PHASE, j);
  const full: bool = get(JOB_FULL, j) != 0;
  if (phase == HEAD) {
    const seq: i32 = seqOf(j);
    const q: i32 = get(CUR_QUANTUM, j);
    const row0: i32 = q * UNIT_ROWS;
    const n: i32 = min(UNIT_ROWS, get(LENGTH_OF, seq) - row0);
    const b: i32 = openUnit(j, seq, row0, n);
    const skip: i32 = get(CUR_CHUNK, j) * HEAD_ROWS;
    let seen: i32 = 0;
    let heads: i32 = 0;
    for (let i: i32 = 0; i < n; i++) {
      const label: i32 = get(LABELS, seq * CONTEXT + row0 + i);
      if (label == IGNORE) continue;
      if (seen++ < skip) continue;
      if (heads < HEAD_ROWS) {
        set(META, b + A_UNIT_HEAD_ROW + heads, get(SAVE_BASE, seq) + row0 + i);
        set(META, b + A_UNIT_HEAD_DST + heads, get(SAVE_BASE, seq) + row0 + i);
        set(META, b + A_UNIT_LABEL + heads, label);
        setf(META, b + A_UNIT_WEIGHT + heads, getf(ROW_WEIGHT, seq));
      }
      heads++;
    }
    set(META, b + H_N_HEAD, min(heads, HEAD_ROWS));
    // dh of the quantum is cleared by its first chunk only.
    if (skip > 0) set(META, b + H_N_ROWS, 0);
    emitProgram(full ? P_HEAD_TRAIN_FULL : P_HEAD_TRAIN, LAYERS, b);
    if (heads > HEAD_ROWS) set(CUR_CHUNK, j, get(CUR_CHUNK, j) + 1);
    else {
      set(CUR_CHUNK, j, 0);
      advance(j, BACKWARD);
    }
    return HEAD;
  }
  if (phase == BACKWARD) {
    const seq: i32 = seqOf(j);
    const q: i32 = get(CUR_QUANTUM, j);
    const layer: i32 = get(CUR_LAYER, j);
    const row0: i32 = q * UNIT_ROWS;
    const b: i32 = openUnit(j, seq, row0, min(UNIT_ROWS, get(LENGTH_OF, seq) - row0));
    set(META, b + H_DKV_FIRST, q == lastQuantum(seq) ? 1 : 0);
    const kept: bool = get(EXT_BASE, seq) != NONE;
    emitProgram(full ? (kept ? P_BACKWARD_FULL_ALL : P_BACKWARD_FULL_BOUNDARY) : kept ? P_BACKWARD_ALL : P_BACKWARD_BOUNDARY, layer, b);
    if (full && layer == 0) emitProgram(P_EMBED_BACKWARD, LAYERS, b);
    advance(j, UPDATE);
    return BACKWARD;
  }
  if (phase == UPDATE) {
    const b: i32 = STEP_WORDS + UNITS * UNIT_WORDS + j * UPDATE_WORDS;
    memory.fill(META + ((<usize>b) << 2), 0, HEADER_WORDS * 4);
    set(META, b + H_JOB, full ? 0 : j);
    set(META, b + H_SLOT, get(JOB_SLOT, j));
    set(META, b + H_SITE_MASK, get(JOB_SITES, j));
    for (let i: i32 = 0; i < HYPERS; i++) setf(META, b + H_LR + i, getf(HYPER, j * HYPERS + i));
    const sgd: bool = get(JOB_SGD, j) != 0;
    for (let l: i32 = 0; l < LAYERS; l++) emitProgram(full ? P_SUMSQ_FULL : P_SUMSQ, l, b);
    if (full) emitProgram(P_SUMSQ_FULL_OUTER, LAYERS, b);
    emitProgram(P_CLIP, LAYERS, b);
    for (let l: i32 = 0; l < LAYERS; l++) emitProgram(full ? (sgd ? P_STEP_FULL_SGD : P_STEP_FULL_ADAMW) : sgd ? P_STEP_SGD : P_STEP_ADAMW, l, b);
    if (full) emitProgram(sgd ? P_STEP_FULL_OUTER_SGD : P_STEP_FULL_OUTER_ADAMW, LAYERS, b);
    finish(j);
    return UPDATE;
  }
  return 0;
}

/** Next quantum of the phase; after the last one, the next layer or phase. */
function advance(j: i32, next: i32): void {
  const q: i32 = get(CUR_QUANTUM, j);
  if (q > 0) {
    set(CUR_QUANTUM, j, q - 1);
    return;
  }
  if (get(CUR_SEQ, j) + 1 < get(JOB_SEQS, j)) {
    set(CUR_SEQ, j, get(CUR_SEQ, j) + 1);
    set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
    return;
  }
  set(CUR_SEQ, j, 0);
  set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
  if (next == BACKWARD) {
    set(JOB_PHASE, j, BACKWARD);
    set(CUR_LAYER, j, LAYERS - 1);
  } else if (get(CUR_LAYER, j) > 0) set(CUR_LAYER, j, get(CUR_LAYER, j) - 1);
  else if (get(JOB_LAST, j) != 0) set(JOB_PHASE, j, UPDATE);
  else finish(j);
}

/** The micro-batch is done: its event carries where its losses lie, its sequences are released. */
function finish(j: i32): void {
  emitEvent(MICRO_DONE, j, get(JOB_LAST, j), 0);
  dropMicro(j);
}
export function dropMicro(j: i32): void {
  for (let i: i32 = 0; i < get(JOB_SEQS, j); i++) {
    const s: i32 = get(JOB_SEQ, j * SEQUENCES + i);
    release(s);
    set(KIND, s, FREE);
  }
  set(JOB_SEQS, j, 0);
  set(JOB_PHASE, j, IDLE);
}
