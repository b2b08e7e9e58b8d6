/**
 * The sampler: biases and penalties, then greedy, or temperature → top-k → top-p → min-p over logits of one
 * row, in the order transformers applies them.
 */
import { CANDIDATE_WORDS, MAX_RAISED, NONE, VOCAB } from "./config";
import { exp4 } from "./exp";
import { changedId, changes, penalise, penalises, restore, unchanged } from "./penalties";
import {
  get,
  getf,
  HEAP,
  LENGTH_OF,
  LOGITS,
  MIN_P,
  PICKED,
  RAISED,
  SEED,
  set,
  setf,
  take,
  TEMPERATURE,
  TOP_K,
  TOP_P,
} from "./state";

/** Draw in [0, 1) from (seed, position): any order of evaluation gives the same. */
function draw(seed: i32, pos: i32): f64 {
  let h: u32 = <u32>seed ^ (<u32>(pos + 1) * 0x9e3779b9);
  h = (h ^ (h >> 16)) * 0x7feb352d;
  h = (h ^ (h >> 15)) * 0x846ca68b;
  h = h ^ (h >> 16);
  return <f64>h / 4294967296.0;
}

// A max-heap of token ids by logit; equal logits order by id, so that ties are stable.
function before(row: usize, a: i32, b: i32): bool {
  const x: f32 = getf(row, a);
  const y: f32 = getf(row, b);
  return x > y || (x == y && a < b);
}
function sift(row: usize, i: i32, n: i32): void {
  const id: i32 = get(HEAP, i);
  while (true) {
    let c: i32 = 2 * i + 1;
    if (c >= n) break;
    if (c + 1 < n && before(row, get(HEAP, c + 1), get(HEAP, c))) c++;
    if (!before(row, get(HEAP, c), id)) break;
    set(HEAP, i, get(HEAP, c));
    i = c;
  }
  set(HEAP, i, id);
}

function rowAt(h: i32): usize {
  return LOGITS + ((<usize>(h * VOCAB)) << 2);
}
function largest(row: usize): f32 {
  let m: v128 = f32x4.splat(-Infinity);
  let i: i32 = 0;
  for (; i + 4 <= VOCAB; i += 4) m = f32x4.pmax(m, v128.load(row + ((<usize>i) << 2)));
  let max: f32 = -Infinity;
  for (; i < VOCAB; i++) if (getf(row, i) > max) max = getf(row, i);
  m = f32x4.pmax(m, i32x4.shuffle(m, m, 2, 3, 0, 1));
  m = f32x4.pmax(m, i32x4.shuffle(m, m, 1, 0, 3, 2));
  const x: f32 = f32x4.extract_lane(m, 0);
  return x > max ? x : max;
}
/** Σ exp((x - max) / temperature) over a row; relative error below 1e-6. */
function sumOfExp(row: usize, max: f32, temperature: f64): f64 {
  const top: v128 = f32x4.splat(max);
  const scale: v128 = f32x4.splat(<f32>(1 / temperature));
  let low: v128 = f64x2.splat(0);
  let high: v128 = low;
  let i: i32 = 0;
  for (; i + 4 <= VOCAB; i += 4) {
    const e: v128 = exp4(f32x4.mul(f32x4.sub(v128.load(row + ((<usize>i) << 2)), top), scale));
    low = f64x2.add(low, f64x2.promote_low_f32x4(e));
    high = f64x2.add(high, f64x2.promote_low_f32x4(i32x4.shuffle(e, e, 2, 3, 2, 3)));
  }
  low = f64x2.add(low, high);
  let sum: f64 = f64x2.extract_lane(low, 0) + f64x2.extract_lane(low, 1);
  for (; i < VOCAB; i++) sum += Math.exp(<f64>(getf(row, i) - max) / temperature);
  return sum;
}
/** ln Σ exp of logits row `h`; error below 1e-6. */
export function logSumExp(h: i32): f64 {
  const max: f32 = largest(rowAt(h));
  return <f64>max + Math.log(sumOfExp(rowAt(h), max, 1));
}

