/**
 * S2FT (Yang et al. 2024, §3), class `permuted`: the bundle was compiled with one selection for all adapters
 * of the class, and keeps the selected channels first in every matrix that shares them. What is trained is
 * then a dense sub-matrix: no index is read, a slice of x is all that is kept. Each expert has its own order.
 */
import {
  add,
  expand,
  expandExperts,
  leading,
  leadingExperts,
  shrink,
  shrinkExperts,
  widen,
  widenExperts,
} from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";
import { s2ft } from "./s2ft.ts";

const { calibrates: _, ...indexed } = s2ft;
export const s2ftPermuted: AdapterMethod = {
  ...indexed,
  name: "s2ft_permuted",
  peft: { ...s2ft.peft, when: { class: "permuted" }, config: {}, fixed: { class: "permuted" } },
  // Heads that share keys move, and are trained, together.
  capacity: (site, sites, c) => {
    const most = s2ft.capacity(site, sites, c);
    if (!most || site.coupling!.group !== "heads") return most;
    const { channels, unit } = site.coupling!;
    const values = sites.find((s) => s.coupling?.group === "heads" && s.coupling.axis === "out")!;
    const keys = values.coupling!.channels / unit;
    return Math.max(1, Math.round((most * keys) / channels)) * (channels / keys);
  },
  tensors: (site, rank) =>
    s2ft.tensors(site, rank).map((t) => (t.name === "index" ? { ...t, init: "leading" } : t)),
  output: (x, y, { branch, site, tensor, chosen }) => {
    const delta = tensor("delta");
    const inner = site.coupling!.axis === "in";
    if (chosen) {
      const [count, outs] = [site.experts!, site.outFeatures];
      return inner
        ? add(expandExperts(leadingExperts(x, delta, chosen), delta, chosen, count), y)
        : add(widenExperts(shrinkExperts(x, delta, chosen, count), delta, chosen, outs), y);
    }
    return inner
      ? add(expand(leading(x, delta), delta), y)
      : add(widen(shrink(x, delta), branch, site.outFeatures, site.coupling!.at), y);
  },
};
