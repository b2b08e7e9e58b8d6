/** What a model family gives the compiler: its checked config, and its regions as functions on values. */
import type { Domain, Value } from "../../ops/index.ts";
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
  /** What norms add to a mean square: part of what a base is known by. */
  readonly eps: number;
  /** Inverse frequencies [headDim / 2] in f64, after any scaling. */
  readonly inverseFrequencies: readonly number[];
  /** The rows' token ids → hidden states [rows, hidden], what enters the first layer. */
  readonly embed: (b: RegionBuilder, domain: Domain) => Value;
  /** One layer: hidden states in, hidden states out. `positions` of the rotary table. */
  readonly layer: (b: RegionBuilder, h: Value, positions: number) => Value;
  /** What leaves the last layer → logits [rows, vocab]. */
  readonly head: (b: RegionBuilder, h: Value) => Value;
  /** Checkpoint name of a parameter: of layer `l`, or of the outer region where `l` is null. */
  readonly checkpointName: (name: string, l: number | null) => string;
}
/** Family by `model_type`: config.json → model. Throws WEFT_CONFIG naming the key that it cannot take. */
export type Family = (config: Readonly<Record<string, unknown>>) => Model;
