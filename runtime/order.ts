/**
 * The order in which a device keeps channels. A bundle compiled with a selection (S2FT, class `permuted`)
 * puts the channels that it trains first, so that they are one dense slice of every matrix that shares them;
 * everything on the host (files, adapters, selections) stays in the model's own order. Rows of gate and up
 * and columns of down move together, and so do the heads that share keys: rows of q, k and v, columns of o.
 */
import type { BranchEntry, BranchTensor, ChannelAxis, Manifest, ParamEntry, SiteEntry } from "./bundle.ts";
import {
  type BranchState,
  placeOf,
  readEntries,
  readSelection,
  rowsInUse,
  siteOf,
  writeEntries,
  writeSelection,
} from "./content.ts";

/** Original channel at each position of an axis in a layer; null where the order is the model's own. */
export function channelOrder(m: Manifest, layer: number, axis: ChannelAxis | null): readonly number[] | null {
  if (!axis || !m.selection) return null;
  const { heads, kvHeads, headDim } = m.model;
  const first = m.selection.layers[layer]![axis === "ffn" ? "ffn" : "groups"];
  if (!first.length) return null;
  const block = axis === "ffn" ? 1 : axis === "heads" ? (heads / kvHeads) * headDim : headDim;
  const chosen = new Set(first);
  const units = [...first];
  const all = axis === "ffn" ? m.model.ffn : kvHeads;
  for (let u = 0; u < all; u++) if (!chosen.has(u)) units.push(u);
  return block === 1 ? units : units.flatMap((u) => Array.from({ length: block }, (_, i) => u * block + i));
}
const inverse = (order: readonly number[]): number[] => {
  const out = Array<number>(order.length);
  order.forEach((c, i) => {
    out[c] = i;
  });
  return out;
};

/**
 * A site's matrix [out, in], or its bias [out], from the model's order into the device's, or back; in place.
 */
export function reorder(
  m: Manifest,
  layer: number,
  site: SiteEntry | undefined,
  values: Float32Array,
  back = false,
): void {
  const rows = channelOrder(m, layer, site?.axes.out ?? null);
  const columns = channelOrder(m, layer, site?.axes.in ?? null);
  if (!site || (!rows && !columns)) return;
  const from = values.slice();
  const width = values.length / site.outFeatures;
  const [r, c] = [
    rows && back ? inverse(rows) : rows,
    columns && width > 1 ? (back ? inverse(columns) : columns) : null,
  ];
  for (let o = 0; o < site.outFeatures; o++)
    for (let i = 0; i < width; i++) values[o * width + i] = from[(r ? r[o]! : o) * width + (c ? c[i]! : i)]!;
}
/** The site of a layer's parameter, by the parameter's name. */
export const siteOfParam = (m: Manifest, name: string): SiteEntry | undefined =>
  m.sites.find((s) => name === `${s.module}.weight` || name === `${s.module}.bias`);

/** One layer of an adapter, as its slot's words: from the model's order into the device's, or back. */
export function reorderSlot(
  m: Manifest,
  factors: readonly ParamEntry[],
  layer: number,
  branches: readonly BranchState[],
  data: Float32Array,
  back = false,
): Float32Array {
  if (!m.selection) return data;
  const out = data.slice();
  branches.forEach((state, i) => {
    if (!state.rank) return;
    const b = m.branches[i]!;
    for (const t of b.tensors) reorderTensor(m, factors, layer, b, t, state, data, out, back);
  });
  return out;
}
function reorderTensor(
  m: Manifest,
  factors: readonly ParamEntry[],
  layer: number,
  b: BranchEntry,
  t: BranchTensor,
  state: BranchState,
  from: Float32Array,
  to: Float32Array,
  back: boolean,
): void {
  const site = siteOf(m, b);
  const at = placeOf(factors, b.index, t.name);
  const turn = (axis: "in" | "out"): readonly number[] | null => {
    const order = channelOrder(m, layer, site.axes[axis]);
    // A channel's number moves to its position, or back.
    return order && (back ? order : inverse(order));
  };
  if (t.shape === "selection") {
    const number = turn(site.coupling!.axis);
    if (number)
      writeSelection(
        to,
        at,
        b.capacity,
        readSelection(from, at, state.rank).map((c) => number[c]!),
      );
  } else if (t.shape === "places") {
    const [rows, columns] = [turn("out"), turn("in")];
    if (!rows && !columns) return;
    const { inFeatures: ins, outFeatures: outs } = site;
    const moved = readEntries(from, at, b.capacity, ins, state.rank).map((e) => {
      const [o, c] = [Math.floor(e / ins), e % ins];
      return (rows ? rows[o]! : o) * ins + (columns ? columns[c]! : c);
    });
    const order = [...moved.keys()].sort((x, y) => moved[x]! - moved[y]!);
    writeEntries(
      to,
      at,
      b.capacity,
      outs,
      ins,
      order.map((k) => moved[k]!),
    );
    const values = placeOf(factors, b.index, "values").offset;
    order.forEach((k, e) => {
      to[values + e] = from[values + k]!;
    });
  } else if (t.axis) {
    const order = channelOrder(m, layer, site.axes[t.axis]);
    if (!order) return;
    const source = back ? inverse(order) : order;
    for (let r = 0; r < rowsInUse(t, state); r++)
      for (let c = 0; c < t.cols; c++)
        to[at.offset + r * t.cols + c] = from[at.offset + r * t.cols + source[c]!]!;
  }
}
