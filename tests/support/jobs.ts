/** Jobs of a tiny model, and how they end. */
import type { TrainState } from "../../runtime/trainer.ts";
import { type Engine, type FinetuneOptions, type Job, WeftError } from "../../sdk/index.ts";
import { batchOf, bits, idsOf } from "./engines.ts";

export const vocab = 128;
export const prompt = idsOf("jobs", 6, vocab);
export const rows = batchOf(vocab);
export const base = { data: rows, steps: 4, batchSize: 2, seed: 5, learningRate: 0.01 };
export const one = { load: { threads: 1 } } as const;
/** Resolves when the job has done so many steps. */
export const stepsOf = (engine: Engine, o: FinetuneOptions, n: number): Promise<Job> =>
  new Promise((resolve, reject) => {
    let job: Job | null = null;
    let reached = false;
    const ready = (): void => {
      if (job && reached) resolve(job);
    };
    engine
      .finetune({
        ...o,
        onEvent: (e) => {
          if (e.type === "step" && e.step >= n) reached = true;
          ready();
        },
      })
      .then((j) => {
        job = j;
        ready();
      }, reject);
  });
export const outcome = (p: Promise<unknown>): Promise<string> =>
  p.then(
    () => "resolved",
    (e: Error) => (e instanceof WeftError ? e.code : e.name),
  );
export const stateBits = (s: TrainState): string =>
  [
    s.step,
    s.updates,
    s.losses.join(),
    ...[...s.accum, ...s.weights, ...(s.adapter?.tensors ?? [])].map(bits),
  ].join();
/** Turns of the event loop. */
export const turns = async (n: number): Promise<void> => {
  for (let i = 0; i < n; i++) await new Promise((r) => setImmediate(r));
};
