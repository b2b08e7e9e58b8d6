/**
 * The order in which a device keeps channels. A bundle compiled with a selection (S2FT, class `permuted`)
 * puts the channels that it trains first, so that they are one dense slice of every matrix that shares them;
 * everything on the host (files, adapters, selections) stays in the model's own order. Rows of gate and up
 * and columns of down move together, of each expert as its own say; and so do the heads that share keys: rows
 * of q, k and v, columns of o.
 */
import { axisLength, fused } from "./axes.ts";
import type { SingleSite } from "./experts.ts";
import type { ChannelAxis, Manifest } from "./manifest.ts";

function joined(m: Manifest, layer: number, parts: readonly ChannelAxis[]): readonly number[] | null {
  const orders = parts.map((part) => channelOrder(m, layer, part));
  if (orders.every((o) => o === null)) return null;
  let start = 0;
  return parts.flatMap((part, i) => {
    const n = axisLength(m, part);
    const from = start;
    start += n;
    return (orders[i] ?? Array.from({ length: n }, (_, c) => c)).map((c) => from + c);
  });
}

/** Original channel at each position of an axis in a layer; null where the order is the model's own. */
export function channelOrder(m: Manifest, layer: number, axis: ChannelAxis | null): readonly number[] | null {
  if (!axis || !m.selection) return null;
  const parts = fused[axis];
  if (parts) return joined(m, layer, parts);
  const { heads, kvHeads, headDim } = m.model;
  const first = m.selection.layers[layer]![axis === "ffn" ? "ffn" : "groups"];
  if (!first.length) return null;
  const block = axis === "ffn" ? 1 : axis === "heads" ? (heads / kvHeads) * headDim : headDim;
  const units = ordered(first, axis === "ffn" ? m.model.ffn : kvHeads);
  return block === 1 ? units : units.flatMap((u) => Array.from({ length: block }, (_, i) => u * block + i));
}
/** All numbers below `all`: these, then the others. */
function ordered(first: readonly number[], all: number): number[] {
  const chosen = new Set(first);
  return [...first, ...Array.from({ length: all }, (_, u) => u).filter((u) => !chosen.has(u))];
}
/** The orders of a matrix's rows and columns in a layer. */
export function ordersOf(m: Manifest, layer: number, { axes, coupling, one }: SingleSite) {
  const own = one !== undefined && m.selection?.layers[layer]?.experts?.[one];
  const of = (axis: "in" | "out"): readonly number[] | null =>
    own && coupling?.axis === axis ? ordered(own, coupling.channels) : channelOrder(m, layer, axes[axis]);
  return { in: of("in"), out: of("out") };
}
export const inverse = (order: readonly number[]): number[] => {
  const out = Array<number>(order.length);
  order.forEach((c, i) => {
    out[c] = i;
  });
  return out;
};
