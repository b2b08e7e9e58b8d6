/**
 * What one entry of a command list runs: a graph over rows of one kind, once a layer or once in the outer
 * region.
 */
import type { Value } from "../../ops/index.ts";
import { TRAIN_BIT } from "../../runtime/bundle.ts";
import type { BranchSpec, ParamSpec, SiteSpec } from "../layers.ts";
import type { BlockKind } from "../metadata.ts";

/** What a bundle can train: an adapter method by name, or `full` for every base tensor (exclusive). */
export type TrainClass = string;
/**
 * Classes of jobs that only look, and update nothing: statistics of activations; with the loss and its
 * backward, of gradients.
 */
export const CALIBRATE = "calibrate";
export const CALIBRATE_GRADIENT = "calibrate_gradient";
export type RegionName = "layer" | "outer";

export interface GraphProgram {
  readonly name: string;
  readonly region: RegionName;
  /** Of a layer: the kinds of layers that it is for, where not for all. Programs of one name are one. */
  readonly kinds?: readonly number[];
  readonly block: BlockKind;
  readonly roots: readonly Value[];
  /** Values with a fixed home: `h`, `logits`; of a unit, what its class keeps, by field. */
  readonly homes: readonly { readonly value: Value; readonly name: string }[];
}
/** The mask bit without which a program writes no field; null: it writes them always. */
export const savesOf = ({ block, region }: Pick<GraphProgram, "block" | "region">): number | null =>
  block === "step" && region === "layer" ? TRAIN_BIT : null;
export interface SavedField {
  readonly name: string;
  readonly cols: number;
  /**
   * `save_row`: kept in both modes, one field for all adapter methods; `ext_row`: kept only in mode `all`, a
   * field of the class's own.
   */
  readonly index: "save_row" | "ext_row";
  /** The kinds of layers that keep it, where not all do. */
  readonly kinds?: readonly number[];
}
export interface SavedBytes {
  /** Every value of the forward. */
  readonly naive: number;
  /** What the pruned backward reads, when nothing is recomputed. */
  readonly read: number;
  readonly all: number;
  readonly boundary: number;
}
/**
 * Of the channels of a coupled group, sums over the rows of a calibration: x², or the squared norm of a row's
 * gradient.
 */
export interface Statistic {
  readonly name: string;
  readonly group: string;
  readonly channels: number;
  readonly module: string;
  /** Whose channels lie side by side. */
  readonly experts: number | null;
  /** The kinds of layers that have such channels, where not all do. */
  readonly kinds?: readonly number[];
}
export interface Programs {
  readonly layerParams: readonly ParamSpec[];
  readonly outerParams: readonly ParamSpec[];
  readonly sites: readonly SiteSpec[];
  readonly branches: readonly BranchSpec[];
  readonly statistics: readonly Statistic[];
  readonly graphs: readonly GraphProgram[];
  /** Saved fields of a layer per class, and bytes a token a layer: of layers of several kinds, the mean. */
  readonly saved: Readonly<Partial<Record<TrainClass, { fields: readonly SavedField[]; bytes: SavedBytes }>>>;
}
