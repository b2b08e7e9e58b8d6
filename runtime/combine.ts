/** Weighted sums of adapters as one adapter, exactly: factors are concatenated, selections are united. */
import { type Manifest, type TargetPlan, WeftError } from "./bundle.ts";
import {
  type AdapterContent,
  type BranchState,
  defaultConfig,
  placeOf,
  readEntries,
  readSelection,
  writeEntries,
  writeSelection,
} from "./content.ts";
import { asLowRank } from "./lowrank.ts";

export interface Part {
  readonly content: AdapterContent;
  readonly weight: number;
}
const absent: BranchState = { rank: 0, alpha: 0, scale: 0 };
function tooLarge(where: string, room: number, need: number): never {
  throw new WeftError({
    code: "WEFT_ADAPTER",
    where,
    expected: `a combination of at most ${room} rows, what this bundle's class holds`,
    found: String(need),
    hint: "compile with a larger rank, or combine fewer adapters",
  });
}

/**
 * Σ weight · adapter. Adapters that all select channels, or all single entries, stay what they are; all
 * others become one LoRA. Throws WEFT_ADAPTER for what does not add up.
 */
export function combine(manifest: Manifest, plan: TargetPlan, parts: readonly Part[]): AdapterContent {
  if (!parts.length)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "combination",
      expected: "at least one adapter",
      found: "none",
    });
  for (const { weight } of parts)
    if (!Number.isFinite(weight))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "combination",
        expected: "finite weights",
        found: String(weight),
      });
  for (const { content } of parts)
    if (content.replaces)
      throw new WeftError({
        code: "WEFT_ADAPTER",
        where: "combination",
        expected: "adapters that share the base",
        found: "one with modules of its own",
      });
  const methods = new Set(parts.map((p) => p.content.config.method));
  const [only] = methods;
  const { form } = manifest.methods[only!]!;
  const sum =
    methods.size === 1 && (form === "selection" || form === "entries")
      ? unite(manifest, plan, parts, only!)
      : concatenate(manifest, plan, parts);
  for (const [layer, data] of sum.tensors.entries()) {
    const wrong = data.findIndex((x) => !Number.isFinite(x));
    if (wrong >= 0)
      throw new WeftError({
        code: "WEFT_ADAPTER",
        where: "combination",
        expected: "weights whose sum is finite in f32",
        found: `${data[wrong]} in layer ${layer}`,
      });
  }
  return sum;
}

/** One LoRA whose factors are those of all parts, one below the other; weights and scales go into B. */
function concatenate(manifest: Manifest, plan: TargetPlan, parts: readonly Part[]): AdapterContent {
  const target = Object.values(manifest.methods).find((m) => m.form === "factors");
  if (!target)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "combination",
      expected: "a bundle with the lora method",
      found: Object.keys(manifest.methods).join(", "),
    });
  const tensors: Float32Array[] = [];
  const branches = Array.from({ length: manifest.model.layers }, (_, l) => {
    const slot = new Float32Array(plan.slotWords);
    tensors.push(slot);
    return manifest.branches.map((b): BranchState => {
      if (b.method !== target.name) return absent;
      const [a, up] = [placeOf(plan.factors, b.index, "a"), placeOf(plan.factors, b.index, "b")];
      let rank = 0;
      for (const { content, weight } of parts)
        for (const other of manifest.branches) {
          if (other.site !== b.site || !content.branches[l]![other.index]!.rank) continue;
          const low = asLowRank(manifest, plan, content, l, other.index);
          if (rank + low.rank > b.capacity)
            tooLarge(`layer ${l}, ${manifest.sites[b.site]!.module}`, b.capacity, rank + low.rank);
          slot.set(low.a, a.offset + rank * a.k);
          slot.set(
            low.b.map((x) => x * weight),
            up.offset + rank * up.k,
          );
          rank += low.rank;
        }
      return rank ? { rank, alpha: rank, scale: 1 } : absent;
    });
  });
  const rank = Math.max(1, ...branches.flat().map((s) => s.rank));
  return {
    config: {
      ...defaultConfig(manifest, target.name),
      rank,
      alpha: rank,
      targetModules: modulesOf(manifest, branches),
    },
    branches,
    tensors,
  };
}
const modulesOf = (manifest: Manifest, branches: readonly (readonly BranchState[])[]): string[] => [
  ...new Set(
    manifest.branches
      .filter((b) => branches.some((layer) => layer[b.index]!.rank))
      .map((b) => manifest.sites[b.site]!.module.split(".").pop()!),
  ),
];

/**
 * Selections, or sparse entries, of one method: the union of the chosen; where parts share one their deltas
 * add.
 */
function unite(manifest: Manifest, plan: TargetPlan, parts: readonly Part[], method: string): AdapterContent {
  const sparse = manifest.methods[method]!.form === "entries";
  const tensors: Float32Array[] = [];
  const branches = Array.from({ length: manifest.model.layers }, (_, l) => {
    const slot = new Float32Array(plan.slotWords);
    tensors.push(slot);
    return manifest.branches.map((b): BranchState => {
      const here = parts.filter((p) => p.content.branches[l]![b.index]!.rank);
      if (b.method !== method || !here.length) return absent;
      const { inFeatures: ins, outFeatures: outs } = manifest.sites[b.site]!;
      const [index, delta] = [
        placeOf(plan.factors, b.index, "index"),
        placeOf(plan.factors, b.index, sparse ? "values" : "delta"),
      ];
      const chosen = here.map((p) => {
        const { rank } = p.content.branches[l]![b.index]!;
        return sparse
          ? readEntries(p.content.tensors[l]!, index, b.capacity, ins, rank)
          : readSelection(p.content.tensors[l]!, index, rank);
      });
      // A selection of the bundle's own has its order, and adapters take its beginning.
      const leading = b.tensors.some((t) => t.init === "leading");
      const union = leading
        ? chosen.reduce((x, y) => (y.length > x.length ? y : x))
        : [...new Set(chosen.flat())].sort((x, y) => x - y);
      if (union.length > b.capacity)
        tooLarge(`layer ${l}, ${manifest.sites[b.site]!.module}`, b.capacity, union.length);
      if (sparse) writeEntries(slot, index, b.capacity, outs, ins, union);
      else writeSelection(slot, index, b.capacity, union);
      const place = new Map(union.map((x, r) => [x, r]));
      here.forEach((p, i) => {
        chosen[i]!.forEach((x, r) => {
          const to = delta.offset + place.get(x)! * delta.k;
          const from = delta.offset + r * delta.k;
          for (let c = 0; c < delta.k; c++)
            slot[to + c] = slot[to + c]! + p.weight * p.content.tensors[l]![from + c]!;
        });
      });
      return { rank: union.length, alpha: 0, scale: 1 };
    });
  });
  return {
    config: { ...defaultConfig(manifest, method), targetModules: modulesOf(manifest, branches) },
    branches,
    tensors,
  };
}
