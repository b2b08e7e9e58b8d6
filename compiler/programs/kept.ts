/**
 * What a class of jobs keeps of its forward, which is what its pruned backward reads, and no more than cannot
 * be computed again.
 */
import { type Node, opOf, toposort, type Value, valueKey } from "../../ops/index.ts";
import type { SavedBytes, SavedField, TrainClass } from "./program.ts";
import type { Region, Rows } from "./region.ts";

export interface Kept {
  /**
   * What bounds a unit whatever it keeps: the layer's input, and attention's output and log-sum-exp, which is
   * never rerun.
   */
  readonly boundary: readonly Value[];
  /** The boundary, then what mode `all` keeps too. */
  readonly all: readonly Value[];
  readonly fields: readonly SavedField[];
  readonly bytes: SavedBytes;
}

/**
 * Values of the forward that the backward reads, fewest first kept: what is pointwise in kept values, those
 * of the boundary (`edges`) among them, is recomputed, never stored.
 */
function keptSet(
  forward: ReadonlySet<Node>,
  roots: readonly Value[],
  edges: ReadonlySet<string>,
): { read: Value[]; kept: Value[] } {
  const read = new Map<string, Value>();
  const order = toposort(roots);
  for (const node of order)
    if (!forward.has(node))
      for (const v of node.ins) if (forward.has(v.node) && v.type.kind === "rows") read.set(valueKey(v), v);
  const keep = new Set([...read.keys(), ...edges]);
  const recomputable = (v: Value): boolean => {
    if (keep.has(valueKey(v))) return true;
    const op = opOf(v.node.op);
    if (op.kind === "input") return v.type.kind !== "rows";
    return op.kind === "point" && !op.remote && v.node.ins.every(recomputable);
  };
  for (const node of [...order].reverse())
    for (const [key, v] of read)
      if (v.node === node && opOf(node.op).kind !== "input" && !edges.has(key)) {
        keep.delete(key);
        if (recomputable(v)) continue;
        if (!opOf(node.op).drops) {
          keep.add(key);
          continue;
        }
        // Steps without dropout never make it: what it drops from is kept, unless that is recomputed in turn.
        const [from] = node.ins as [Value];
        read.set(valueKey(from), from);
        keep.add(valueKey(from));
      }
  return { read: [...read.values()], kept: [...read].filter(([key]) => keep.has(key)).map(([, v]) => v) };
}

/** What the nodes of a layer that are never run again give. */
export const edgesOf = (unit: Region): Value[] =>
  toposort([unit.out])
    .filter((node) => opOf(node.op).edge)
    .flatMap((node) => node.outs.map((type, index) => ({ node, index, type })));

/** The name of a kept value, before its class's. */
export const fieldName = (unit: Region, v: Value): string =>
  `${v === unit.h ? "h_in" : v.node.label}${v.index ? `_${v.index}` : ""}`;

/**
 * The kept sets of `unit`, a layer of a kind over a unit's rows whose backward is `roots`. Layers of all
 * kinds have one boundary.
 */
export function keptOf(cls: TrainClass, kind: number, unit: Region, roots: readonly Value[]): Kept {
  const order = toposort([unit.out]);
  const boundary = [unit.h, ...edgesOf(unit)];
  const edges = new Set(boundary.map(valueKey));
  const sets = keptSet(new Set(order), roots, edges);
  const inside = (v: Value): boolean => !edges.has(valueKey(v));
  const all = [...boundary, ...sets.kept.filter(inside)];
  const fields = all.map((v): SavedField => {
    const edge = edges.has(valueKey(v));
    const label = fieldName(unit, v);
    const name = edge
      ? `${cls === "full" ? "full" : "adapter"}.${label}`
      : `${cls}.${kind ? `${kind}.` : ""}${label}_${order.indexOf(v.node)}`;
    return { name, cols: (v.type as Rows).cols, index: edge ? "save_row" : "ext_row" };
  });
  const bytes = (vs: readonly Value[]): number => vs.reduce((n, v) => n + 4 * (v.type as Rows).cols, 0);
  const everything = order
    .filter((n) => n.op !== "input")
    .flatMap((node) =>
      node.outs.flatMap((type, index) => (type.kind === "rows" ? [{ node, index, type }] : [])),
    );
  return {
    boundary,
    all,
    fields,
    bytes: {
      naive: bytes(everything),
      read: bytes([...boundary, ...sets.read.filter(inside)]),
      all: bytes(all),
      boundary: bytes(boundary),
    },
  };
}
