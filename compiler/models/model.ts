/** What a model family gives the compiler: its checked config, and its regions as functions on values. */
import type { Value } from "../../ops/index.ts";
import type { RegionBuilder } from "../layers.ts";

export interface Model {
  readonly family: string;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
  readonly context: number;
  readonly tied: boolean;
  readonly eps: number;
  /** Inverse frequencies [headDim / 2] in f64, after any scaling. */
  readonly inverseFrequencies: readonly number[];
  readonly layer: (b: RegionBuilder, h: Value, positions: number) => Value;
  /** Checkpoint name of a parameter: of layer `l`, or of the outer region where `l` is null. */
  readonly checkpointName: (name: string, l: number | null) => string;
}
