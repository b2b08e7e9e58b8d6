/**
 * S2FT (Yang et al. 2024, §3), class `indexed`: the base stays as it is; an adapter chooses channels of a
 * site and trains those columns (o, down) or rows (v, up, gate) of its matrix as a dense delta. Input side: y
 * += Δ·x[chosen], keeping only x[chosen]; output side: y[chosen] += Δ·x.
 */
import {
  add,
  expand,
  expandExperts,
  place,
  placeExperts,
  select,
  selectExperts,
  shrink,
  shrinkExperts,
} from "../../ops/index.ts";
import { QUAD } from "../../runtime/bundle.ts";
import type { SiteSpec } from "../layers.ts";
import type { Capacities } from "../target.ts";
import type { AdapterMethod } from "./adapter.ts";

const parameters = (s: SiteSpec): number => s.inFeatures + s.outFeatures;
/** Matrices of a site that have the channels it shares. */
const slices = (s: SiteSpec): number => s.coupling!.at.length;
/** Length of a chosen channel's row or column: of experts', in one. */
const length = (s: SiteSpec): number => (s.coupling!.axis === "in" ? s.outFeatures : s.inFeatures);

/** Of channels of experts as many as whole quads hold, as factors of experts lie. */
const wholeQuads = (channels: number, most: number): number =>
  Math.min(QUAD * Math.ceil(channels / QUAD), most - (most % QUAD));
/**
 * Sites that train when nothing else is asked for: down; and o where every query head has keys of its own
 * (paper §5.4).
 */
function defaultSites(sites: readonly SiteSpec[]): readonly SiteSpec[] {
  return sites.filter((s) => s.coupling?.axis === "in" && !s.coupling.shared);
}
function capacity(site: SiteSpec, sites: readonly SiteSpec[], c: Capacities): number {
  const { coupling } = site;
  if (!coupling) return 0;
  const chosen =
    c.s2ft === null
      ? defaultSites(sites)
      : sites.filter((s) => s.coupling && c.s2ft!.sites.some((name) => s.module.endsWith(name)));
  if (!chosen.includes(site)) return 0;
  if (site.experts && !c.experts) return 0;
  // As many parameters as LoRA of the bundle's rank on every site, split evenly; experts' among themselves.
  const alike = (s: SiteSpec): boolean => s.kind === site.kind;
  const rank = site.experts ? c.experts : c.rank;
  const budget = c.s2ft?.parameters ?? rank * sites.filter(alike).reduce((n, s) => n + parameters(s), 0);
  const matrices = chosen.filter(alike).reduce((n, s) => n + slices(s), 0);
  const units = Math.max(1, Math.round(budget / matrices / length(site) / coupling.unit));
  if (site.experts) return wholeQuads(units, coupling.channels);
  return slices(site) * Math.min(coupling.channels, units * coupling.unit);
}

export const s2ft: AdapterMethod = {
  name: "s2ft",
  peft: {
    type: "S2FT",
    // Files of the class `permuted` say the same thing, and name its channels too.
    when: {},
    config: { selector: "selector" },
    fixed: { class: "indexed" },
  },
  scale: "one",
  targets: "all-linear",
  rank: null,
  change: [{ term: "channels", of: { index: "index", delta: "delta" } }],
  dropout: false,
  experts: true,
  calibrates: true,
  capacity,
  tensors: (site, rank) => {
    const { experts = 1 } = site;
    const inner = site.coupling!.axis === "in";
    return [
      {
        name: "index",
        rows: "one",
        cols: experts * (rank + (inner ? site.inFeatures : site.outFeatures)),
        trained: false,
        kind: "selection",
        init: "selection",
        key: "s2ft_index",
      },
      {
        name: "delta",
        rows: "rank",
        cols: experts * length(site),
        trained: true,
        kind: "dense",
        init: "zeros",
        key: "s2ft_delta",
        ...(inner && { shape: "columns" }),
      },
    ];
  },
  output: (x, y, { site, tensor, chosen }) => {
    const inner = site.coupling!.axis === "in";
    const [index, delta] = [tensor("index"), tensor("delta")];
    if (chosen) {
      const [count, outs] = [site.experts!, site.outFeatures];
      return inner
        ? add(expandExperts(selectExperts(x, index, chosen, count), delta, chosen, count), y)
        : add(placeExperts(shrinkExperts(x, delta, chosen, count), index, chosen, count, outs), y);
    }
    return inner
      ? add(expand(select(x, index), delta), y)
      : add(place(shrink(x, delta), index, site.outFeatures), y);
  },
};
