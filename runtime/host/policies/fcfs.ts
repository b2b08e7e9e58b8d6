/**
 * First come, first served: running requests decode, waiting ones prefill in arrival order; fine-tuning runs
 * only while no request does.
 */
import { grant, rowsLeft } from "../batch";
import { JOBS } from "../config";
import { anyRequest, nextInference, nextTraining, remaining } from "../queue";
import { grantUnit, hasUnit, settleForward } from "../units";

export function fcfs(budget: i32, idle: i32): void {
  let left: i32 = budget;
  for (let s: i32 = nextInference(-1); s >= 0 && left > 0; s = nextInference(s))
    left -= grant(s, min(left, remaining(s)));
  if (anyRequest()) return;
  left = idle;
  for (let j: i32 = 0; j < JOBS; j++) {
    settleForward(j);
    while (left > 0 && hasUnit(j)) left -= grantUnit(j, left);
  }
  for (let s: i32 = nextTraining(-1); s >= 0 && left > 0 && rowsLeft() > 0; s = nextTraining(s))
    left -= grant(s, min(left, remaining(s)));
}
