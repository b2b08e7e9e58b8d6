/**
 * Who waits for rows of the entered lane, in arrival order. Policies ask here and grant; they never touch a
 * sequence.
 */
import { FREE, SEQUENCES, TRAIN } from "./config";
import { ARRIVAL, DONE, FORWARD, get, JOB, JOB_PHASE, KIND, LENGTH_OF, serves, trains } from "./state";

/** Tokens of a sequence that have not been through the forward. */
export function remaining(s: i32): i32 {
  return get(LENGTH_OF, s) - get(DONE, s);
}
function next(after: i32, training: bool): i32 {
  if (!(training ? trains() : serves())) return -1;
  const floor: i32 = after < 0 ? -1 : get(ARRIVAL, after);
  let best: i32 = -1;
  for (let s: i32 = 0; s < SEQUENCES; s++) {
    const kind: i32 = get(KIND, s);
    if (kind == FREE || (kind == TRAIN) != training || remaining(s) <= 0) continue;
    if (training && get(JOB_PHASE, get(JOB, s)) != FORWARD) continue;
    const a: i32 = get(ARRIVAL, s);
    if (a > floor && (best < 0 || a < get(ARRIVAL, best))) best = s;
  }
  return best;
}
/** The request after `after` (-1: the first) that has tokens to compute; -1 when there is none. */
export function nextInference(after: i32): i32 {
  return next(after, false);
}
/** Is any request running, whatever its lane? */
export function anyRequest(): bool {
  for (let s: i32 = 0; s < SEQUENCES; s++) if (get(KIND, s) != FREE && get(KIND, s) != TRAIN) return true;
  return false;
}
export function nextTraining(after: i32): i32 {
  return next(after, true);
}