/** Draw the next token of `seq` from logits row `h`, which stays as it is. */
export function sample(seq: i32, h: i32): i32 {
  const row: usize = rowAt(h);
  penalise(seq, row);
  const top: f32 = largest(row);
  const temperature: f32 = getf(TEMPERATURE, seq);
  let id: i32 = 0;
  if (temperature < f32.MIN_NORMAL_VALUE) while (id < VOCAB - 1 && getf(row, id) != top) id++;
  else {
    for (let i: i32 = 0; i < VOCAB; i++) set(HEAP, i, i);
    for (let i: i32 = VOCAB / 2 - 1; i >= 0; i--) sift(row, i, VOCAB);
    ordered = 0;
    known = VOCAB;
    const topK: i32 = get(TOP_K, seq);
    const total: f64 = topK > 0 && topK < VOCAB ? 0 : sumOfExp(row, top, <f64>temperature);
    id = choose(seq, row, total, total);
  }
  restore(row);
  return id;
}
/**
 * By how much of itself a device's Σ exp differs from the host's at most, in units of 2^-24: 101 for two exp,
 * of a term in its part and of the part in the row, each right to 3 + 2|x| last places (WGSL, 15.7.4.1) at an
 * x that was rounded three times, both |x| together being ln 2^18 at most in the mean that the terms weigh,
 * and for their product; 17 for the host's; one for each addition on the way of a term.
 */
const SLACK: f64 = <f64>(101 + 17 + 17 + VOCAB / 1024) / 16777216;
/**
 * The token that `sample` would draw, from the candidates of row `h`, which are put in their places in the
 * row; NONE where they do not tell.
 */
export function sampleCandidates(seq: i32, h: i32): i32 {
  const row: usize = rowAt(h);
  const picked: usize = PICKED + ((<usize>(h * CANDIDATE_WORDS)) << 2);
  known = <i32>getf(picked, 0);
  ordered = known;
  for (let i: i32 = 0; i < known; i++) {
    const id: i32 = <i32>getf(picked, 5 + 2 * i);
    set(HEAP, VOCAB - 1 - i, id);
    setf(row, id, getf(picked, 4 + 2 * i));
  }
  if (known > 0 && penalises(seq)) {
    const id: i32 = sampleChanged(seq, row, picked, h);
    restore(row);
    return id;
  }
  if (known == 0 || getf(TEMPERATURE, seq) < f32.MIN_NORMAL_VALUE) return nth(row, 0);
  const total: f64 = <f64>getf(picked, 3);
  return choose(seq, row, total * (1 - SLACK), total * (1 + SLACK));
}

/** A bit an id: is its logit known? Zeros between two draws. */
const KNOWN: usize = take((VOCAB + 31) & ~31);
function isKnown(id: i32): bool {
  return load<u8>(KNOWN + <usize>id) != 0;
}
/**
 * The same where the sequence changes logits, of which none grows but those that were read one by one. What
 * is no candidate stays behind the last of them, so all are in order that do not fall behind it. The sum
 * loses what the changed ones had and gains what they have; of those whose logits are not known it is known
 * that they had no more each than the last candidate, and together no more than all that are no candidates.
 */
function sampleChanged(seq: i32, row: usize, picked: usize, h: i32): i32 {
  const temperature: f64 = <f64>getf(TEMPERATURE, seq);
  const last: i32 = get(HEAP, VOCAB - known);
  const least: f32 = getf(row, last);
  const largest: f64 = <f64>getf(picked, 1);
  const ids: usize = RAISED + ((<usize>(h * (MAX_RAISED + 1))) << 2);
  let n: i32 = known;
  for (let i: i32 = 0; i < n; i++) store<u8>(KNOWN + <usize>get(HEAP, VOCAB - 1 - i), 1);
  for (let i: i32 = 1; i <= get(ids, 0); i++) {
    const id: i32 = get(ids, i);
    if (isKnown(id)) continue;
    store<u8>(KNOWN + <usize>id, 1);
    set(HEAP, VOCAB - 1 - n++, id);
  }
  let had: f64 = 0;
  for (let i: i32 = 0; i < n; i++) had += weight(row, get(HEAP, VOCAB - 1 - i), largest, temperature);
  penalise(seq, row);
  // In order, as few are out of it.
  for (let i: i32 = 1; i < n; i++) {
    const id: i32 = get(HEAP, VOCAB - 1 - i);
    let at: i32 = i;
    for (; at > 0 && before(row, id, get(HEAP, VOCAB - at)); at--)
      set(HEAP, VOCAB - 1 - at, get(HEAP, VOCAB - at));
    set(HEAP, VOCAB - 1 - at, id);
  }
  const max: f64 = <f64>getf(row, get(HEAP, VOCAB - 1));
  let lost: f64 = 0;
  let gained: f64 = 0;
  let unknown: i32 = 0;
  for (let i: i32 = 0; i < changes(); i++) {
    const id: i32 = changedId(i);
    if (isKnown(id)) {
      lost += Math.exp((<f64>unchanged(i) - largest) / temperature);
      gained += weight(row, id, max, temperature);
    } else unknown++;
  }
  let has: f64 = 0;
  known = 0;
  for (let i: i32 = 0; i < n; i++) {
    const id: i32 = get(HEAP, VOCAB - 1 - i);
    const x: f32 = getf(row, id);
    if (known == i && (x > least || (x == least && id <= last))) known++;
    has += weight(row, id, max, temperature);
    store<u8>(KNOWN + <usize>id, 0);
  }
  ordered = known;
  const topK: i32 = get(TOP_K, seq);
  if (known == 0) return NONE;
  if (temperature < f32.MIN_NORMAL_VALUE) return nth(row, 0);
  if (topK > 0 && topK < VOCAB && topK > known) return NONE;
  const total: f64 = <f64>getf(picked, 3);
  const others: f64 = Math.max(0, total * (1 + SLACK) - had);
  const hidden: f64 = Math.min(<f64>unknown * Math.exp((<f64>least - largest) / temperature), others);
  const by: f64 = Math.exp((largest - max) / temperature);
  const low: f64 = by * (total * (1 - SLACK) - lost - hidden) + gained;
  const high: f64 = by * (total * (1 + SLACK) - lost) + gained;
  // A sum that no f64 holds tells nothing.
  if (!(high < Infinity)) return NONE;
  return choose(seq, row, Math.max(low, has) * (1 - SLACK), high * (1 + SLACK));
}

