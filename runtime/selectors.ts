/** What channels and entries that an adapter trains are chosen by, and what of the model it begins on. */
import type { SiteEntry } from "./manifest.ts";

/**
 * How S2FT chooses channels (paper §3.2): at random, or by a score of each unit, the largest or the smallest.
 * ‖W‖₂ of its rows and columns, ‖A‖₂ of its activations over the first thousand tokens of the data (or more,
 * by whole rows), their product, or the norm of the loss's gradient: √Σ ‖gradient of a token's part‖². Single
 * entries of sparse adapters are chosen by their weight, or by what a full fine-tuning made of them
 * (`difference`).
 */
export const selectors = [
  "random",
  "weight-large",
  "weight-small",
  "activation-large",
  "activation-small",
  "product-large",
  "product-small",
  "gradient-large",
  "gradient-small",
  "difference",
] as const;
export type Selector = (typeof selectors)[number];
/** What a fresh adapter takes from the model it begins on. */
export interface ModelView {
  /**
   * Σ of squares behind a score, of each channel of a site in a layer: of its weights, activations or
   * gradients; `row`: of each row of its matrix. Where the site is that of an expert, `one` is its number.
   */
  readonly scores: (
    what: "weight" | "activation" | "gradient" | "row",
    layer: number,
    site: SiteEntry,
    one: number,
  ) => Promise<Float64Array>;
  /** Channels of a site's coupled group that other adapters have, and this one may not. */
  readonly taken: (layer: number, site: SiteEntry, one: number) => ReadonlySet<number>;
  /** A site's matrix [out, in]. */
  readonly matrix: (layer: number, site: SiteEntry) => Promise<Float32Array>;
  /** A site's bias [out]. */
  readonly bias: (layer: number, site: SiteEntry) => Promise<Float32Array>;
  /** The matrix of a model that was fine-tuned in full from this one; null where none was given. */
  readonly tuned: ((layer: number, site: SiteEntry) => Promise<Float32Array>) | null;
  /** A token's embedding [hidden]. */
  readonly embedding: (id: number) => Promise<Float32Array>;
}
