/**
 * The units of a job: head chunks, backward of one layer over some quanta, the update. Their order is fixed
 * (head; layers down → sequences → quanta last to first) and every quantum is a segment that kernels sum on
 * its own, so load and packing never change a sum.
 */
import { dropKey, emitProgram } from "./batch";
import { blocksOf } from "./blocks";
import {
  A_UNIT_DROP_KEY,
  A_UNIT_DROP_P,
  A_UNIT_EXT_ROW,
  A_UNIT_HEAD_DST,
  A_UNIT_HEAD_ROW,
  A_UNIT_IDS,
  A_UNIT_LABEL,
  A_UNIT_POS,
  A_UNIT_SAVE_ROW,
  A_UNIT_SEG_BASE,
  A_UNIT_SEG_FRESH,
  A_UNIT_SEG_HEAD,
  A_UNIT_SEG_HEADS,
  A_UNIT_SEG_KEYS,
  A_UNIT_SEG_ROW,
  A_UNIT_SEG_ROWS,
  A_UNIT_SLOT,
  A_UNIT_TABLE,
  A_UNIT_TABLES,
  A_UNIT_WEIGHT,
  BLOCKS_PER_SEQUENCE,
  C_UNITS,
  CONTEXT,
  DROPOUT,
  H_JOB,
  H_LR,
  H_MASK_0,
  H_MASK_4,
  H_N_HEAD,
  H_N_KEYS,
  H_N_ROWS,
  H_N_SEGMENTS,
  H_SLOT,
  H_TABLE_WORDS,
  HEAD_ROWS,
  HEADER_WORDS,
  HYPERS,
  IGNORE,
  JOBS,
  LAYERS,
  MASK_WORDS,
  MICRO_DONE,
  NONE,
  OPTIMIZERS,
  P_CLIP,
  P_ROW_NORMS,
  QUANTUM,
  SEGMENTS,
  SEQUENCES,
  SLOTS,
  STEP_WORDS,
  UNIT_ROW_COST,
  UNIT_ROWS,
  UNIT_TABLE_WORDS,
  UNIT_WORDS,
  UNITS,
  UPDATE_WORDS,
} from "./config";
import { close } from "./sequences";
import { runsOn } from "./slots";
import {
  BACKWARD,
  bump,
  CUR_CHUNK,
  CUR_LAYER,
  CUR_QUANTUM,
  CUR_SEQ,
  counter,
  DROP_KEY,
  DROP_P,
  EXT_BASE,
  emitEvent,
  get,
  getf,
  HEAD,
  HYPER,
  IDLE,
  JOB_CLASS,
  JOB_LAST,
  JOB_OPTIMIZER,
  JOB_PHASE,
  JOB_SEQ,
  JOB_SEQS,
  JOB_SLOT,
  LABELS,
  LENGTH_OF,
  META,
  OVER,
  ROW_WEIGHT,
  SAVE_BASE,
  SLOT_FRESH,
  SLOT_MASK,
  serves,
  set,
  setf,
  TABLE,
  TOKENS,
  trains,
  UPDATE,
  within,
} from "./state";
import {
  CLASS_BACKWARD,
  CLASS_COPY,
  CLASS_EMBED_BACKWARD,
  CLASS_FULL,
  CLASS_HEAD,
  CLASS_RERUN,
  CLASS_SUMSQ,
  CLASS_SUMSQ_OUTER,
  CLASS_UPDATE,
  CLASS_UPDATE_OUTER,
} from "./tables";

function seqOf(j: i32): i32 {
  return get(JOB_SEQ, j * SEQUENCES + get(CUR_SEQ, j));
}
function lastQuantum(seq: i32): i32 {
  return (get(LENGTH_OF, seq) - 1) / QUANTUM;
}
function rowsOf(seq: i32, q: i32): i32 {
  return min(QUANTUM, get(LENGTH_OF, seq) - q * QUANTUM);
}

/** The micro-batch has its forward behind it: its units are next. */
export function beginUnits(j: i32): void {
  // What has no loss begins with the layers.
  set(JOB_PHASE, j, get(CLASS_HEAD, get(JOB_CLASS, j)) < 0 ? BACKWARD : HEAD);
  set(CUR_LAYER, j, LAYERS - 1);
  set(CUR_SEQ, j, 0);
  set(CUR_CHUNK, j, 0);
  set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
}
export function hasUnit(j: i32): bool {
  return trains() && get(JOB_PHASE, j) >= HEAD && get(JOB_PHASE, j) != OVER && counter(C_UNITS) < UNITS;
}

