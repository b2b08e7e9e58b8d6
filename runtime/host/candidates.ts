/**
 * What is read back of logits rows: the candidates that the device picked, where they tell which token all of
 * the row would; else the row. Whole are rows that are scored, whose request lifts logits that
 * nobody names or draws from more than there are candidates, and those that turn out not to be told.
 */
import { C_PICKS, C_HEAD, CANDIDATE_WORDS, CANDIDATES, MAX_RAISED, NONE, SCORE, VOCAB } from "./config";
import { lifts, penalises, raised } from "./penalties";
import { logSumExp, sampleCandidates } from "./sampler";
import { isGone } from "./sequences";
import {
  counter,
  enter,
  get,
  getf,
  HEAD_SEQ,
  KIND,
  PICKED,
  RAISED,
  REPORTED,
  set,
  TEMPERATURE,
  TOLD,
  TOP_K,
  WHOLE,
} from "./state";

/** Below the smallest normal number its reciprocal is infinite in f32. */
function greedy(seq: i32): bool {
  return getf(TEMPERATURE, seq) < f32.MIN_NORMAL_VALUE;
}
/** What logits of a row are multiplied by before it is drawn from. */
export function scaleOf(seq: i32): f32 {
  return get(KIND, seq) == SCORE || greedy(seq) ? 1 : <f32>(1 / <f64>getf(TEMPERATURE, seq));
}
/**
 * Row `h` is the sequence's: is it read whole? Returns how many candidates are wanted of it. What changes
 * logits downwards leaves those that are no candidates behind them; of what may lift some, only those are
 * wanted that it names.
 */
export function planRow(seq: i32, h: i32): i32 {
  const scored: bool = get(KIND, seq) == SCORE;
  const topK: i32 = get(TOP_K, seq);
  const limited: bool = topK > 0 && topK < VOCAB;
  const changes: bool = penalises(seq);
  const ids: usize = RAISED + ((<usize>(h * (MAX_RAISED + 1))) << 2);
  set(ids, 0, 0);
  let whole: bool =
    counter(C_PICKS) == 0 ||
    scored ||
    (changes && lifts(seq)) ||
    (!greedy(seq) && limited && topK > CANDIDATES);
  if (changes && !whole) {
    const n: i32 = raised(seq, ids + 4, MAX_RAISED);
    if (n < 0) whole = true;
    else set(ids, 0, n);
  }
  set(WHOLE, h, whole ? 1 : 0);
  set(TOLD, h, NONE);
  if (scored) return 1;
  const few: bool = whole || (greedy(seq) && !changes);
  const drawn: i32 = few ? 1 : limited && !changes ? topK : CANDIDATES;
  return max(drawn, get(REPORTED, seq));
}
/**
 * After a lane's step ran, and what was picked was copied to addrPicked: draw from candidates what they tell.
 * Returns how many rows are to be read whole besides those that were.
 */
export function settle(lane: i32): i32 {
  enter(lane);
  let more: i32 = 0;
  for (let h: i32 = 0; h < counter(C_HEAD); h++) {
    const seq: i32 = get(HEAD_SEQ, h);
    const read: bool = get(WHOLE, h) != 0;
    set(WHOLE, h, 0);
    if (read || isGone(seq)) continue;
    const id: i32 = sampleCandidates(seq, h);
    set(TOLD, h, id);
    if (id != NONE) continue;
    set(WHOLE, h, 1);
    more++;
  }
  return more;
}
/**
 * ln Σ exp of logits row `h`; error below 3e-5. The same for all who see the row: from what the device
 * picked, where it picks something and the row is finite.
 */
export function logSum(h: i32): f64 {
  const at: usize = PICKED + ((<usize>(h * CANDIDATE_WORDS)) << 2);
  const sum: f32 = counter(C_PICKS) ? getf(at, 2) : 0;
  return sum > 0 ? <f64>getf(at, 1) + Math.log(<f64>sum) : logSumExp(h);
}
