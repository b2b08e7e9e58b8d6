/**
 * Chosen channels of a site's coupled axis: in an adapter the channels, then each channel's place among them
 * plus one (0: not chosen), as exact floats; in files the channels alone, int32.
 */
import { channelOrder } from "../order.ts";
import { mix } from "../random.ts";
import { channelsOf, type Index, type Start } from "./tensor.ts";

export type SelectionStart = "selection" | "leading";

/** Write a selection of `channels` where there is room for `capacity`. */
export function writeSelection(words: Float32Array, capacity: number, channels: readonly number[]): void {
  words.fill(0);
  channels.forEach((c, r) => {
    words[r] = c;
    words[capacity + c] = r + 1;
  });
}

const set: Index["set"] = ({ values, branch }, channels) => writeSelection(values, branch.capacity, channels);
const starts: Readonly<Record<SelectionStart, Start>> = {
  /** Chosen when a job starts. */
  selection: async (p, { selector, seed, view }) => {
    const { chooseChannels } = await import("../choose.ts");
    set(p, await chooseChannels(p.site, p.layer, p.rank, selector, mix(seed, 7), await view()));
  },
  /** The first of the bundle's own selection. */
  leading: (p, { manifest }) =>
    set(p, channelOrder(manifest, p.layer, p.site.axes[p.site.coupling!.axis])!.slice(0, p.rank)),
};

export const selection: Index = {
  index: true,
  starts,
  check: (t, b, site, m, need) => {
    need(site.coupling && site.kind === "linear", "kind", "a site with channels to choose", site.module);
    const channels = channelsOf(site, site.coupling!.axis);
    const cols = b.capacity + channels;
    need(t.cols === cols, "cols", `${cols}, a number and a place for every channel`, t.cols);
    need(b.capacity <= channels, "capacity", `at most ${channels}`, b.capacity);
    if (t.init === "leading") need(m.selection !== null, "init", "a bundle with a selection", t.init);
  },
  rows: (rank) => rank,
  get: ({ values, rank }) => Array.from(values.subarray(0, rank)),
  set,
  ascending: false,
  says: "int32 channels",
  shape: (rank) => [rank],
  parse: ({ t, layer, site, rank }, m, file, refuse) => {
    const channels = [...file];
    const limit = channelsOf(site, site.coupling!.axis);
    const wrong = channels.findIndex((c, r) => c < 0 || c >= limit || channels.indexOf(c) !== r);
    if (wrong >= 0) refuse(`distinct channels below ${limit}`, String(channels[wrong]), { at: `[${wrong}]` });
    if (t.init !== "leading") return channels;
    // Where the bundle has chosen, its order is the adapter's.
    const own = channelOrder(m, layer, site.axes[site.coupling!.axis])!.slice(0, rank);
    if (!own.every((c) => channels.includes(c)))
      refuse(
        `the channels of this bundle's selection, ${own.slice(0, 4).join(", ")} …`,
        channels.slice(0, 4).join(", "),
        { hint: "compile with the method s2ft to read any selection" },
      );
    return own;
  },
  inFile: (_, file) => [...file],
  print: (_, channels) => Int32Array.from(channels),
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
