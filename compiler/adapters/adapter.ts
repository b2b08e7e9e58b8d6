/** An adapter method says what it computes and how its tensors are called in files; batching, gradients and slots follow from the graph. */
import type { Value } from "../../ops/index.ts";
import type { SiteSpec } from "../layers.ts";

export interface AdapterMethod {
  readonly name: string;
  /** The site's new output, from its input x and output so far y. `factor` names a slot-indexed trainable [rank, cols]. */
  readonly apply: (c: { x: Value; y: Value; site: SiteSpec; rank: number; factor: (side: "a" | "b", cols: number) => Value }) => Value;
}
