/** What S2FT's selectors look at (paper §3.2): weights and activations of the channels that matrices share. */
import type { SiteEntry } from "./bundle.ts";
import { paramNamed, unpackHalfPanels, unpackPanels } from "./device.ts";
import type { Engine } from "./engine.ts";

const channelsOf = (s: SiteEntry): number => (s.coupling!.axis === "in" ? s.inFeatures : s.outFeatures);

/** Σ w² of each channel of a site, over the matrices that share its channels: rows of gate, up and v, columns of down and o. */
export async function weightSquares(engine: Engine, layer: number, of: SiteEntry): Promise<Float64Array> {
  const { manifest } = engine;
  const squares = new Float64Array(channelsOf(of));
  for (const site of manifest.sites) {
    // Under grouped queries a head of v belongs to several of o: each counts its own matrix.
    if (site.coupling?.group !== of.coupling!.group || channelsOf(site) !== squares.length) continue;
    const w = await matrix(engine, layer, site);
    for (let o = 0; o < site.outFeatures; o++)
      for (let i = 0; i < site.inFeatures; i++) {
        const c = site.coupling.axis === "in" ? i : o;
        squares[c] = squares[c]! + w[o * site.inFeatures + i]! ** 2;
      }
  }
  return squares;
}

/** A site's matrix [out, in], as the device has it. */
async function matrix(engine: Engine, layer: number, site: SiteEntry): Promise<Float32Array> {
  const { manifest, device } = engine;
  const { plan } = device;
  const p = paramNamed(plan.layerParams, `${site.module}.weight`);
  const half = manifest.model.format === "f16";
  const raw = await device.read({ cls: "weights", group: layer, offset: p.offset, words: half ? p.words / 2 : p.words });
  return (half ? unpackHalfPanels : unpackPanels)(raw, p.n, p.k, plan.panel);
}
/** Σ w² of each row of a site's matrix. */
export async function rowSquares(engine: Engine, layer: number, site: SiteEntry): Promise<Float64Array> {
  const w = await matrix(engine, layer, site);
  return Float64Array.from({ length: site.outFeatures }, (_, o) => w.subarray(o * site.inFeatures, (o + 1) * site.inFeatures).reduce((s, x) => s + x * x, 0));
}

/** Σ a² of each channel of a site from its group's statistics; a channel of v stands for all query heads that read it. */
export function activationSquares(engine: Engine, statistics: Float32Array, of: SiteEntry): Float64Array {
  const { heads, kvHeads, headDim } = engine.manifest.model;
  const out = new Float64Array(channelsOf(of));
  statistics.forEach((x, c) => {
    const to = out.length === statistics.length ? c : Math.floor(Math.floor(c / headDim) / (heads / kvHeads)) * headDim + (c % headDim);
    out[to] = out[to]! + x;
  });
  return out;
}
