/**
 * The sampler: biases and penalties, then greedy, or temperature → top-k → top-p → min-p over logits of one
 * row, in the order transformers applies them.
 */
import { VOCAB } from "./config";
import { exp4 } from "./exp";
import { penalise, restore } from "./penalties";
import {
  get,
  getf,
  HEAP,
  LENGTH_OF,
  LOGITS,
  MIN_P,
  SEED,
  set,
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
  const id: i32 = choose(seq, row);
  restore(row);
  return id;
}
function choose(seq: i32, row: usize): i32 {
  const max: f64 = <f64>largest(row);
  const temperature: f64 = <f64>getf(TEMPERATURE, seq);
  // Below the smallest normal number its reciprocal is infinite in f32.
  if (temperature < <f64>f32.MIN_NORMAL_VALUE) {
    let best: i32 = 0;
    while (best < VOCAB - 1 && getf(row, best) != <f32>max) best++;
    return best;
  }

  for (let i: i32 = 0; i < VOCAB; i++) set(HEAP, i, i);
  for (let i: i32 = VOCAB / 2 - 1; i >= 0; i--) sift(row, i, VOCAB);
  const topK: i32 = get(TOP_K, seq) > 0 ? min(get(TOP_K, seq), VOCAB) : VOCAB;
  const topP: f64 = <f64>getf(TOP_P, seq);
  const minP: f64 = <f64>getf(MIN_P, seq);
  // Ids leave the heap in descending order to the heap's tail: the k-th largest lies at HEAP[VOCAB - k].
  let n: i32 = VOCAB;
  let kept: i32 = 0;
  let mass: f64 = 0;
  let total: f64 = topK < VOCAB ? 0 : sumOfExp(row, <f32>max, temperature);
  const everybody: bool = topK == VOCAB && topP >= 1 && minP <= 0;
  if (everybody) mass = total;
  else if (topK < VOCAB) {
    while (kept < topK) {
      pop(row, n);
      n--;
      kept++;
      total += Math.exp((<f64>getf(row, get(HEAP, n)) - max) / temperature);
    }
    let cut: i32 = 0;
    while (cut < kept) {
      const p: f64 = Math.exp((<f64>getf(row, get(HEAP, VOCAB - 1 - cut)) - max) / temperature);
      if (cut > 0 && (mass >= topP * total || p < minP)) break;
      mass += p;
      cut++;
    }
    kept = cut;
  } else {
    while (n > 0) {
      const p: f64 = Math.exp((<f64>getf(row, get(HEAP, 0)) - max) / temperature);
      if (kept > 0 && (mass >= topP * total || p < minP)) break;
      pop(row, n);
      n--;
      kept++;
      mass += p;
    }
  }
  let u: f64 = draw(get(SEED, seq), get(LENGTH_OF, seq)) * mass;
  for (let i: i32 = 0; i < kept || (everybody && n > 0); i++) {
    // Where everybody is a candidate, they leave the heap until one is drawn.
    if (i == kept) {
      pop(row, n);
      n--;
      kept++;
    }
    const id: i32 = get(HEAP, VOCAB - 1 - i);
    u -= Math.exp((<f64>getf(row, id) - max) / temperature);
    if (u < 0) return id;
  }
  return get(HEAP, VOCAB - kept);
}
/** Move the largest of the first n ids to HEAP[n - 1]. */
function pop(row: usize, n: i32): void {
  const top: i32 = get(HEAP, 0);
  set(HEAP, 0, get(HEAP, n - 1));
  sift(row, 0, n - 1);
  set(HEAP, n - 1, top);
}
