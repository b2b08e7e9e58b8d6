/**
 * Inference first; fine-tuning fills the rest of the budget, jobs in turns by cost. While jobs run each is
 * owed a part of every step: what a step cannot give is carried over. Alone, they have the whole (idle)
 * budget; so they have in a lane of their own, where no request waits for it.
 */
import { headLeft, rowsLeft } from "../batch";
import { C_CREDIT, C_STEPS, HEAD_ROWS, NONE, TOKENS_PER_STEP } from "../config";
import { anyRows, grantJob, nextJob, working } from "../jobs";
import { nextDecoding, nextPrompt, nextScore, serve } from "../ready";
import { bump, counter } from "../state";

/** Of a step's work, a tenth is a job's: with the time that it waits for room, a twentieth is left. */
const SHARE: i32 = 10;
/** Of rows, and of logits rows, that decoding could fill alone, an eighth and a quarter are others'. */
const ROWS_KEPT: i32 = 8;
const HEADS_KEPT: i32 = 4;

/** One in `part` of `room`; where that is less than one, one of a step in `part`. */
function kept(room: i32, part: i32, turn: i32): i32 {
  return room >= part ? room / part : counter(C_STEPS) % part == turn ? 1 : 0;
}
/** Requests' rows of this step. Returns how many. */
function serveRequests(budget: i32, idle: i32): i32 {
  let used: i32 = 0;
  const forJobs: i32 = anyRows() ? kept(TOKENS_PER_STEP, ROWS_KEPT, 0) : 0;
  const forPrompts: i32 =
    nextPrompt() != NONE || nextScore() != NONE ? kept(TOKENS_PER_STEP, ROWS_KEPT, 1) : 0;
  const forScores: i32 = nextScore() != NONE ? kept(HEAD_ROWS, HEADS_KEPT, 1) : 0;
  // Decode rows (one token left) before prompt chunks; who had none in this step has the first of the next.
  while (nextDecoding() != NONE && rowsLeft() > forJobs + forPrompts && headLeft() > forScores)
    used += serve(nextDecoding(), 1);
  // However many decode, prompts go on by half a budget a step; where none does, nobody waits for the next
  // token and a step may be as long as an idle one.
  const most: i32 = used > 0 ? used + max(budget - used, max(1, budget / 2)) : max(budget, idle);
  // Scores, which are bounded by logits rows, leave half of it to prompts.
  const toScores: i32 = nextPrompt() == NONE ? most : used + max(1, (most - used) / 2);
  while (nextScore() != NONE && used < toScores && rowsLeft() > forJobs) {
    const granted: i32 = serve(nextScore(), min(toScores - used, rowsLeft() - forJobs));
    if (granted == 0) break;
    used += granted;
  }
  while (nextPrompt() != NONE && used < most && rowsLeft() > forJobs) {
    const granted: i32 = serve(nextPrompt(), min(most - used, rowsLeft() - forJobs));
    if (granted == 0) break;
    used += granted;
  }
  return used;
}
export function coserve(budget: i32, idle: i32): i32 {
  const used: i32 = serveRequests(budget, idle);
  const jobs: i32 = working();
  if (jobs == 0) {
    bump(C_CREDIT, -counter(C_CREDIT));
    return used;
  }
  // What requests leave of the budget is credit, and never less than the jobs' share; a unit larger than the
  // credit is granted on trust and paid back by the next steps, so that the mean is the budget and one step
  // never carries more than a unit beyond it.
  const share: i32 = max(1, (used * jobs + SHARE - 1) / SHARE);
  bump(C_CREDIT, max(share, budget - used));
  const cap: i32 = max(budget, share);
  if (counter(C_CREDIT) > cap) bump(C_CREDIT, cap - counter(C_CREDIT));
  let left: i32 = used == 0 ? idle : counter(C_CREDIT);
  const before: i32 = left;
  for (let j: i32 = nextJob(); j != NONE && left > 0; j = nextJob()) left -= grantJob(j, left);
  if (used > 0) bump(C_CREDIT, left - before);
  return used + before - left;
}
