/**
 * Inference first; fine-tuning fills the rest of the budget. Units that finish a started optimizer step come
 * before new windows. While a job runs it is owed a minimum share of every step (a twentieth): what a step
 * cannot give is carried over. Alone, it has the whole (idle) budget; so it has in a lane of its own, where
 * no request waits for it.
 */
import { grant, rowsLeft } from "../batch";
import { C_CREDIT, C_STEPS, JOBS } from "../config";
import { nextInference, nextTraining, remaining } from "../queue";
import { bump, counter } from "../state";
import { grantUnit, hasUnit, settleForward } from "../units";

export function coserve(budget: i32, idle: i32): void {
  let used: i32 = 0;
  // Decode rows (one token left) before prompt chunks.
  for (let s: i32 = nextInference(-1); s >= 0; s = nextInference(s))
    if (remaining(s) == 1) used += grant(s, 1);
  // However many decode, prompts go on by half a budget a step; where none does, nobody waits for the next
  // token and a step may be as long as an idle one.
  const prefill: i32 = used > 0 ? used + max(budget - used, budget / 2) : max(budget, idle);
  for (let s: i32 = nextInference(-1); s >= 0 && used < prefill; s = nextInference(s))
    if (remaining(s) > 1) used += grant(s, min(prefill - used, remaining(s)));

  let waiting: bool = nextTraining(-1) >= 0;
  for (let j: i32 = 0; j < JOBS; j++) {
    settleForward(j);
    if (hasUnit(j)) waiting = true;
  }
  if (!waiting) {
    bump(C_CREDIT, -counter(C_CREDIT));
    return;
  }
  // What requests leave of the budget is credit; a unit larger than the credit is granted on trust and paid
  // back by the next steps, so that the mean is the budget and one step never carries more than a unit beyond
  // it.
  const share: i32 = max(1, budget / 20);
  bump(C_CREDIT, max(share, budget - used));
  if (counter(C_CREDIT) > budget) bump(C_CREDIT, budget - counter(C_CREDIT));
  let left: i32 = used == 0 ? idle : counter(C_CREDIT);
  const before: i32 = left;
  // Jobs take turns, unit by unit; which job starts alternates by step.
  let any: bool = true;
  while (any && left > 0) {
    any = false;
    for (let i: i32 = 0; i < JOBS && left > 0; i++) {
      const j: i32 = (i + counter(C_STEPS)) % JOBS;
      if (hasUnit(j)) {
        left -= grantUnit(j, left);
        any = true;
      }
    }
  }
  for (let s: i32 = nextTraining(-1); s >= 0 && left > 0 && rowsLeft() > 0; s = nextTraining(s))
    left -= grant(s, min(left, remaining(s)));
  if (used > 0) bump(C_CREDIT, left - before);
}