/** Whose accumulators, slot and branches a unit or update works on. */
function openHeader(j: i32, b: i32): void {
  const slot: i32 = get(JOB_SLOT, j);
  set(META, b + H_JOB, get(CLASS_FULL, get(JOB_CLASS, j)) != 0 ? 0 : j);
  set(META, b + H_SLOT, slot);
  for (let w: i32 = 0; w < MASK_WORDS; w++)
    set(META, b + H_MASK_0 + w, get(SLOT_MASK, slot * MASK_WORDS + w));
}
/** An empty unit of a job; returns its block's word offset. */
function openUnit(j: i32): i32 {
  within(counter(C_UNITS), UNITS, "units");
  const b: i32 = STEP_WORDS + counter(C_UNITS) * UNIT_WORDS;
  bump(C_UNITS, 1);
  memory.fill(META + ((<usize>b) << 2), 0, HEADER_WORDS * 4);
  openHeader(j, b);
  return b;
}
/** Is the unit's last segment of this sequence? Then its block table is there already. */
function continues(b: i32, seq: i32): bool {
  const s: i32 = get(META, b + H_N_SEGMENTS);
  return s > 0 && get(META, b + A_UNIT_SEG_BASE + s - 1) == get(SAVE_BASE, seq);
}
function tableWords(seq: i32, q: i32): i32 {
  return blocksOf(q * QUANTUM + rowsOf(seq, q));
}
/** Does quantum `q` of a sequence fit a unit of at most `rows` rows? The first always does. */
function fits(b: i32, seq: i32, q: i32, rows: i32): bool {
  if (get(META, b + H_N_SEGMENTS) == 0) return true;
  if (get(META, b + H_N_SEGMENTS) == SEGMENTS || get(META, b + H_N_ROWS) + rowsOf(seq, q) > rows)
    return false;
  return continues(b, seq) || get(META, b + H_TABLE_WORDS) + tableWords(seq, q) <= UNIT_TABLE_WORDS;
}
/** Append quantum `q` of a sequence to the unit. */
function addSegment(j: i32, b: i32, seq: i32, q: i32): void {
  const s: i32 = get(META, b + H_N_SEGMENTS);
  const r0: i32 = get(META, b + H_N_ROWS);
  const row0: i32 = q * QUANTUM;
  const n: i32 = rowsOf(seq, q);
  const further: bool = continues(b, seq);
  const words: i32 = get(META, b + H_TABLE_WORDS);
  within(s, SEGMENTS, "segments of a unit");
  within(r0 + n - 1, UNIT_ROWS, "rows of a unit");
  if (!further) within(words + tableWords(seq, q) - 1, UNIT_TABLE_WORDS, "block tables of a unit");
  let table: i32 = A_UNIT_TABLES + words;
  if (further) table = get(META, b + A_UNIT_TABLE + r0 - 1);
  else {
    memory.copy(
      META + ((<usize>(b + table)) << 2),
      TABLE + ((<usize>(seq * BLOCKS_PER_SEQUENCE)) << 2),
      (<usize>tableWords(seq, q)) << 2,
    );
    set(META, b + H_TABLE_WORDS, words + tableWords(seq, q));
  }
  const keys: i32 = further ? 0 : row0 + n;
  set(META, b + A_UNIT_SEG_ROW + s, r0);
  set(META, b + A_UNIT_SEG_ROWS + s, n);
  set(META, b + A_UNIT_SEG_HEAD + s, get(META, b + H_N_HEAD));
  set(META, b + A_UNIT_SEG_HEADS + s, 0);
  set(META, b + A_UNIT_SEG_BASE + s, get(SAVE_BASE, seq));
  set(META, b + A_UNIT_SEG_FRESH + s, q == lastQuantum(seq) ? 1 : 0);
  set(META, b + A_UNIT_SEG_KEYS + s, keys);
  set(META, b + H_N_KEYS, get(META, b + H_N_KEYS) + keys);
  if (get(DROP_KEY, seq) != 0) set(META, b + H_MASK_4, get(META, b + H_MASK_4) | DROPOUT);
  for (let i: i32 = 0; i < n; i++) {
    const pos: i32 = row0 + i;
    const r: i32 = r0 + i;
    set(META, b + A_UNIT_IDS + r, get(TOKENS, seq * CONTEXT + pos));
    set(META, b + A_UNIT_POS + r, pos);
    set(META, b + A_UNIT_SLOT + r, get(JOB_SLOT, j));
    set(META, b + A_UNIT_TABLE + r, table);
    set(META, b + A_UNIT_SAVE_ROW + r, get(SAVE_BASE, seq) + pos);
    set(META, b + A_UNIT_EXT_ROW + r, get(EXT_BASE, seq) == NONE ? NONE : get(EXT_BASE, seq) + pos);
    set(META, b + A_UNIT_DROP_KEY + r, dropKey(get(DROP_KEY, seq), pos));
    set(META, b + A_UNIT_DROP_P + r, get(DROP_P, seq));
  }
  set(META, b + H_N_SEGMENTS, s + 1);
  set(META, b + H_N_ROWS, r0 + n);
}
function labelsOf(seq: i32, q: i32): i32 {
  let n: i32 = 0;
  for (let i: i32 = 0; i < rowsOf(seq, q); i++)
    if (get(LABELS, seq * CONTEXT + q * QUANTUM + i) != IGNORE) n++;
  return n;
}
/** Label rows of the unit's last segment, from its `skip`-th: as many as there is room for. */
function addLabels(b: i32, seq: i32, q: i32, skip: i32): void {
  const s: i32 = get(META, b + H_N_SEGMENTS) - 1;
  let h: i32 = get(META, b + H_N_HEAD);
  let seen: i32 = 0;
  for (let i: i32 = 0; i < rowsOf(seq, q); i++) {
    const row: i32 = q * QUANTUM + i;
    const label: i32 = get(LABELS, seq * CONTEXT + row);
    if (label == IGNORE || seen++ < skip || h == HEAD_ROWS) continue;
    set(META, b + A_UNIT_HEAD_ROW + h, get(SAVE_BASE, seq) + row);
    set(META, b + A_UNIT_HEAD_DST + h, get(SAVE_BASE, seq) + row);
    set(META, b + A_UNIT_LABEL + h, label);
    setf(META, b + A_UNIT_WEIGHT + h, getf(ROW_WEIGHT, seq));
    h++;
  }
  set(META, b + A_UNIT_SEG_HEADS + s, h - get(META, b + H_N_HEAD));
  set(META, b + H_N_HEAD, h);
}

