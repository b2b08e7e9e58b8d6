/** What the channels of a base carry, over the first rows of a job's data: what selectors choose by. */
import type { Range } from "./device.ts";
import type { Engine } from "./engine.ts";
import type { MicroBatches } from "./microbatches.ts";
import type { Item } from "./rows.ts";

/** Tokens that are looked at. */
const CALIBRATION_TOKENS = 1000;

/**
 * Run rows (a thousand tokens, or all) through the layers, and back where gradients are asked for, as job
 * `index`, and read what their channels carry: [layer][group of coupled channels], sums of squares.
 */
export async function calibrate(
  { device, manifest, host, jobLane: lane }: Engine,
  index: number,
  micro: MicroBatches,
  items: readonly Item[],
  gradients: boolean,
): Promise<Float32Array[][]> {
  const { plan } = device;
  const { layers } = manifest.model;
  const groups = Array.from({ length: layers }, (_, group) =>
    plan.statistics.map(
      ({ accum, n: words }): Range => ({
        ...{ space: "accum", group, offset: index * plan.jobWords + accum, words, lane },
      }),
    ),
  );
  for (const range of groups.flat()) device.clear(range);
  // The classes after the trained ones have no update, and keep only what bounds a layer; the first of them
  // has no loss either.
  host.exports.jobOpen(index, manifest.train.length + (gradients ? 1 : 0), 0);
  const rows: Item[] = [];
  for (let i = 0, tokens = 0; i < items.length && tokens < CALIBRATION_TOKENS; i++) {
    rows.push(items[i]!);
    tokens += items[i]!.ids.length;
  }
  // Losses are means over all the labels that are looked at.
  const labels = rows.reduce((n, x) => n + x.labels, 0);
  const weighted = rows.map((x): Item => ({ ...x, weight: 1 / labels }));
  for (let start = 0; start < rows.length; ) {
    const rest = weighted.slice(start);
    start += (await micro.run(rest, { last: false, most: rest.length, keep: false })).rows;
  }
  const out: Float32Array[][] = [];
  for (const ranges of groups) out.push(await device.readAll(ranges));
  return out;
}
