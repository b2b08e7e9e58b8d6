/** Weighted sums of adapters as one adapter, exactly: factors are concatenated, selections are united. */
import { asLowRank } from "./branch.ts";
import { type Manifest, type ParamEntry, type TargetPlan, WeftError } from "./bundle.ts";
import {
  type AdapterContent,
  absent,
  type BranchState,
  defaultConfig,
  indexOf,
  placedIn,
  placeOf,
} from "./content.ts";

export interface Part {
  readonly content: AdapterContent;
  readonly weight: number;
}
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
  const chooses = manifest.methods[only!]!.change?.every(({ of }) => "index" in of);
  const sum =
    methods.size === 1 && chooses ? unite(manifest, plan, parts, only!) : concatenate(manifest, plan, parts);
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
  const target = Object.values(manifest.methods).find(
    ({ change }) =>
      change?.length === 1 && change[0]!.term === "product" && Object.keys(change[0]!.of).length === 2,
  );
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
      const [a, up] = (["a", "b"] as const).map((role) =>
        placeOf(plan.factors, b.index, target.change![0]!.of[role]!),
      ) as [ParamEntry, ParamEntry];
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

/** Adapters of one method that choose what they change: the union of the chosen; deltas of what is shared add. */
function unite(manifest: Manifest, plan: TargetPlan, parts: readonly Part[], method: string): AdapterContent {
  const tensors: Float32Array[] = [];
  const branches = Array.from({ length: manifest.model.layers }, (_, l) => {
    const slot = new Float32Array(plan.slotWords);
    tensors.push(slot);
    return manifest.branches.map((b): BranchState => {
      const here = parts.flatMap(({ content, weight }) => {
        const { rank } = content.branches[l]![b.index]!;
        if (b.method !== method || !rank) return [];
        const placed = placedIn(manifest, plan.factors, content.tensors[l]!, l, b.index, rank);
        const { p, kind } = indexOf(placed)!;
        return [{ weight, placed, chosen: kind.get(p) }];
      });
      if (!here.length) return absent;
      const index = indexOf(here[0]!.placed)!;
      const union = index.kind.united(
        index.p.t,
        here.map(({ chosen }) => chosen),
      );
      if (union.length > b.capacity)
        tooLarge(`layer ${l}, ${manifest.sites[b.site]!.module}`, b.capacity, union.length);
      index.kind.set({ ...index.p, slot, rank: union.length }, union);
      const place = new Map(union.map((x, r) => [x, r]));
      for (const { weight, placed, chosen } of here)
        for (const { t, at, slot: own } of placed)
          if (t.name !== index.p.t.name)
            chosen.forEach((x, r) => {
              const [to, from] = [at.offset + place.get(x)! * t.cols, at.offset + r * t.cols];
              for (let c = 0; c < t.cols; c++) slot[to + c] = slot[to + c]! + weight * own[from + c]!;
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
