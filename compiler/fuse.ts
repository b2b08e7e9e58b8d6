/**
 * Nodes → kernels: nodes are grouped, groups become bodies, independent bodies of one kernel share a launch.
 * Fusion changes launches and bytes, never bits: an epilogue evaluates the same expression a kernel of its
 * own would.
 */
import { type Value, valueKey } from "../ops/index.ts";
import type { Products } from "../runtime/bundle.ts";
import { madeAnew } from "./fuse/anew.ts";
import { bodiesOf } from "./fuse/bodies.ts";
import { groupNodes } from "./fuse/groups.ts";
import { mergeLaunches } from "./fuse/launches.ts";
import type { Launch } from "./kernels/body.ts";
import { isAlone } from "./layout.ts";
import type { Model } from "./models/model.ts";
import { type GraphProgram, type Programs, savesOf } from "./programs/index.ts";
import type { Settings } from "./settings.ts";

/**
 * Group the nodes that `roots` need into launches. `fuse: false` gives every node a kernel of its own.
 * `alone`: matrices beside which a kernel reads no other weights. `saves`: the mask bit without which no
 * field is written, if there is one. `products`: what those with matrices are made of.
 */
export function fuse(
  roots: readonly Value[],
  options: {
    readonly fuse: boolean;
    readonly homes?: readonly { readonly value: Value; readonly name: string }[];
    readonly alone?: (v: Value) => boolean;
    readonly saves?: number | null;
    readonly products?: Products;
  },
): Launch[] {
  const homes = new Map((options.homes ?? []).map((h) => [valueKey(h.value), h.name]));
  const groups = groupNodes(roots, options.fuse, options.alone ?? (() => false));
  const bodies = bodiesOf(groups);
  const made = options.fuse
    ? madeAnew(bodies, roots, options.saves ?? null, options.products ?? "f32")
    : bodies;
  return mergeLaunches(made, options.fuse, homes);
}
/** The launches of each graph of a model. */
export const launchesOf = (
  model: Model,
  { graphs }: Programs,
  { fuse: on, products }: Pick<Settings, "fuse" | "products">,
): ReadonlyMap<GraphProgram, readonly Launch[]> =>
  new Map(
    graphs.map((g) => {
      const { region, roots, homes } = g;
      const alone = ({ type }: Value): boolean =>
        region === "outer" && type.kind === "weight" && isAlone(model, type);
      return [g, fuse(roots, { fuse: on, homes, alone, saves: savesOf(g), products })];
    }),
  );
