/**
 * Jobs that only look: sums over a data set of what each channel carries, which selectors of channels rank.
 */
import { colSum, gatherRows, mul, opOf, rowSum, storeRows, type Value, valueKey } from "../../ops/index.ts";
import { vjp } from "../autodiff.ts";
import type { SiteSpec } from "../layers.ts";
import type { Fields } from "./backward.ts";
import { edgesOf, fieldName } from "./kept.ts";
import { CALIBRATE, CALIBRATE_GRADIENT, type GraphProgram, type Statistic } from "./program.ts";
import { type Region, type Rows, substitute } from "./region.ts";

/** A statistic for each coupled group, at the matrix whose inputs are its channels. */
export const statisticsOf = (sites: readonly SiteSpec[]): Statistic[] =>
  sites
    .filter((s) => s.coupling?.axis === "in")
    .map((s) => ({
      name: `calibrate.${s.coupling!.group}`,
      group: s.coupling!.group,
      channels: s.inFeatures,
      module: s.module,
    }));

/** Sums of squares of activations, and of gradients, over a unit's rows of a layer without branches. */
export function calibration(unit: Region, statistics: readonly Statistic[], field: Fields): GraphProgram[] {
  const { h, out, entries, exits } = unit;
  const { graph } = h.node;
  const square = (v: Value): Value => mul(v, v);
  const over = (each: (x: Value, module: string) => Value): Value[] =>
    statistics.map((s) =>
      colSum(
        each(entries.get(s.module)!, s.module),
        graph.input("layer", s.name, { kind: "vector", n: s.channels }),
      ),
    );
  const activations = over(square);
  // ‖∂ loss of a token / ∂ column c of W‖² is x[c]² · ‖∂ loss / ∂ W·x‖².
  const dh = field("dh", (h.type as Rows).cols);
  const grads = vjp(
    [[out, gatherRows(dh, "save_row", "W")]],
    [h, ...statistics.map((s) => exits.get(s.module)!)],
  );
  const gradients = over((x, module) =>
    mul(square(x), rowSum(square(grads.get(valueKey(exits.get(module)!))!))),
  );
  const back = storeRows(dh, grads.get(valueKey(h))!, "save_row");

  // Rebuilt from what every adapter in training keeps of a layer, which bounds the recomputed part.
  const edges = edgesOf(unit);
  const replace = new Map<string, Value>();
  // The cache is as the forward left it.
  for (const { node } of edges)
    for (const state of node.ins)
      if (opOf(state.node.op).kind === "effect") replace.set(valueKey(state), state.node.ins[0]!);
  for (const v of [h, ...edges])
    replace.set(
      valueKey(v),
      gatherRows(field(`adapter.${fieldName(unit, v)}`, (v.type as Rows).cols), "save_row", "W"),
    );
  const program = (cls: string, roots: readonly Value[]): GraphProgram => ({
    name: `backward.${cls}.boundary`,
    region: "layer",
    block: "unit",
    roots: substitute(roots, replace),
    homes: [],
  });
  return [program(CALIBRATE, activations), program(CALIBRATE_GRADIENT, [...gradients, back])];
}
