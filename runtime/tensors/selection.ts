/**
 * Chosen rows or columns of a site's matrix, those of channels that it shares with others: in an adapter
 * their numbers, then each one's place among them plus one (0: not chosen), as exact floats. Those of experts
 * lie side by side. What they are in files, and where a bundle has chosen, is selection_files.ts.
 */
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
