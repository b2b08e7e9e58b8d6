/** Weighted sums of adapters as one adapter, exactly: factors are concatenated, selections are united. */
import { asLowRank } from "./branch.ts";
import { type BranchEntry, type Manifest, type MethodEntry, WeftError } from "./bundle.ts";
import {
  type AdapterContent,
  type AdapterShape,
  absent,
  type BranchState,
  defaultConfig,
  indexOf,
  placedBy,
  placedIn,
  siteOf,
  wordsIn,
} from "./content.ts";
import { putBack, singleBranch, singleSites } from "./experts.ts";
import type { Placed } from "./tensors/tensor.ts";

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

/** Throws WEFT_OPTION, or WEFT_ADAPTER for an adapter that adds to nothing. */
export function checkParts(
  parts: readonly (Omit<Part, "content"> & { readonly content: AdapterShape })[],
): void {
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
}
/**
 * Σ weight · adapter. Adapters that all select channels, or all single entries, stay what they are; all
 * others become one LoRA. Throws WEFT_ADAPTER for what does not add up.
 */
export function combine(manifest: Manifest, parts: readonly Part[]): AdapterContent {
  checkParts(parts);
  const methods = new Set(parts.map((p) => p.content.config.method));
  const [only] = methods;
  const chooses = manifest.methods[only!]!.change?.every(({ of }) => "index" in of);
  const sum = methods.size === 1 && chooses ? unite(manifest, parts, only!) : concatenate(manifest, parts);
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

/** The method whose branches are a product and nothing else; of several, one that trains both factors. */
function productMethod({ methods, branches }: Manifest): MethodEntry | undefined {
  const plain = Object.values(methods).filter(
    ({ change }) =>
      change?.length === 1 && change[0]!.term === "product" && Object.keys(change[0]!.of).length === 2,
  );
  const trained = ({ name }: MethodEntry): boolean =>
    branches.every((b) => b.method !== name || b.tensors.every((t) => t.trained));
  return plain.find(trained) ?? plain[0];
}
/** One LoRA whose factors are those of all parts, one below the other; weights and scales go into B. */
function concatenate(manifest: Manifest, parts: readonly Part[]): AdapterContent {
  const target = productMethod(manifest);
  if (!target)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "combination",
      expected: "a bundle with the lora method",
      found: Object.keys(manifest.methods).join(", "),
    });
  const { a, b: up } = target.change![0]!.of;
  const layers = Array.from({ length: manifest.model.layers }, (_, l) =>
    layerOf(manifest, l, (b) => {
      if (b.method !== target.name) return null;
      const lows = parts.flatMap(({ content, weight }) =>
        manifest.branches
          .filter((other) => other.site === b.site && content.branches[l]![other.index]!.rank)
          .map((other) => ({ weight, low: asLowRank(manifest, content, l, other.index) })),
      );
      const rank = lows.reduce((n, { low }) => n + low.rank, 0);
      return {
        state: { rank, alpha: rank, scale: 1 },
        write: (to) => {
          let row = 0;
          for (const { weight, low } of lows) {
            const [down, out] = [placedBy(to, a!), placedBy(to, up!)];
            down.values.set(low.a, row * down.t.cols);
            out.values.set(
              low.b.map((x) => x * weight),
              row * out.t.cols,
            );
            row += low.rank;
          }
        },
      };
    }),
  );
  const branches = layers.map(({ states }) => states);
  const rank = Math.max(1, ...branches.flat().map((s) => s.rank));
  return {
    config: {
      ...defaultConfig(manifest, target.name),
      rank,
      alpha: rank,
      targetModules: modulesOf(manifest, branches),
    },
    branches,
    tensors: layers.map(({ words }) => words),
  };
}
/** A layer of a sum: what each branch is, and what its tensors hold. Throws where one has too many rows. */
function layerOf(
  manifest: Manifest,
  layer: number,
  of: (b: BranchEntry) => { state: BranchState; write: (to: readonly Placed[]) => void } | null,
): { states: BranchState[]; words: Float32Array } {
  const made = manifest.branches.map((b) => {
    const sum = of(b);
    const rank = sum?.state.rank ?? 0;
    if (rank > b.capacity) tooLarge(`layer ${layer}, ${siteOf(manifest, b).module}`, b.capacity, rank);
    return rank ? sum : null;
  });
  const states = made.map((sum) => sum?.state ?? absent);
  const words = new Float32Array(wordsIn(manifest, states));
  made.forEach((sum, i) => {
    sum?.write(placedIn(manifest, states, words, layer, i));
  });
  return { states, words };
}
const modulesOf = (manifest: Manifest, branches: readonly (readonly BranchState[])[]): string[] => [
  ...new Set(
    manifest.branches
      .filter((b) => branches.some((layer) => layer[b.index]!.rank))
      .map((b) => manifest.sites[b.site]!.module.split(".").pop()!),
  ),
];

/** Of experts some choose less than others: more, whose deltas are zero. */
function filled(chosen: readonly number[], rank: number): number[] {
  const all = new Set(chosen);
  for (let more = 0; all.size < rank; more++) all.add(more);
  return [...all];
}
/** Rows of the parts' tensors, each to its place among what is chosen, which `index` names. */
function addChosen(
  to: readonly Placed[],
  parts: readonly { weight: number; placed: readonly Placed[]; chosen: readonly number[] }[],
  index: string,
  place: ReadonlyMap<number, number>,
): void {
  for (const { weight, placed, chosen } of parts)
    placed.forEach(({ t, values: own }, k) => {
      if (t.name === index) return;
      const { values } = to[k]!;
      chosen.forEach((x, r) => {
        const [at, from] = [place.get(x)! * t.cols, r * t.cols];
        for (let c = 0; c < t.cols; c++) values[at + c] = values[at + c]! + weight * own[from + c]!;
      });
    });
}
/**
 * Adapters of one method that choose what they change: the union of the chosen; deltas of what is shared
 * add.
 */
function unite(manifest: Manifest, parts: readonly Part[], method: string): AdapterContent {
  const layers = Array.from({ length: manifest.model.layers }, (_, l) =>
    layerOf(manifest, l, (b) => {
      if (b.method !== method) return null;
      const here = parts.flatMap(({ content, weight }) => {
        const placed = placedIn(manifest, content.branches[l]!, content.tensors[l]!, l, b.index);
        return placed.length ? [{ weight, placed }] : [];
      });
      if (!here.length) return null;
      const singles = singleSites(siteOf(manifest, b)).map((site, one) => {
        const of = here.map(({ weight, placed }) => {
          const own = singleBranch(placed, one, site);
          const { p, kind } = indexOf(own)!;
          return { weight, placed: own, chosen: kind.get(p) };
        });
        const index = indexOf(of[0]!.placed)!;
        const lists = of.map(({ chosen }) => chosen);
        return { site, of, index, union: index.kind.united(index.p.t, lists) };
      });
      const rank = Math.max(...singles.map(({ union }) => union.length));
      return {
        state: { rank, alpha: 0, scale: 1 },
        write: (to) => {
          for (const [one, { site, of, index, union }] of singles.entries()) {
            const its = singleBranch(to, one, site);
            const chosen = filled(union, rank);
            index.kind.set(placedBy(its, index.p.t.name), chosen);
            addChosen(its, of, index.p.t.name, new Map(chosen.map((x, r) => [x, r])));
            putBack(to, one, its);
          }
        },
      };
    }),
  );
  const branches = layers.map(({ states }) => states);
  return {
    config: { ...defaultConfig(manifest, method), targetModules: modulesOf(manifest, branches) },
    branches,
    tensors: layers.map(({ words }) => words),
  };
}