/**
 * Of the row's logits in order (the largest first, of equal ones the lower id): how many are known, and how
 * many of these lie in order at the heap's tail, the first one last.
 */
let known: i32 = 0;
let ordered: i32 = 0;
/** Id of the i-th of them; NONE past those that are known. */
function nth(row: usize, i: i32): i32 {
  if (i >= known) return NONE;
  for (; ordered <= i; ordered++) {
    const n: i32 = VOCAB - ordered;
    const top: i32 = get(HEAP, 0);
    set(HEAP, 0, get(HEAP, n - 1));
    sift(row, 0, n - 1);
    set(HEAP, n - 1, top);
  }
  return get(HEAP, VOCAB - 1 - i);
}
/**
 * The token that is drawn, where Σ exp((x - max) / temperature) over the row is from `low` to `high`; NONE
 * where that, or what is known of the row, leaves it open. Every step below is monotonous in the sum, also as
 * it is rounded.
 */
function choose(seq: i32, row: usize, low: f64, high: f64): i32 {
  const temperature: f64 = <f64>getf(TEMPERATURE, seq);
  const topP: f64 = <f64>getf(TOP_P, seq);
  const minP: f64 = <f64>getf(MIN_P, seq);
  const topK: i32 = get(TOP_K, seq) > 0 ? min(get(TOP_K, seq), VOCAB) : VOCAB;
  const max: f64 = <f64>getf(row, nth(row, 0));
  if (topK < VOCAB) {
    low = 0;
    for (let i: i32 = 0; i < topK; i++) low += weight(row, nth(row, i), max, temperature);
    high = low;
  }
  // The first `end` are drawn from, whose mass is from `least` to `most`.
  let end: i32 = topK;
  let least: f64 = low;
  let most: f64 = high;
  if (topK < VOCAB || topP < 1 || minP > 0) {
    let mass: f64 = 0;
    let last: f64 = 0;
    let kept: i32 = 0;
    for (; kept < min(topK, known); kept++) {
      const p: f64 = weight(row, nth(row, kept), max, temperature);
      if (kept > 0) {
        if (p < minP || mass >= topP * high) break;
        if (mass >= topP * low) return NONE;
      }
      mass += p;
      last = p;
    }
    least = mass;
    most = mass;
    if (kept < known || kept == topK) end = kept;
    else {
      // It ends somewhere past those that are known: with the one that reaches topP, or before.
      if (minP <= 0) least = Math.max(mass, topP * low);
      most = topP * high + last;
    }
  }
  const u: f64 = draw(get(SEED, seq), get(LENGTH_OF, seq));
  least *= u;
  most *= u;
  for (let i: i32 = 0; i < end; i++) {
    const id: i32 = nth(row, i);
    if (id == NONE) return NONE;
    const p: f64 = weight(row, id, max, temperature);
    least -= p;
    most -= p;
    if (most < 0) return id;
    if (least < 0) return NONE;
  }
  return nth(row, end - 1);
}
function weight(row: usize, id: i32, max: f64, temperature: f64): f64 {
  return Math.exp((<f64>getf(row, id) - max) / temperature);
}