/**
 * Run the job's next unit, of about as many rows as `budget` pays for: emits its commands and moves the
 * cursor. Returns what it costs.
 */
export function grantUnit(j: i32, budget: i32): i32 {
  const phase: i32 = get(JOB_PHASE, j);
  const cls: i32 = get(JOB_CLASS, j);
  const rows: i32 = min(UNIT_ROWS, (max(0, budget) * 1024) / UNIT_ROW_COST);
  if (phase == UPDATE) {
    update(j, cls);
    return max(1, (QUANTUM * UNIT_ROW_COST) / 1024);
  }
  const b: i32 = openUnit(j);
  if (phase == HEAD) {
    // A quantum with more labels than a chunk holds has units of its own; others share one.
    const skip: i32 = get(CUR_CHUNK, j) * HEAD_ROWS;
    while (get(JOB_PHASE, j) == HEAD) {
      const seq: i32 = seqOf(j);
      const q: i32 = get(CUR_QUANTUM, j);
      const labels: i32 = labelsOf(seq, q);
      if (
        !fits(b, seq, q, rows) ||
        (get(META, b + H_N_SEGMENTS) > 0 && get(META, b + H_N_HEAD) + labels > HEAD_ROWS)
      )
        break;
      addSegment(j, b, seq, q);
      addLabels(b, seq, q, skip);
      if (labels > skip + HEAD_ROWS) {
        set(CUR_CHUNK, j, get(CUR_CHUNK, j) + 1);
        break;
      }
      set(CUR_CHUNK, j, 0);
      advance(j, BACKWARD);
      if (labels > HEAD_ROWS) break;
    }
    const n: i32 = get(META, b + H_N_ROWS);
    // dh of a quantum is cleared by its first chunk only.
    if (skip > 0) set(META, b + H_N_ROWS, 0);
    emitProgram(get(CLASS_HEAD, cls), LAYERS, b);
    return cost(n);
  }
  const layer: i32 = get(CUR_LAYER, j);
  const kept: bool = get(EXT_BASE, seqOf(j)) != NONE;
  while (get(JOB_PHASE, j) == BACKWARD && get(CUR_LAYER, j) == layer) {
    const seq: i32 = seqOf(j);
    const q: i32 = get(CUR_QUANTUM, j);
    if (!fits(b, seq, q, rows) || (get(EXT_BASE, seq) != NONE) != kept) break;
    addSegment(j, b, seq, q);
    if (advance(j, UPDATE)) break;
  }
  emitProgram(kept ? get(CLASS_COPY, cls) : get(CLASS_RERUN, cls), layer, b);
  emitProgram(get(CLASS_BACKWARD, cls), layer, b);
  if (layer == 0) emitProgram(get(CLASS_EMBED_BACKWARD, cls), LAYERS, b);
  const n: i32 = get(META, b + H_N_ROWS);
  return cost(n);
}
function cost(rows: i32): i32 {
  return max(1, (rows * UNIT_ROW_COST) / 1024);
}

