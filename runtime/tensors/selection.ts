/**
 * Chosen rows or columns of a site's matrix, those of channels that it shares with others: in an adapter
 * their numbers, then each one's place among them plus one (0: not chosen), as exact floats; in files the
 * numbers alone, int32. Those of experts lie side by side.
 */
import { channelAt, placesOf } from "../coupling.ts";
import type { SingleSite } from "../experts.ts";
import type { Manifest } from "../manifest.ts";
import { ordersOf } from "../order.ts";
import { channelsOf, type Index, type IndexInFiles, type Start } from "./tensor.ts";

export type SelectionStart = "selection" | "leading";

/** Write a selection of `channels` where there is room for `capacity`. */
export function writeSelection(words: Float32Array, capacity: number, channels: readonly number[]): void {
  words.fill(0);
  channels.forEach((c, r) => {
    words[r] = c;
    words[capacity + c] = r + 1;
  });
}

/** The first that a bundle's selection keeps, in its order. */
export function leading(m: Manifest, layer: number, site: SingleSite, rank: number): number[] {
  const coupling = site.coupling!;
  const order = ordersOf(m, layer, site)[coupling.axis];
  const first = Array.from({ length: coupling.channels }, (_, c) => c);
  return placesOf(coupling, first)
    .slice(0, rank)
    .map((place) => order?.[place] ?? place);
}
export const set: Index["set"] = ({ values, branch }, channels) =>
  writeSelection(values, branch.capacity, channels);
const starts: Readonly<Record<SelectionStart, Start>> = {
  /** Chosen when a job starts. */
  selection: async (p, how) => (await import("../choose.ts")).startChosen(p, how),
  /** The first of the bundle's own selection. */
  leading: async (p, how) => (await import("../choose.ts")).startLeading(p, how),
};

export const selection: Index = {
  index: true,
  starts,
  check: (t, b, site, m, need) => {
    need(site.coupling, "kind", "a site with channels to choose", site.module);
    const { axis, at, channels } = site.coupling!;
    const { experts = 1 } = site;
    const cols = experts * b.capacity + channelsOf(site, axis);
    need(t.cols === cols, "cols", `${cols}, a number and a place for every channel`, t.cols);
    const most = at.length * channels;
    need(b.capacity <= most, "capacity", `at most ${most}`, b.capacity);
    if (t.init === "leading") need(m.selection !== null, "init", "a bundle with a selection", t.init);
  },
  rows: (rank, { coupling }) => rank * coupling!.at.length,
  get: ({ values, rank }) => Array.from(values.subarray(0, rank)),
  set,
  ascending: false,
  turned: ({ site }, channels, turns) => {
    const turn = turns[site.coupling!.axis];
    return turn ? channels.map((c) => turn[c]!) : [...channels];
  },
  // A selection of the bundle's own has its order, and adapters take its beginning.
  united: (t, lists) =>
    t.init === "leading"
      ? [...lists.reduce((x, y) => (y.length > x.length ? y : x))]
      : [...new Set(lists.flat())].sort((x, y) => x - y),
};
export const selectionInFiles: IndexInFiles = {
  index: true,
  says: "int32 channels",
  shape: (rank) => [rank],
  parse: ({ t, layer, site, rank }, m, file, refuse) => {
    const chosen = [...file];
    const { at, channels } = site.coupling!;
    const wrong = chosen.findIndex(
      (c, r) => channelAt(site.coupling!, c) === null || chosen.indexOf(c) !== r,
    );
    if (wrong >= 0) {
      const slices = at.map((from) => `${from} to ${from + channels - 1}`).join(" or ");
      refuse(`distinct channels, ${slices}`, String(chosen[wrong]), { at: `[${wrong}]` });
    }
    if (t.init !== "leading") return chosen;
    // Where the bundle has chosen, its order is the adapter's.
    const own = leading(m, layer, site, rank);
    if (!own.every((c) => chosen.includes(c)))
      refuse(
        `the channels of this bundle's selection, ${own.slice(0, 4).join(", ")} …`,
        chosen.slice(0, 4).join(", "),
        { hint: "compile with the method s2ft to read any selection" },
      );
    return own;
  },
  inFile: (_, file) => [...file],
  print: (_, channels) => Int32Array.from(channels),
};
