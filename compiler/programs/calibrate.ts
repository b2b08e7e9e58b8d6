/**
 * Jobs that only look: sums over a data set of what each channel carries, which selectors of channels rank.
 */
import {
  colSum,
  gatherRows,
  headDot,
  mul,
  opOf,
  rowSum,
  squaresOfExperts,
  storeRows,
  type Value,
  valueKey,
} from "../../ops/index.ts";
import { classPrograms } from "../../runtime/bundle.ts";
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
      channels: (s.experts ?? 1) * s.inFeatures,
      module: s.module,
      experts: s.experts ?? null,
      ...(s.kinds && { kinds: s.kinds }),
    }));

const colsOf = (v: Value): number => (v.type as Rows).cols;
/** Sums of squares of activations, and of gradients, over a unit's rows of a layer without branches. */
export function calibration(unit: Region, statistics: readonly Statistic[], field: Fields): GraphProgram[] {
  const { h, out, entries, exits } = unit;
  const { graph } = h.node;
  const square = (v: Value): Value => mul(v, v);
  /** Over rows of x², times what `weight` says of what leaves: of each row, or of each that it chose. */
  const over = (weight: ((module: string, width: number | null) => Value) | null): Value[] =>
    statistics.map(({ name, channels, module, experts }) => {
      const x = entries.get(module)!;
      const sums = graph.input("layer", name, { kind: "vector", n: channels });
      if (experts === null) return colSum(weight ? mul(square(x), weight(module, null)) : square(x), sums);
      const chosen = unit.choices.get(module)!;
      const width = colsOf(exits.get(module)!) / colsOf(chosen);
      return squaresOfExperts(x, chosen, sums, experts, weight?.(module, width));
    });
  const activations = over(null);
  // ‖∂ loss of a token / ∂ column c of W‖² is x[c]² · ‖∂ loss / ∂ W·x‖².
  const dh = field("dh", (h.type as Rows).cols);
  const grads = vjp(
    [[out, gatherRows(dh, "save_row", "W")]],
    [h, ...statistics.map((s) => exits.get(s.module)!)],
  );
  const gradients = over((module, width) => {
    const leaving = grads.get(valueKey(exits.get(module)!))!;
    return width === null ? rowSum(square(leaving)) : headDot(leaving, leaving, width);
  });
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
    name: classPrograms.backward(cls),
    region: "layer",
    block: "unit",
    roots: substitute(roots, replace),
    homes: [],
  });
  return [program(CALIBRATE, activations), program(CALIBRATE_GRADIENT, [...gradients, back])];
}
