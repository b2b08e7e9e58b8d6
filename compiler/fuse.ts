/**
 * Nodes → kernels: nodes are grouped, groups become bodies, independent bodies of one kernel share a launch.
 * Fusion changes launches and bytes, never bits: an epilogue evaluates the same expression a kernel of its
 * own would.
 */
import { type Value, valueKey } from "../ops/index.ts";
import { bodiesOf } from "./fuse/bodies.ts";
import { groupNodes } from "./fuse/groups.ts";
import { mergeLaunches } from "./fuse/launches.ts";
import type { Launch } from "./kernels/body.ts";

/** Group the nodes that `roots` need into launches. `fuse: false` gives every node a kernel of its own. */
export function fuse(
  roots: readonly Value[],
  options: { fuse: boolean; homes?: readonly { readonly value: Value; readonly name: string }[] },
): Launch[] {
  const homes = new Map((options.homes ?? []).map((h) => [valueKey(h.value), h.name]));
  return mergeLaunches(bodiesOf(groupNodes(roots, options.fuse)), options.fuse, homes);
}
