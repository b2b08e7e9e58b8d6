/**
 * What S2FT's selectors look at (paper §3.2): weights and activations of the channels that matrices share.
 */
import type { Manifest, SiteEntry } from "./bundle.ts";
import { type AdapterContent, placedIn } from "./content.ts";
import { channelAt } from "./coupling.ts";
import { paramNamed } from "./device.ts";
import type { Engine } from "./engine.ts";
import { singleBranch, singleSites } from "./experts.ts";
import { packedWords } from "./formats.ts";
import { isIn } from "./kinds.ts";
import { channelOrder, ordersOf } from "./order.ts";
import { reorder } from "./reorder.ts";
import type { ModelView } from "./selectors.ts";
import { blockRows, groupOf } from "./shards.ts";
import { selection } from "./tensors/selection.ts";
import type { TrainOptions } from "./training.ts";
import { unpack } from "./values.ts";

/**
 * Σ w² of each channel of a site, over the matrices that share its channels: rows of gate, up and v, columns
 * of down and o.
 */
async function weightSquares(
  engine: Engine,
  layer: number,
  of: SiteEntry,
  one: number,
): Promise<Float64Array> {
  const { manifest } = engine;
  const { group, channels } = of.coupling!;
  const squares = new Float64Array(channels);
  for (const site of manifest.sites) {
    if (!isIn(manifest.model, layer, site)) continue;
    // Under grouped queries a head of v belongs to several of o: each counts its own matrix.
    if (site.coupling?.group !== group || site.coupling.channels !== channels) continue;
    const w = await matrix(engine, layer, singleSites(site)[one]!);
    for (let o = 0; o < site.outFeatures; o++)
      for (let i = 0; i < site.inFeatures; i++) {
        const c = channelAt(site.coupling, site.coupling.axis === "in" ? i : o);
        if (c !== null) squares[c] = squares[c]! + w[o * site.inFeatures + i]! ** 2;
      }
  }
  return squares;
}

/** Row `id` of the embedding table, as the device has it. */
async function embeddingRow(engine: Engine, id: number): Promise<Float32Array> {
  const { manifest, device } = engine;
  const { plan } = device;
  const p = paramNamed(plan.outerParams, manifest.checkpoint.embedding);
  const rows = blockRows(p);
  const block = Math.floor(id / rows);
  const words = packedWords(p.format, rows, p.k, plan.panel);
  const raw = await device.read({
    space: "weights",
    group: groupOf(p, manifest.model.layers),
    offset: p.offset + block * words,
    words,
  });
  const row = id - block * rows;
  return unpack(p.format, raw, rows, p.k, plan.panel).slice(row * p.k, (row + 1) * p.k);
}

/** A site's matrix [out, in], as the device has it now, in the model's order. */
async function matrix(engine: Engine, layer: number, site: SiteEntry): Promise<Float32Array> {
  const { manifest, device } = engine;
  const { plan } = device;
  const p = paramNamed(plan.layerParams, `${site.module}.weight`);
  const raw = await device.read({
    space: "weights",
    group: layer,
    offset: p.offset,
    words: packedWords(p.format, p.n, p.k, plan.panel),
  });
  const values = unpack(p.format, raw, p.n, p.k, plan.panel);
  reorder(manifest, layer, site, values, true);
  return values;
}
/** A site's bias [out], as the device has it now, in the model's order. */
async function biasOf(engine: Engine, layer: number, site: SiteEntry): Promise<Float32Array> {
  const p = paramNamed(engine.device.plan.layerParams, `${site.module}.bias`);
  const values = await engine.device.read({ space: "weights", group: layer, offset: p.offset, words: p.n });
  reorder(engine.manifest, layer, site, values, true);
  return values;
}
/** Σ w² of each row of a site's matrix. */
async function rowSquares(engine: Engine, layer: number, site: SiteEntry): Promise<Float64Array> {
  const w = await matrix(engine, layer, site);
  return Float64Array.from({ length: site.outFeatures }, (_, o) =>
    w.subarray(o * site.inFeatures, (o + 1) * site.inFeatures).reduce((s, x) => s + x * x, 0),
  );
}

/**
 * The sum of each channel of a site from its group's statistics; a channel of v stands for all query heads
 * that read it.
 */
function statisticOf(
  engine: Engine,
  layer: number,
  statistics: Float32Array,
  of: SiteEntry,
  one: number,
): Float64Array {
  const { group, channels } = of.coupling!;
  if (group === "experts") {
    const own = Float64Array.from(statistics.subarray(one * channels, (one + 1) * channels));
    const order = ordersOf(engine.manifest, layer, of)[of.coupling!.axis];
    return order ? own.map((_, c) => own[order.indexOf(c)]!) : own;
  }
  const { heads, kvHeads, headDim } = engine.manifest.model;
  const out = new Float64Array(channels);
  const order = channelOrder(engine.manifest, layer, group === "ffn" ? "ffn" : "heads");
  statistics.forEach((x, at) => {
    const c = order ? order[at]! : at;
    const to =
      out.length === statistics.length
        ? c
        : Math.floor(Math.floor(c / headDim) / (heads / kvHeads)) * headDim + (c % headDim);
    out[to] = out[to]! + x;
  });
  return out;
}

/**
 * Channels that `others` chose in a site's coupled group (a channel of v and one of o are different things
 * under grouped queries).
 */
function channelsTaken(
  manifest: Manifest,
  others: readonly AdapterContent[],
  layer: number,
  of: SiteEntry,
  one: number,
): ReadonlySet<number> {
  const taken = new Set<number>();
  for (const { branches, tensors } of others)
    branches[layer]!.forEach(({ rank }, i) => {
      const site = manifest.sites[manifest.branches[i]!.site]!;
      const { coupling } = site;
      const { group, channels } = of.coupling!;
      if (!rank || coupling?.group !== group || coupling.channels !== channels) return;
      const placed = placedIn(manifest, branches[layer]!, tensors[layer]!, layer, i);
      for (const p of singleBranch(placed, one, singleSites(site)[one]!))
        if (p.t.kind === "selection")
          for (const place of selection.get(p)) taken.add(channelAt(coupling, place)!);
    });
  return taken;
}

/**
 * An engine's model, as an adapter of a job begins on it. `calibrated`: what channels carry over the job's
 * first rows, activations or gradients, [layer][group]; asked for once.
 */
export function viewOf(
  engine: Engine,
  { tuned, disjointFrom = [] }: Pick<TrainOptions, "tuned" | "disjointFrom">,
  calibrated: (gradients: boolean) => Promise<Float32Array[][]>,
): ModelView {
  const { manifest, device } = engine;
  const statistics: Partial<Record<"activation" | "gradient", Float32Array[][]>> = {};
  return {
    embedding: (id) => embeddingRow(engine, id),
    bias: (layer, site) => biasOf(engine, layer, site),
    matrix: (layer, site) => matrix(engine, layer, site),
    tuned: tuned ?? null,
    taken: (layer, site, one) => channelsTaken(manifest, disjointFrom, layer, site, one),
    scores: async (what, layer, site, one) => {
      if (what === "row") return rowSquares(engine, layer, site);
      if (what === "weight") return weightSquares(engine, layer, site, one);
      statistics[what] ??= await calibrated(what === "gradient");
      const i = device.plan.statistics.findIndex((s) => s.name.endsWith(`.${site.coupling!.group}`));
      return statisticOf(engine, layer, statistics[what][layer]![i]!, site, one);
    },
  };
}
