/**
 * Chosen entries of a site's matrix [outs, ins], by number in row-major order, ascending. In a slot, as exact
 * floats: their rows, their columns, where each row begins, their order by columns, where each column begins
 * (`sparseIndex` of the compiler's ops/sparse.ts); in files rows and columns, int32 [2, entries].
 */
import type { SiteEntry } from "../manifest.ts";
import { mix } from "../random.ts";
import type { Index, IndexInFiles, Start } from "./tensor.ts";

export type EntriesStart = "entries";

/** Write `entries` where there is room for `capacity`. */
export function writeEntries(
  index: Float32Array,
  capacity: number,
  outs: number,
  ins: number,
  entries: readonly number[],
): void {
  index.fill(0);
  const starts = (from: number, n: number, of: (e: number) => number): void => {
    for (const e of entries) index[from + of(e) + 1] = index[from + of(e) + 1]! + 1;
    for (let i = 0; i < n; i++) index[from + i + 1] = index[from + i + 1]! + index[from + i]!;
  };
  const [rowStart, byColumn] = [2 * capacity, 2 * capacity + outs + 1];
  entries.forEach((e, k) => {
    index[k] = Math.floor(e / ins);
    index[capacity + k] = e % ins;
  });
  starts(rowStart, outs, (e) => Math.floor(e / ins));
  [...entries.keys()]
    .sort((a, b) => (entries[a]! % ins) - (entries[b]! % ins) || a - b)
    .forEach((k, i) => {
      index[byColumn + i] = k;
    });
  starts(byColumn + capacity, ins, (e) => e % ins);
}
const ascending = (entries: readonly number[]): number[] => [...entries].sort((x, y) => x - y);
const sizeOf = (site: SiteEntry): number => site.inFeatures * site.outFeatures;
const set: Index["set"] = ({ values, branch, site }, chosen) =>
  writeEntries(values, branch.capacity, site.outFeatures, site.inFeatures, chosen);
const inFile: IndexInFiles["inFile"] = ({ site }, file) => {
  const n = file.length / 2;
  return Array.from({ length: n }, (_, e) => file[e]! * site.inFeatures + file[n + e]!);
};
const starts: Readonly<Record<EntriesStart, Start>> = {
  entries: async (p, { selector, seed, view }) => {
    const { chooseEntries } = await import("../choose.ts");
    set(p, await chooseEntries(p.site, p.layer, p.rank, selector, mix(seed, 9), await view()));
  },
};

export const entries: Index = {
  index: true,
  starts,
  check: (t, b, site, _, need) => {
    need(site.kind === "linear", "init", "a start that this site has", t.init);
    const cols = 3 * b.capacity + site.inFeatures + site.outFeatures + 2;
    need(t.cols === cols, "cols", `${cols}, rows, columns and their starts`, t.cols);
    need(b.capacity <= sizeOf(site), "capacity", `at most ${sizeOf(site)}`, b.capacity);
  },
  // As many as LoRA of that rank has numbers.
  rows: (rank, site) => Math.min(rank * (site.inFeatures + site.outFeatures), sizeOf(site)),
  get: ({ values, branch, site, rank }) =>
    Array.from(values.subarray(0, rank), (row, k) => row * site.inFeatures + values[branch.capacity + k]!),
  set,
  ascending: true,
  turned: ({ site: { inFeatures: ins } }, chosen, { in: columns, out: rows }) =>
    chosen.map((e) => {
      const [o, c] = [Math.floor(e / ins), e % ins];
      return (rows ? rows[o]! : o) * ins + (columns ? columns[c]! : c);
    }),
  united: (_, lists) => ascending([...new Set(lists.flat())]),
};
export const entriesInFiles: IndexInFiles = {
  index: true,
  says: "int32 rows and columns",
  shape: (rank) => [2, rank],
  parse: (p, _, file, refuse) => {
    const { outFeatures: outs, inFeatures: ins } = p.site;
    const n = file.length / 2;
    const wrong = Array.from({ length: n }, (_, e) => e).find(
      (e) => file[e]! < 0 || file[e]! >= outs || file[n + e]! < 0 || file[n + e]! >= ins,
    );
    const all = inFile(p, file);
    if (wrong !== undefined || new Set(all).size < n)
      refuse(
        `distinct places in a matrix ${outs} × ${ins}`,
        wrong !== undefined ? `(${file[wrong]}, ${file[n + wrong]})` : "a place twice",
      );
    return ascending(all);
  },
  inFile,
  print: ({ site: { inFeatures: ins } }, chosen) =>
    Int32Array.from([...chosen.map((e) => Math.floor(e / ins)), ...chosen.map((e) => e % ins)]),
};
