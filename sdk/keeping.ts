/** What a job keeps of itself while it runs, and what it goes on from. */
import type { TrainEvent, TrainState } from "../runtime/trainer.ts";
import { Autosave } from "./autosave.ts";
import {
  type Checkpoint,
  checkSame,
  claimCheckpoints,
  type Grounds,
  loadCheckpoint,
  saveCheckpoint,
} from "./checkpoint.ts";
import type { FinetuneOptions } from "./options.ts";

/** Checkpoints that a job takes by itself: how often, where they go, and who hears of it. */
export interface Keeping {
  readonly Autosave: typeof Autosave;
  readonly every: number | undefined;
  readonly keep: (c: Checkpoint) => Promise<void>;
  readonly told: (e: TrainEvent) => unknown;
}
/** A job that was interrupted goes on: the same job, as if nothing had happened. */
export interface Again {
  /** Its last checkpoint; null: it begins anew, which comes to the same. */
  readonly from: Checkpoint | null;
  /** Generations that it made before, by step. */
  readonly published: ReadonlyMap<number, number>;
  /** Seconds between two checkpoints that `keep` gets; the one behind the last step too. */
  readonly every: number;
  readonly keep: (c: Checkpoint) => void;
}

/**
 * The state that a job begins with; undefined: its own start. Throws WEFT_CONFLICT for one of another job.
 */
export async function stateToGoOnFrom(
  o: FinetuneOptions,
  again: Again | undefined,
  now: () => Promise<Grounds>,
): Promise<TrainState | undefined> {
  if (!o.resume && !again?.from) return undefined;
  if (!again?.from) return loadCheckpoint(o.resume!, await now());
  checkSame(again.from, await now(), `job ${o.name}`);
  return again.from.state;
}
/** Asked before it starts whether they can be kept. */
export async function keepingsOf(o: FinetuneOptions, again: Again | undefined): Promise<Keeping[]> {
  const keepings: Keeping[] = [];
  if (o.checkpoint) {
    const { dir, every, about } = o.checkpoint;
    const folder = await claimCheckpoints(dir);
    const keep = (c: Checkpoint): Promise<void> => saveCheckpoint(folder, c, about);
    keepings.push({ Autosave, every, keep, told: (e) => o.onEvent?.(e) });
  }
  if (again) {
    const { every, keep } = again;
    keepings.push({ Autosave, every, keep: async (c) => keep(c), told: () => {} });
  }
  return keepings;
}
