/** How long the axes are whose channels matrices share. */
import type { ChannelAxis, Manifest } from "./manifest.ts";

/** Axes that are others, one after another. */
export const fused: Readonly<Partial<Record<ChannelAxis, readonly ChannelAxis[]>>> = {
  qkv: ["heads", "kvHeads", "kvHeads"],
  gateUp: ["ffn", "ffn"],
};
/** Channels of an axis. */
export function axisLength(m: Pick<Manifest, "model">, axis: ChannelAxis): number {
  const { ffn, heads, kvHeads, headDim } = m.model;
  const own: Readonly<Partial<Record<ChannelAxis, number>>> = {
    ffn,
    heads: heads * headDim,
    kvHeads: kvHeads * headDim,
  };
  return own[axis] ?? fused[axis]!.reduce((n, part) => n + axisLength(m, part), 0);
}