function update(j: i32, cls: i32): void {
  const b: i32 = STEP_WORDS + UNITS * UNIT_WORDS + j * UPDATE_WORDS;
  memory.fill(META + ((<usize>b) << 2), 0, HEADER_WORDS * 4);
  openHeader(j, b);
  for (let i: i32 = 0; i < HYPERS; i++) setf(META, b + H_LR + i, getf(HYPER, j * HYPERS + i));
  const o: i32 = cls * OPTIMIZERS + get(JOB_OPTIMIZER, j);
  for (let l: i32 = 0; l < LAYERS; l++) emitProgram(get(CLASS_SUMSQ, cls), l, b);
  emitProgram(get(CLASS_SUMSQ_OUTER, cls), LAYERS, b);
  emitProgram(P_CLIP, LAYERS, b);
  for (let l: i32 = 0; l < LAYERS; l++) emitProgram(get(CLASS_UPDATE, o), l, b);
  emitProgram(get(CLASS_UPDATE_OUTER, o), LAYERS, b);
  for (let l: i32 = 0; l < LAYERS; l++) emitProgram(P_ROW_NORMS, l, b);
  set(JOB_PHASE, j, OVER);
}
/** Does this lane use the slot: a job's own, or that of a request that runs? Others may be filled anew. */
function here(slot: i32): bool {
  for (let j: i32 = 0; j < JOBS; j++) if (get(JOB_SLOT, j) == slot) return trains();
  return serves() && runsOn(slot);
}
/** What follows from the tensors of slots that were filled since their last use, before it is read. */
export function refreshSlots(): void {
  for (let s: i32 = 1; s <= SLOTS; s++) {
    if (get(SLOT_FRESH, s) == 0 || !here(s)) continue;
    set(SLOT_FRESH, s, 0);
    const b: i32 = STEP_WORDS + UNITS * UNIT_WORDS + (JOBS + s - 1) * UPDATE_WORDS;
    memory.fill(META + ((<usize>b) << 2), 0, HEADER_WORDS * 4);
    set(META, b + H_SLOT, s);
    for (let w: i32 = 0; w < MASK_WORDS; w++) set(META, b + H_MASK_0 + w, get(SLOT_MASK, s * MASK_WORDS + w));
    for (let l: i32 = 0; l < LAYERS; l++) emitProgram(P_ROW_NORMS, l, b);
  }
}

/**
 * Next quantum of the phase; after the last one, the next layer or phase. True when a layer's last quantum
 * was passed.
 */
function advance(j: i32, next: i32): bool {
  const q: i32 = get(CUR_QUANTUM, j);
  if (q > 0) {
    set(CUR_QUANTUM, j, q - 1);
    return false;
  }
  if (get(CUR_SEQ, j) + 1 < get(JOB_SEQS, j)) {
    set(CUR_SEQ, j, get(CUR_SEQ, j) + 1);
    set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
    return false;
  }
  set(CUR_SEQ, j, 0);
  set(CUR_QUANTUM, j, lastQuantum(seqOf(j)));
  if (next == BACKWARD) {
    set(JOB_PHASE, j, BACKWARD);
    set(CUR_LAYER, j, LAYERS - 1);
  } else if (get(CUR_LAYER, j) > 0) set(CUR_LAYER, j, get(CUR_LAYER, j) - 1);
  else set(JOB_PHASE, j, get(JOB_LAST, j) != 0 ? UPDATE : OVER);
  return true;
}

/** Micro-batches whose last units ran with the lane's step: told, and their sequences released. */
export function finishMicros(): void {
  for (let j: i32 = 0; j < JOBS; j++) {
    if (!trains() || get(JOB_PHASE, j) != OVER) continue;
    emitEvent(MICRO_DONE, j, get(JOB_LAST, j), 0);
    dropMicro(j);
  }
}
export function dropMicro(j: i32): void {
  for (let i: i32 = 0; i < get(JOB_SEQS, j); i++) {
    close(get(JOB_SEQ, j * SEQUENCES + i));
  }
  set(JOB_SEQS, j, 0);
  set(JOB_PHASE, j, IDLE);
}
