/** Where a job sums gradients, and keeps what its optimizer remembers of them. */
import { QUAD, quadsOf, ranked } from "./bundle.ts";
import type { BranchState } from "./content.ts";
import type { Range } from "./device.ts";
import type { Engine } from "./engine.ts";
import { mostStates } from "./optimizers/index.ts";
import { groupsOf } from "./shards.ts";

/**
 * Of each group, what a job writes of the accumulators: gradients and states of the rows that its branches
 * use; of full training (null) all there is. The rest is never read, and memory that nobody wrote costs none.
 */
export function accumulators(
  { device, manifest, jobLane: lane }: Engine,
  job: number,
  branches: readonly (readonly BranchState[])[] | null,
): Range[][] {
  const { plan } = device;
  const { layers } = manifest.model;
  const { accum } = plan.room;
  const at = (group: number, offset: number, words: number): Range => ({
    ...{ space: "accum", group, offset, words, lane },
  });
  if (!branches)
    return Array.from({ length: groupsOf(plan, layers) }, (_, group) => {
      // Behind those of the outer group are losses.
      const all =
        group < layers ? accum.layer : group === layers ? accum.outer : plan.own[group - layers - 1]!.accum;
      return all ? [at(group, 0, all)] : [];
    });
  return branches.map((states, group) => {
    const runs: { offset: number; words: number }[] = [];
    for (const { branch, accum, words, rows, k } of plan.factors) {
      const { rank } = states[branch!]!;
      if (!rank || accum < 0) continue;
      const used = ranked({ rows, cols: k }) ? Math.min(words, quadsOf(rank) * QUAD * k) : words;
      for (let i = 0; i <= mostStates; i++) {
        const offset = job * plan.jobWords + accum + i * words;
        const last = runs.at(-1);
        if (last && last.offset + last.words === offset) last.words += used;
        else runs.push({ offset, words: used });
      }
    }
    return runs.map((r) => at(group, r.offset, r.words));
  });
}
