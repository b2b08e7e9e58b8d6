/**
 * An adapter at the matrices of experts is one branch, whose tensors have the columns of all experts side by
 * side. Files, merges and whoever else asks for single matrices see a site, and a branch, for each.
 */
import type { SiteEntry } from "./manifest.ts";
import type { Placed } from "./tensors/tensor.ts";

/** The site of a single matrix; `one`: the expert's, where it is of one. */
export type SingleSite = SiteEntry & { readonly one?: number };
/** The sites of single matrices that a site is of. */
export function singleSites(site: SiteEntry): readonly SingleSite[] {
  const { experts, ...others } = site;
  if (experts === undefined) return [site];
  const single = (_: unknown, e: number): SingleSite => ({
    ...others,
    kind: "linear",
    module: site.module.replace("{e}", String(e)),
    one: e,
  });
  return Array.from({ length: experts }, single);
}
/** One of the branches that a branch of one layer is: of an expert a copy, else itself. */
export function singleBranch(branch: readonly Placed[], one: number, site: SiteEntry): readonly Placed[] {
  const experts = branch[0]?.site.experts;
  if (experts === undefined) return branch;
  return branch.map((p): Placed => {
    const cols = p.t.cols / experts;
    const values = new Float32Array(p.values.length / experts);
    for (let r = 0; r * cols < values.length; r++)
      values.set(p.values.subarray(r * p.t.cols + one * cols, r * p.t.cols + (one + 1) * cols), r * cols);
    return { ...p, site, t: { ...p.t, cols }, values };
  });
}
/** What was written to such a copy, back to where it is from. */
export function putBack(branch: readonly Placed[], one: number, single: readonly Placed[]): void {
  if (single === branch) return;
  branch.forEach(({ values, t }, i) => {
    const { values: part, t: own } = single[i]!;
    for (let r = 0; r * own.cols < part.length; r++)
      values.set(part.subarray(r * own.cols, (r + 1) * own.cols), r * t.cols + one * own.cols);
  });
}
