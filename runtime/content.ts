/**
 * What an adapter is on the host: its configuration, which branches it has in each layer, and its tensors in
 * slot layout.
 */
import type { BranchEntry, BranchTensor, Manifest, ParamEntry, SiteEntry } from "./bundle.ts";
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
export interface AdapterContent {
  readonly config: AdapterConfig;
  /** [layer][branch of the bundle]. */
  readonly branches: readonly (readonly BranchState[])[];
  /** [layer]: one slot's words. */
  readonly tensors: readonly Float32Array[];
  /**
   * Base tensors that the adapter replaces as a whole (PEFT's `modules_to_save`), by checkpoint name: it is
   * served merged, on a base of its own.
   */
  readonly replaces?: ReadonlyMap<string, Float32Array>;
}
/** Tokens of its own that an adapter puts before every sequence. */
export const virtualTokens = (manifest: Manifest, content: AdapterContent | null): number =>
  content && manifest.methods[content.config.method]!.virtual
    ? Math.max(...content.branches.flat().map((s) => s.rank))
    : 0;
export const absent: BranchState = { rank: 0, alpha: 0, scale: 0 };

/** A site's module as checkpoints name it. */
export const modulePath = (manifest: Manifest, layer: number, site: SiteEntry): string =>
  manifest.checkpoint.modules.replace("{l}", String(layer)) + site.module;
export const siteOf = (manifest: Manifest, b: BranchEntry): SiteEntry => manifest.sites[b.site]!;
/** Where a branch's tensor lies in a slot. */
export const placeOf = (tensors: readonly ParamEntry[], branch: number, name: string): ParamEntry =>
  tensors.find((f) => f.branch === branch && f.name.endsWith(`.${name}`))!;
/** The tensors of a branch in one layer's slot. */
export const placedIn = (
  manifest: Manifest,
  places: readonly ParamEntry[],
  slot: Float32Array,
  layer: number,
  index: number,
  rank: number,
): Placed[] => {
  const branch = manifest.branches[index]!;
  const site = siteOf(manifest, branch);
  return branch.tensors.map((t) => ({
    t,
    at: placeOf(places, index, t.name),
    slot,
    layer,
    branch,
    site,
    rank,
  }));
};
/** The tensor that says what the rows of a branch's others are of, where there is one. */
export const indexTensor = (b: BranchEntry): BranchTensor | undefined =>
  b.tensors.find(({ kind }) => (tensorKinds[kind] as TensorKind).index);
/** That tensor among those of a branch in a slot. */
export function indexOf(placed: readonly Placed[]): { readonly p: Placed; readonly kind: Index } | null {
  for (const p of placed) {
    const kind: TensorKind = tensorKinds[p.t.kind];
    if (kind.index) return { p, kind };
  }
  return null;
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
