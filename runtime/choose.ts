/** How channels and entries that an adapter trains are chosen, from the model that it begins on. */
import { placesOf } from "./coupling.ts";
import { WeftError } from "./errors.ts";
import { putBack, type SingleSite, singleBranch, singleSites } from "./experts.ts";
import type { SiteEntry } from "./manifest.ts";
import { mix, shuffled } from "./random.ts";
import type { ModelView, Selector } from "./selectors.ts";
import { set } from "./tensors/selection.ts";
import { leading } from "./tensors/selection_files.ts";
import type { Placed, Start } from "./tensors/tensor.ts";

/** A selection of each single matrix, as `choose` says. */
async function setEach(
  p: Placed,
  choose: (site: SingleSite, one: number) => readonly number[] | Promise<readonly number[]>,
): Promise<void> {
  for (const [one, site] of singleSites(p.site).entries()) {
    const single = singleBranch([p], one, site);
    set(single[0]!, await choose(site, one));
    putBack([p], one, single);
  }
}
/** A selection as a job asks for it. */
export const startChosen: Start = async (p, { selector, seed, view }) => {
  const model = await view();
  await setEach(p, (site, one) => chooseChannels(site, p.layer, one, p.rank, selector, mix(seed, 7), model));
};
/** The first of the bundle's own selection. */
export const startLeading: Start = (p, { manifest }) =>
  setEach(p, (site) => leading(manifest, p.layer, site, p.rank));

/** Of a group's random rankings; from the last one, one an expert. */
const salts: Readonly<Record<string, number>> = { ffn: 0, heads: 1, experts: 2 };

/**
 * `rank` rows or columns of a site: those of the first channels of one ranking that all matrices of its
 * coupled group share, so that an adapter's rows of gate and up and columns of down are the same channels
 * (under grouped queries v, which has fewer heads than o, has a ranking of its own). Of experts, whose
 * rankings are their own, the site is that of expert `one`. Ascending.
 */
export async function chooseChannels(
  site: SiteEntry,
  layer: number,
  one: number,
  rank: number,
  selector: Selector,
  seed: number,
  model: ModelView,
): Promise<number[]> {
  const { group, unit, at, channels } = site.coupling!;
  const count = rank / at.length;
  // A count that is no whole number of heads chooses single channels.
  const size = count % unit ? 1 : unit;
  const units = channels / size;
  let order: number[];
  if (selector === "difference")
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selector",
      expected: "a selector of channels",
      found: selector,
    });
  if (selector === "random") order = shuffled(units, mix(mix(seed, layer), salts[group]! + one));
  else {
    const [what, end] = selector.split("-") as [
      "weight" | "activation" | "product" | "gradient",
      "large" | "small",
    ];
    const norms = async (kind: "weight" | "activation" | "gradient"): Promise<Float64Array> => {
      const squares = await model.scores(kind, layer, site, one);
      return Float64Array.from({ length: units }, (_, u) =>
        Math.sqrt(squares.subarray(u * size, (u + 1) * size).reduce((a, b) => a + b, 0)),
      );
    };
    let score = await norms(what === "product" ? "weight" : what);
    if (what === "product") {
      const a = await norms("activation");
      score = score.map((w, u) => w * a[u]!);
    }
    const sign = end === "large" ? -1 : 1;
    order = Array.from({ length: units }, (_, i) => i).sort(
      (a, b) => sign * (score[a]! - score[b]!) || a - b,
    );
  }
  const taken = model.taken(layer, site, one);
  const free = order.filter(
    (u) => !Array.from({ length: size }, (_, i) => u * size + i).some((c) => taken.has(c)),
  );
  if (free.length < count / size)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "disjointFrom",
      expected: `${count} channels of ${site.module} that no other adapter has`,
      found: String(free.length * size),
    });
  const chosen = free
    .slice(0, count / size)
    .flatMap((u) => Array.from({ length: size }, (_, i) => u * size + i));
  return placesOf(site.coupling!, chosen).sort((a, b) => a - b);
}

/**
 * `rank` entries of a site's matrix, flat and ascending: at random, or those whose weight, or change in a
 * full fine-tuning, is largest or smallest.
 */
export async function chooseEntries(
  site: SiteEntry,
  layer: number,
  rank: number,
  selector: Selector,
  seed: number,
  model: ModelView,
): Promise<number[]> {
  const all = site.inFeatures * site.outFeatures;
  let order: Uint32Array | readonly number[];
  if (selector === "random") order = shuffled(all, mix(mix(seed, layer), site.index));
  else {
    const score = (await model.matrix(layer, site)).slice();
    if (selector === "difference") {
      if (!model.tuned)
        throw new WeftError({
          code: "WEFT_OPTION",
          where: "selector",
          expected: "a fine-tuned model to compare with",
          found: "none",
          hint: "give `tuned`, a model folder",
        });
      const moved = await model.tuned(layer, site);
      for (let i = 0; i < all; i++) score[i] = moved[i]! - score[i]!;
    } else if (!selector.startsWith("weight-"))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "selector",
        expected: "random, weight-large, weight-small or difference for single entries",
        found: selector,
      });
    const sign = selector === "weight-small" ? 1 : -1;
    order = Uint32Array.from(score, (_, i) => i).sort(
      (a, b) => sign * (Math.abs(score[a]!) - Math.abs(score[b]!)) || a - b,
    );
  }
  return [...order.slice(0, rank)].sort((a, b) => a - b);
}
