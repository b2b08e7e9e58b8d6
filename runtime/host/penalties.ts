/**
 * What a request adds to its logits before a token is drawn, and how it is taken back: what is reported of
 * the row is the model's own. In the order of vLLM: biases, then for tokens that occurred the repetition
 * penalty (CTRL, 4.1), then for those of the answer OpenAI's frequency and presence penalties:
 *
 *   x ← x - count · frequency - presence
 */
import { BIASES_PER_SEQUENCE, CONTEXT, VOCAB } from "./config";
import {
  BEGIN,
  BIASES,
  FIRST,
  FREQUENCY,
  get,
  getf,
  LENGTH_OF,
  NUM_BIASES,
  PENALTY,
  PRESENCE,
  set,
  setf,
  TOKENS,
  take,
} from "./state";

/** Ids of the row that were changed, and their logits before. */
const CHANGED: usize = take(min(VOCAB, CONTEXT + BIASES_PER_SEQUENCE) * 4);
const BEFORE: usize = take(min(VOCAB, CONTEXT + BIASES_PER_SEQUENCE) * 4);
let changed: i32 = 0;
/** Of each id: is it kept above, did it occur, and how often in the answer. Zeros between two draws. */
const MARKS: usize = take(VOCAB * 4);
const KEPT: i32 = 1;
const OCCURRED: i32 = 2;
const ONCE: i32 = 4;

function keep(row: usize, id: i32): void {
  if (get(MARKS, id) != 0) return;
  set(MARKS, id, KEPT);
  set(CHANGED, changed, id);
  setf(BEFORE, changed, getf(row, id));
  changed++;
}
/** Does `seq` draw from other logits than the model's own? */
export function penalises(seq: i32): bool {
  const counts: bool = getf(PRESENCE, seq) != 0 || getf(FREQUENCY, seq) != 0;
  return counts || getf(PENALTY, seq) != 1 || get(NUM_BIASES, seq) != 0;
}
/** May logits grow that are none of the biased ones? */
export function lifts(seq: i32): bool {
  return getf(PENALTY, seq) < 1 || getf(PRESENCE, seq) < 0 || getf(FREQUENCY, seq) < 0;
}
/**
 * The biased ids of `seq` whose logits may grow, to `to`; how many, or -1 where they are more than `most`.
 */
export function raised(seq: i32, to: usize, most: i32): i32 {
  let n: i32 = 0;
  for (let i: i32 = 0; i < get(NUM_BIASES, seq); i++) {
    const at: i32 = 2 * (seq * BIASES_PER_SEQUENCE + i);
    if (getf(BIASES, at + 1) < 0) continue;
    if (n == most) return -1;
    set(to, n++, get(BIASES, at));
  }
  return n;
}
/** How many logits of the row are changed; the id of one of them, and what it was. */
export function changes(): i32 {
  return changed;
}
export function changedId(i: i32): i32 {
  return get(CHANGED, i);
}
export function unchanged(i: i32): f32 {
  return getf(BEFORE, i);
}
/** Change the logits of `row` as `seq` asks for. */
export function penalise(seq: i32, row: usize): void {
  if (!penalises(seq)) return;
  const penalty: f32 = getf(PENALTY, seq);
  const presence: f32 = getf(PRESENCE, seq);
  const frequency: f32 = getf(FREQUENCY, seq);
  const biases: i32 = get(NUM_BIASES, seq);
  const counts: bool = presence != 0 || frequency != 0;
  for (let i: i32 = 0; i < biases; i++) {
    const at: i32 = 2 * (seq * BIASES_PER_SEQUENCE + i);
    const id: i32 = get(BIASES, at);
    keep(row, id);
    setf(row, id, getf(row, id) + getf(BIASES, at + 1));
  }
  if (penalty != 1 || counts) {
    const begin: i32 = get(BEGIN, seq);
    const n: i32 = get(LENGTH_OF, seq);
    for (let i: i32 = penalty != 1 ? get(FIRST, seq) : begin; i < n; i++) {
      const id: i32 = get(TOKENS, seq * CONTEXT + i);
      keep(row, id);
      set(MARKS, id, (get(MARKS, id) | OCCURRED) + (i >= begin ? ONCE : 0));
    }
  }
  for (let i: i32 = 0; i < changed; i++) {
    const id: i32 = get(CHANGED, i);
    const mark: i32 = get(MARKS, id);
    set(MARKS, id, 0);
    if ((mark & OCCURRED) == 0) continue;
    let x: f32 = getf(row, id);
    if (penalty != 1) x = x > 0 ? x / penalty : x * penalty;
    const count: i32 = mark / ONCE;
    if (count > 0) x = x - (<f32>count * frequency + presence);
    setf(row, id, x);
  }
}
/** The row as it was. */
export function restore(row: usize): void {
  for (let i: i32 = 0; i < changed; i++) setf(row, get(CHANGED, i), getf(BEFORE, i));
  changed = 0;
}
