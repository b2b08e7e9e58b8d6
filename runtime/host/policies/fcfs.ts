/**
 * First come, first served: running requests decode, waiting ones prefill in arrival order; fine-tuning runs
 * only while no request does.
 */
import { headLeft, rowsLeft } from "../batch";
import { C_REQUESTS, NONE } from "../config";
import { grantJob, nextJob } from "../jobs";
import { nextDecoding, nextPrompt, nextScore, paused, serve } from "../ready";
import { counter } from "../state";

export function fcfs(budget: i32, idle: i32): i32 {
  let left: i32 = budget;
  while (nextDecoding() != NONE && left > 0 && rowsLeft() > 0 && headLeft() > 0)
    left -= serve(nextDecoding(), 1);
  for (let s: i32 = nextPrompt(); s != NONE && left > 0; s = nextPrompt()) {
    const granted: i32 = serve(s, left);
    if (granted == 0) break;
    left -= granted;
  }
  for (let s: i32 = nextScore(); s != NONE && left > 0; s = nextScore()) {
    const granted: i32 = serve(s, left);
    if (granted == 0) break;
    left -= granted;
  }
  const used: i32 = budget - left;
  if (counter(C_REQUESTS) > paused()) return used;
  left = idle;
  for (let j: i32 = nextJob(); j != NONE && left > 0; j = nextJob()) left -= grantJob(j, left);
  return used + idle - left;
}
