/** Adapters as what they add to matrices: ΔW = Bᵀ·A a site, for export, combination and merging. */
import { type Manifest, type TargetPlan, WeftError } from "./bundle.ts";
import { type AdapterContent, placeOf, readSelection, siteOf } from "./content.ts";

export interface LowRank {
  readonly rank: number;
  /** [rank, in]. */
  readonly a: Float32Array;
  /** [rank, out], the branch's scale folded in. */
  readonly b: Float32Array;
}
/** W [out, in] += Σ Bᵀ·A, summed in f64. */
export function addDeltas(w: Float32Array, deltas: readonly LowRank[]): void {
  for (const { rank, a, b } of deltas) {
    const [columns, outs] = [a.length / rank, b.length / rank];
    for (let o = 0; o < outs; o++)
      for (let i = 0; i < columns; i++) {
        let sum = 0;
        for (let r = 0; r < rank; r++) sum += b[r * outs + o]! * a[r * columns + i]!;
        w[o * columns + i] = w[o * columns + i]! + sum;
      }
  }
}
/** A branch of one layer as an exact product. Throws WEFT_ADAPTER for methods that are no sum of products. */
export function asLowRank(
  manifest: Manifest,
  plan: TargetPlan,
  content: AdapterContent,
  layer: number,
  branch: number,
): LowRank {
  const b = manifest.branches[branch]!;
  const site = siteOf(manifest, b);
  const { rank, scale } = content.branches[layer]![branch]!;
  const slot = content.tensors[layer]!;
  const rows = (name: string): Float32Array => {
    const at = placeOf(plan.factors, branch, name);
    return slot.slice(at.offset, at.offset + rank * at.k);
  };
  const form = manifest.methods[b.method]!.form;
  if (form === "factors") return { rank, a: rows("a"), b: rows("b").map((x) => Math.fround(x * scale)) };
  if (form !== "selection")
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: `method ${b.method}`,
      expected: "a method that adds a low-rank or indexed delta to weights",
      found: "one that does not",
    });
  const channels = readSelection(slot, placeOf(plan.factors, branch, "index"), rank);
  const inner = site.coupling!.axis === "in";
  const chosen = new Float32Array(rank * (inner ? site.inFeatures : site.outFeatures));
  channels.forEach((c, r) => {
    chosen[r * (inner ? site.inFeatures : site.outFeatures) + c] = 1;
  });
  return inner ? { rank, a: chosen, b: rows("delta") } : { rank, a: rows("delta"), b: chosen };
}
