/** A branch of an adapter as what it does to its site, in numbers. */
import { type Manifest, WeftError } from "./bundle.ts";
import { changes, type TermOf } from "./changes.ts";
import { type AdapterContent, placedIn } from "./content.ts";
import { singleBranch, singleSites } from "./experts.ts";
import type { LowRank } from "./lowrank.ts";
import { tensorKinds } from "./tensors/index.ts";
import type { TensorKind } from "./tensors/tensor.ts";
import { type TermName, terms } from "./terms.ts";

/**
 * A branch of one layer as its terms, in order; of experts' matrices, that of one. Throws WEFT_ADAPTER for a
 * method that has none.
 */
export function termsOf(
  manifest: Manifest,
  { branches, tensors }: AdapterContent,
  layer: number,
  branch: number,
  expert: number | null = null,
): { term: (typeof changes)[TermName]; c: TermOf }[] {
  const { method } = manifest.branches[branch]!;
  const { change } = manifest.methods[method]!;
  if (!change)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: `method ${method}`,
      expected: "a method that is a change of weights",
      found: "one that is not: it cannot merge",
    });
  const { rank, scale } = branches[layer]![branch]!;
  const all = placedIn(manifest, branches[layer]!, tensors[layer]!, layer, branch);
  const { site } = all[0]!;
  const placed = expert === null ? all : singleBranch(all, expert, singleSites(site)[expert]!);
  return change.map(({ term, of }) => {
    const find = (role: string) => placed.find((p) => p.t.name === of[role]);
    return {
      term: changes[term],
      c: {
        site: placed[0]!.site,
        rank,
        scale,
        tensor: (role) => find(role)?.values.slice() ?? null,
        axis: (role) => find(role)?.t.axis ?? null,
        chosen: (role) => {
          const p = find(role)!;
          const kind: TensorKind = tensorKinds[p.t.kind];
          return kind.index ? kind.get(p) : [];
        },
      },
    };
  });
}

/**
 * Is a method nothing but rows that its scale scales? Then an adapter's scale may be told apart from them.
 */
export const isScaledRows = (manifest: Manifest, method: string): boolean =>
  manifest.methods[method]!.change?.every(({ term }) => terms[term].stacks) ?? false;
/** Products of one rank, as one of matrices that lie side by side. */
function besideEachOther(products: readonly LowRank[]): LowRank {
  const { rank } = products[0]!;
  const joined = (of: "a" | "b"): Float32Array => {
    const all = products.map((p) => p[of]);
    const cols = all[0]!.length / rank;
    const out = new Float32Array(rank * cols * all.length);
    for (let r = 0; r < rank; r++)
      for (const [e, rows] of all.entries())
        out.set(rows.subarray(r * cols, (r + 1) * cols), (r * all.length + e) * cols);
    return out;
  };
  return { rank, a: joined("a"), b: joined("b") };
}
/**
 * A branch of one layer as an exact product, with `scale` in place of its own; of experts' matrices, that of
 * one, or of all side by side. Throws WEFT_ADAPTER for methods that are no sum of products.
 */
export function asLowRank(
  manifest: Manifest,
  content: AdapterContent,
  layer: number,
  branch: number,
  scale?: number,
  expert: number | null = null,
): LowRank {
  const { experts } = manifest.sites[manifest.branches[branch]!.site]!;
  if (experts !== undefined && expert === null)
    return besideEachOther(
      Array.from({ length: experts }, (_, e) => asLowRank(manifest, content, layer, branch, scale, e)),
    );
  const parts = termsOf(manifest, content, layer, branch, expert).map(({ term, c: own }): LowRank => {
    const c = scale === undefined ? own : { ...own, scale };
    if (!term.product)
      throw new WeftError({
        code: "WEFT_ADAPTER",
        where: `method ${manifest.branches[branch]!.method}`,
        expected: "a method that adds a low-rank or indexed delta to weights",
        found: `one that ${term.says}`,
      });
    return term.product(c);
  });
  const joined = (of: "a" | "b"): Float32Array => Float32Array.from(parts.flatMap((p) => [...p[of]]));
  return parts.length === 1
    ? parts[0]!
    : { rank: parts.reduce((n, p) => n + p.rank, 0), a: joined("a"), b: joined("b") };
}
