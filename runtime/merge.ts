/**
 * Adapters as changes of base tensors: what `merge` makes of weights and biases, each from the pristine one,
 * in f64.
 */
import type { AdapterRef } from "./adapters.ts";
import { termsOf } from "./branch.ts";
import { formats, type Manifest, type TargetEntry, WeftError, weightFormats } from "./bundle.ts";
import type { Change } from "./changes.ts";
import type { AdapterContent } from "./content.ts";
import type { Engine } from "./engine.ts";
import { singleSites } from "./experts.ts";
import { type Rounding, roundingOf } from "./values.ts";

/** What a merge took. */
export interface Merged {
  readonly ms: number;
  /** Root of the squared error that storing the moved matrices made, by the squares of their values. */
  readonly rounding: number;
}

export type { Change } from "./changes.ts";

/**
 * `layer tensor` (the outer region's layer is the number of layers) → its change, for every base tensor that
 * the adapter moves. Throws WEFT_ADAPTER for a method that is not linear in its input and, unless they may be
 * rounded again, for matrices in blocks.
 */
function mergeChanges(
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
/** What `Engine.merge` does. */
export async function merge(engine: Engine, ref: AdapterRef | null, requantise?: boolean): Promise<Merged> {
  engine.check();
  const found = engine.inUse;
  if (found)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: "merge",
      expected: "an engine at rest",
      found,
      retryable: true,
    });
  const t0 = performance.now();
  const generation = ref === null ? null : engine.adapter(ref);
  // A method that cannot merge is refused before anything changes.
  const changes = generation
    ? mergeChanges(engine.manifest, engine.device.plan, generation.content, requantise)
    : new Map<string, never>();
  let lost: readonly Rounding[] = [];
  engine.own("a merge");
  try {
    await engine.weights.keep();
    lost = await engine.weights.restore(changes);
    engine.merged = generation?.ref ?? null;
  } catch (e) {
    // Some weights may be new and some old: nothing right could be computed with them.
    engine.fail(e);
    throw e;
  } finally {
    engine.exclusive = null;
  }
  return { ms: performance.now() - t0, rounding: roundingOf(lost) };
}
