/** What a job's updates go on from: accumulators with their moments, and of full training the weights. */
import { accumulators } from "./accumulators.ts";
import { chamberWords, type Device, type Range } from "./device.ts";
import type { Engine } from "./engine.ts";
import { groupsOf } from "./shards.ts";
import type { TrainState } from "./training.ts";

/** [layer][branch]; null: full training. */
type Branches = Parameters<typeof accumulators>[2];
type Trained = Pick<TrainState, "accum" | "weights">;

function weightsOf({ device, manifest, jobLane: lane }: Engine): Range[][] {
  const { plan } = device;
  const { layers } = manifest.model;
  return Array.from({ length: groupsOf(plan, layers) }, (_, group) => [
    {
      ...{ space: "weights", group, offset: 0, lane },
      words: chamberWords(plan, layers, "weights", group),
    },
  ]);
}
/** Ranges one after another in one array. */
async function readJoined(device: Device, ranges: readonly Range[]): Promise<Float32Array> {
  const out = new Float32Array(ranges.reduce((n, r) => n + r.words, 0));
  let at = 0;
  for (const part of await device.readAll(ranges)) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
async function readEach(device: Device, groups: readonly (readonly Range[])[]): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  for (const ranges of groups) out.push(await readJoined(device, ranges));
  return out;
}
export const readTrained = async (engine: Engine, job: number, branches: Branches): Promise<Trained> => ({
  accum: await readEach(engine.device, accumulators(engine, job, branches)),
  weights: branches ? [] : await readEach(engine.device, weightsOf(engine)),
});
export function writeTrained(engine: Engine, job: number, branches: Branches, from: Trained): void {
  const { device } = engine;
  const write = (groups: readonly (readonly Range[])[], data: readonly Float32Array[]): void =>
    groups.forEach((ranges, group) => {
      let at = 0;
      for (const range of ranges) device.write(range, data[group]!.subarray(at, (at += range.words)));
    });
  write(accumulators(engine, job, branches), from.accum);
  if (!branches) write(weightsOf(engine), from.weights);
}
