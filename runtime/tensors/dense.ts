/** Numbers in rows, as many as the rank or one, with a tensor of their own in files. */
import type { BranchTensor } from "../manifest.ts";
import { mix } from "../random.ts";
import {
  channelsOf,
  type Numbers,
  type NumbersInFiles,
  type Order,
  type Placed,
  rowsOf,
  type Start,
} from "./tensor.ts";

export type DenseStart = "zeros" | "ones" | "uniform" | "norm" | "tokens" | "bias";
export const starts: Readonly<Record<DenseStart, Start>> = {
  zeros: () => {},
  ones: (p) => {
    p.values.fill(1);
  },
  // ±1/√cols: Kaiming with a = √5, as PEFT.
  uniform: ({ t, values, layer, site }, { seed }) => {
    const of = mix(seed, layer * 64 + site.index);
    const bound = Math.sqrt(t.cols / (site.experts ?? 1));
    for (let x = 0; x < values.length; x++) values[x] = ((mix(of, x) >>> 8) / 8388608 - 1) / bound;
  },
  // ‖rows of the site's matrix‖₂.
  norm: async (p, { view }) => {
    p.values.set((await (await view()).scores("row", p.layer, p.site, 0)).map(Math.sqrt));
  },
  // Embeddings of random tokens.
  tokens: async (p, { view, manifest, seed }) => {
    const model = await view();
    for (let r = 0; r < p.rank; r++) {
      const id = mix(mix(seed, 8), r) % manifest.model.vocab;
      p.values.set(await model.embedding(id), r * p.t.cols);
    }
  },
  bias: async (p, { view }) => {
    p.values.set(await (await view()).bias(p.layer, p.site));
  },
};
export const checkStart: Numbers["check"] = (t, _, site, m, need) => {
  const cols = (n: number, why: string): void => need(t.cols === n, "cols", `${n}, ${why}`, t.cols);
  if (t.axis) cols(channelsOf(site, t.axis), `the site's ${t.axis}puts`);
  if (t.init === "norm" || t.init === "bias") {
    cols(site.outFeatures, "one an output");
    need(site.kind === "linear", "init", "a start that this site has", t.init);
  }
  if (t.init === "tokens") cols(m.model.hiddenSize, "an embedding");
  if (t.init === "bias") need(site.bias, "init", "a site with a bias", site.module);
};

/** [rows, cols] ↔ [cols, rows]. */
export function transpose(values: Float32Array, rows: number, cols: number): Float32Array {
  const out = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) out[c * rows + r] = values[r * cols + c]!;
  return out;
}
/** How a file has [rows, cols] of an adapter: its shape, and its numbers both ways. */
interface Layout {
  readonly shape: (rows: number, cols: number) => number[];
  readonly toRows: (values: Float32Array, rows: number, cols: number) => Float32Array;
  readonly toFile: (values: Float32Array, rows: number, cols: number) => Float32Array;
}
const same = (values: Float32Array): Float32Array => values;
const layouts: Readonly<Record<"rows" | NonNullable<BranchTensor["shape"]>, Layout>> = {
  rows: { shape: (rows, cols) => [rows, cols], toRows: same, toFile: same },
  columns: {
    shape: (rows, cols) => [cols, rows],
    toRows: (values, rows, cols) => transpose(values, cols, rows),
    toFile: transpose,
  },
  vector: { shape: (rows, cols) => [rows * cols], toRows: same, toFile: same },
};
const layoutOf = ({ t }: Placed): Layout => layouts[t.shape ?? "rows"];
const only = ([p]: readonly Placed[]): Placed => p!;
/** Row of the file for each row of an adapter. */
const rowsIn = (p: Placed, order: Order): readonly number[] =>
  (p.t.rows === "rank" && order) || Array.from({ length: rowsOf(p) }, (_, r) => r);

export const dense: Numbers = {
  index: false,
  starts,
  check: checkStart,
};
export const denseInFiles: NumbersInFiles = {
  index: false,
  fileName: (path, key) => `${path}.${key}`,
  shape: (group) => {
    const p = only(group);
    return layoutOf(p).shape(rowsOf(p), p.t.cols);
  },
  read: (group, values, [order]) => {
    const p = only(group);
    const { cols } = p.t;
    const rows = layoutOf(p).toRows(values, rowsOf(p), cols);
    rowsIn(p, order!).forEach((from, r) => {
      p.values.set(rows.subarray(from * cols, (from + 1) * cols), r * cols);
    });
  },
  write: (group, [order]) => {
    const p = only(group);
    const { cols } = p.t;
    const rows = new Float32Array(rowsOf(p) * cols);
    rowsIn(p, order!).forEach((to, r) => {
      rows.set(p.values.subarray(r * cols, (r + 1) * cols), to * cols);
    });
    return layoutOf(p).toFile(rows, rowsOf(p), cols);
  },
};
