/**
 * Adapters as changes of base tensors: what `merge` makes of weights and biases, each from the pristine one,
 * in f64.
 */
import { termsOf } from "./branch.ts";
import { formats, type Manifest, type TargetEntry, WeftError, weightFormats } from "./bundle.ts";
import type { Change } from "./changes.ts";
import type { AdapterContent } from "./content.ts";
import { singleSites } from "./experts.ts";

/** What a merge took. */
export interface Merged {
  readonly ms: number;
  /** Root of the squared error that storing the moved matrices made, by the squares of their values. */
  readonly rounding: number;
}

export type { Change } from "./changes.ts";
export { roundingOf } from "./values.ts";

/**
 * `layer tensor` (the outer region's layer is the number of layers) → its change, for every base tensor that
 * the adapter moves. Throws WEFT_ADAPTER for a method that is not linear in its input and, unless they may be
 * rounded again, for matrices in blocks.
 */
export function mergeChanges(
  manifest: Manifest,
  plan: TargetEntry,
  content: AdapterContent,
  requantise = false,
): Map<string, Change> {
  const out = new Map<string, Change>();
  const { layers } = manifest.model;
  const params = [
    ...Object.entries(manifest.checkpoint.outer).map(([name, path]) => ({ key: `${layers} ${name}`, path })),
    ...Object.entries(manifest.checkpoint.layer).flatMap(([name, path]) =>
      Array.from({ length: layers }, (_, l) => ({
        key: `${l} ${name}`,
        path: path.replace("{l}", String(l)),
      })),
    ),
  ];
  for (const [path, values] of content.replaces ?? [])
    out.set(params.find((p) => p.path === path)!.key, (v) => v.set(values));
  for (const [l, layer] of content.branches.entries())
    for (const [i, { rank }] of layer.entries()) {
      if (!rank) continue;
      const site = manifest.sites[manifest.branches[i]!.site]!;
      const terms = termsOf(manifest, content, l, i);
      for (const [e, { module, bias }] of singleSites(site).entries()) {
        // Of an expert, what it is of is copied when its matrix is due.
        const expert = site.experts ? e : null;
        const all = (of: "weight" | "bias"): void => {
          if (terms.some(({ term }) => term[of]))
            out.set(`${l} ${module}.${of}`, (values) => {
              for (const { term, c } of termsOf(manifest, content, l, i, expert)) term[of]?.(c)(values);
            });
        };
        all("weight");
        if (bias) all("bias");
      }
    }
  if (!requantise) for (const key of out.keys()) mergeable(plan, key.slice(key.indexOf(" ") + 1));
  return out;
}
/** Throws WEFT_ADAPTER for a matrix in blocks. */
function mergeable(plan: TargetEntry, name: string): void {
  const { format } = [...plan.layerParams, ...plan.outerParams].find((p) => p.name === name)!;
  if (!weightFormats[format].fine)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: `merge: ${name}`,
      expected: `a matrix stored as ${formats.filter((f) => weightFormats[f].fine).join(" or ")}`,
      found: `${format}, whose steps are wider than what an adapter changes`,
      hint:
        "serve the adapter beside the base, compile with --format f16, " +
        "or round again: { requantise: true }",
    });
}
