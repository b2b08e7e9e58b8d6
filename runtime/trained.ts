/** What a job's updates go on from: accumulators with their moments, and of full training the weights. */
import { chamberWords, type Device, type Range } from "./device.ts";
import type { Engine } from "./engine.ts";
import { groupsOf } from "./shards.ts";
import type { TrainState } from "./training.ts";

type Trained = Pick<TrainState, "accum" | "weights">;

/** Of each group, where a job's accumulators lie; those of full training are all there are. */
function accumulators({ device, manifest, jobLane: lane }: Engine, job: number, full: boolean): Range[] {
  const { plan } = device;
  const { layers } = manifest.model;
  const { accum } = plan.room;
  /** Of full training: behind those of the outer group are losses. */
  const all = (group: number): number =>
    group < layers ? accum.layer : group === layers ? accum.outer : plan.own[group - layers - 1]!.accum;
  return Array.from({ length: full ? groupsOf(plan, layers) : layers }, (_, group) => ({
    space: "accum",
    group,
    offset: full ? 0 : job * plan.jobWords,
    words: full ? all(group) : plan.jobWords,
    lane,
  }));
}
function weightsOf({ device, manifest, jobLane: lane }: Engine): Range[] {
  const { plan } = device;
  const { layers } = manifest.model;
  return Array.from({ length: groupsOf(plan, layers) }, (_, group) => ({
    space: "weights",
    group,
    offset: 0,
    words: chamberWords(plan, layers, "weights", group),
    lane,
  }));
}
async function readEach(device: Device, ranges: readonly Range[]): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  for (const range of ranges) out.push(await device.read(range));
  return out;
}
export const readTrained = async (engine: Engine, job: number, full: boolean): Promise<Trained> => ({
  accum: await readEach(engine.device, accumulators(engine, job, full)),
  weights: full ? await readEach(engine.device, weightsOf(engine)) : [],
});
/** As they were, or (null) as a job begins: accumulators of zeros, and weights as they are. */
export function writeTrained(engine: Engine, job: number, full: boolean, from: Trained | null): void {
  const { device } = engine;
  accumulators(engine, job, full).forEach((range, group) => {
    const data = from?.accum[group];
    if (data) device.write(range, data);
    else if (range.words) device.clear(range);
  });
  if (full && from) weightsOf(engine).forEach((range, group) => device.write(range, from.weights[group]!));
}
