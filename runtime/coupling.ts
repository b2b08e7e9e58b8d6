/**
 * Channels that matrices share (S2FT §3.1), at one of them: a channel is a row or a column of it, or one of
 * each of its slices.
 */
import type { SiteEntry } from "./manifest.ts";

type Coupling = NonNullable<SiteEntry["coupling"]>;

/** Rows or columns that are `channels`: those of one channel side by side. */
export const placesOf = ({ at }: Coupling, channels: readonly number[]): number[] =>
  channels.flatMap((c) => at.map((from) => from + c));
/** The channel that a row or column is of; null: of none. */
export function channelAt({ at, channels }: Coupling, place: number): number | null {
  const from = at.find((x) => place >= x && place < x + channels);
  return from === undefined ? null : place - from;
}
