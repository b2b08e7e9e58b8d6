/**
 * What an adapter is on the host: its configuration, which branches it has in each layer, and the rows in use
 * of their tensors, one after another.
 */
import type { BranchEntry, BranchTensor, Manifest, SiteEntry } from "./bundle.ts";
import { singleBranch, singleSites } from "./experts.ts";
import type { Selector } from "./selectors.ts";
import { tensorKinds } from "./tensors/index.ts";
import { type Index, type Placed, rowsOf, type TensorKind } from "./tensors/tensor.ts";

/** One branch in one layer: rows in use and scale; rank 0 where the adapter has nothing. */
export interface BranchState {
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
}
export interface AdapterConfig {
  readonly method: string;
  /** Rows of its tensors (LoRA's rank, S2FT's channels); null: all that the bundle has room for. */
  readonly rank: number | null;
  readonly alpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
  /** As given: module suffixes, a regular expression, or `all-linear`. */
  readonly targetModules: readonly string[] | string;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly selector: Selector;
}
export const defaultConfig = (manifest: Manifest, method: string): AdapterConfig => ({
  method,
  rank: manifest.methods[method]?.rank ?? null,
  alpha: 16,
  rslora: false,
  dropout: 0,
  targetModules: manifest.methods[method]?.targets ?? "all-linear",
  rankPattern: {},
  alphaPattern: {},
  selector: "random",
});
/** What an adapter is, but for the numbers of its tensors. */
export interface AdapterShape {
  readonly config: AdapterConfig;
  /** [layer][branch of the bundle]. */
  readonly branches: readonly (readonly BranchState[])[];
  /**
   * Base tensors that the adapter replaces as a whole (PEFT's `modules_to_save`), by checkpoint name: it is
   * served merged, on a base of its own.
   */
  readonly replaces?: ReadonlyMap<string, Float32Array>;
}
export interface AdapterContent extends AdapterShape {
  /** [layer]: the tensors of the branches that it has, in the bundle's order, each [rows in use, cols]. */
  readonly tensors: readonly Float32Array[];
}
/** Tokens of its own that an adapter puts before every sequence. */
export const virtualTokens = (manifest: Manifest, content: AdapterShape | null): number =>
  content && manifest.methods[content.config.method]!.virtual
    ? Math.max(...content.branches.flat().map((s) => s.rank))
    : 0;
export const absent: BranchState = { rank: 0, alpha: 0, scale: 0 };

/** A site's module as checkpoints name it. */
export const modulePath = (
  { checkpoint }: { readonly checkpoint: Pick<Manifest["checkpoint"], "modules"> },
  layer: number,
  site: SiteEntry,
): string => checkpoint.modules.replace("{l}", String(layer)) + site.module;
export const siteOf = (manifest: Manifest, b: BranchEntry): SiteEntry => manifest.sites[b.site]!;
const wordsOf = ({ tensors }: BranchEntry, { rank }: BranchState): number =>
  rank ? tensors.reduce((n, t) => n + rowsOf({ t, rank }) * t.cols, 0) : 0;
/** Words of one layer's tensors. */
export const wordsIn = ({ branches }: Manifest, states: readonly BranchState[]): number =>
  branches.reduce((n, b, i) => n + wordsOf(b, states[i]!), 0);
/** The tensors of every branch, views of one layer's words; none where the adapter lacks it. */
export function placedOf(
  manifest: Manifest,
  states: readonly BranchState[],
  words: Float32Array,
  layer: number,
): Placed[][] {
  let at = 0;
  return manifest.branches.map((branch, i) => {
    const { rank } = states[i]!;
    if (!rank) return [];
    const site = siteOf(manifest, branch);
    return branch.tensors.map((t) => {
      const values = words.subarray(at, (at += rowsOf({ t, rank }) * t.cols));
      return { t, values, layer, branch, site, rank };
    });
  });
}
/** Those of one branch. */
export const placedIn = (
  manifest: Manifest,
  states: readonly BranchState[],
  words: Float32Array,
  layer: number,
  branch: number,
): Placed[] => placedOf(manifest, states, words, layer)[branch]!;
/** A tensor of a branch by its name. */
export const placedBy = (placed: readonly Placed[], name: string): Placed =>
  placed.find((p) => p.t.name === name)!;
/** The tensor that says what the rows of a branch's others are of, where there is one. */
export const indexTensor = (b: BranchEntry): BranchTensor | undefined =>
  b.tensors.find(({ kind }) => (tensorKinds[kind] as TensorKind).index);
/** That tensor among those of a branch. */
export function indexOf(placed: readonly Placed[]): { readonly p: Placed; readonly kind: Index } | null {
  for (const p of placed) {
    const kind: TensorKind = tensorKinds[p.t.kind];
    if (kind.index) return { p, kind };
  }
  return null;
}
/** What a branch that chooses has chosen, in the adapter's order; of experts', for one of them. */
export function chosenIn(m: Manifest, c: AdapterContent, layer: number, branch: number, one = 0): number[] {
  const placed = placedIn(m, c.branches[layer]!, c.tensors[layer]!, layer, branch);
  const { p, kind } = indexOf(singleBranch(placed, one, singleSites(placed[0]!.site)[one]!))!;
  return kind.get(p);
}
/** Numbers that training moves. */
export const trainableCount = (manifest: Manifest, branches: readonly (readonly BranchState[])[]): number =>
  branches.reduce(
    (n, layer) =>
      n +
      layer.reduce(
        (m, s, i) =>
          m +
          (s.rank
            ? manifest.branches[i]!.tensors.reduce(
                (k, t) => k + (t.trained ? rowsOf({ t, rank: s.rank }) * t.cols : 0),
                0,
              )
            : 0),
        0,
      ),
    0,
  );
