/**
 * S2FT (Yang et al. 2024, §3), class `permuted`: the bundle was compiled with one selection for all adapters
 * of the class, and keeps the selected channels first in every matrix that shares them. What is trained is
 * then a dense sub-matrix: no index is read, a slice of x is all that is kept.
 */
import { add, expand, leading, shrink, widen } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";
import { s2ft } from "./s2ft.ts";

const { calibrates: _, ...indexed } = s2ft;
export const s2ftPermuted: AdapterMethod = {
  ...indexed,
  name: "s2ft_permuted",
  // Each expert would need an order of its own.
  experts: false,
  peft: { ...s2ft.peft, when: { class: "permuted" }, config: {}, fixed: { class: "permuted" } },
  // Heads that share keys move, and are trained, together.
  capacity: (site, sites, c) => {
    const most = s2ft.capacity(site, sites, c);
    if (!most || site.coupling!.group === "ffn") return most;
    const { channels, unit } = site.coupling!;
    const values = sites.find((s) => s.coupling?.group === "heads" && s.coupling.axis === "out")!;
    const keys = values.coupling!.channels / unit;
    return Math.max(1, Math.round((most * keys) / channels)) * (channels / keys);
  },
  tensors: (site, rank) =>
    s2ft.tensors(site, rank).map((t) => (t.name === "index" ? { ...t, init: "leading" } : t)),
  output: (x, y, { branch, site, tensor }) =>
    site.coupling!.axis === "in"
      ? add(expand(leading(x, tensor("delta")), tensor("delta")), y)
      : add(widen(shrink(x, tensor("delta")), branch, site.outFeatures, site.coupling!.at), y),
};
