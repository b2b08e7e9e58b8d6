/**
 * Numbers in rows that all branches of an adapter share, each as far as its site is wide: a file has them
 * once, under the key alone, as wide as the widest.
 */
import { mix } from "../random.ts";
import { transpose } from "./dense.ts";
import { channelsOf, type Numbers, type NumbersInFiles, type Placed, type Start } from "./tensor.ts";

export type SharedStart = "projection";
const starts: Readonly<Record<SharedStart, Start>> = {
  // ±1/√(inputs): Kaiming with a = √5, as PEFT; a site's columns are the first of the widest's.
  projection: ({ t, values, branch, rank }, { manifest, seed }) => {
    const alike = manifest.branches
      .filter(({ method }) => method === branch.method)
      .flatMap(({ tensors }) => tensors.filter(({ name }) => name === t.name));
    const inputs = t.shape === "columns" ? rank : Math.max(...alike.map(({ cols }) => cols));
    const of = mix(mix(seed, 10), branch.tensors.indexOf(t));
    for (let r = 0; r < rank; r++)
      for (let c = 0; c < t.cols; c++)
        values[r * t.cols + c] = ((mix(mix(of, r), c) >>> 8) / 8388608 - 1) / Math.sqrt(inputs);
  },
};
const widest = (group: readonly Placed[]): Placed => group.reduce((x, y) => (y.t.cols > x.t.cols ? y : x));
const most = (group: readonly Placed[]): number => Math.max(...group.map((p) => p.rank));

export const shared: Numbers = {
  index: false,
  starts,
  check: (t, _, site, __, need) => {
    need(t.rows === "rank" && t.axis, "rows", "rows of one of the site's axes", t.rows);
    const cols = channelsOf(site, t.axis!);
    need(t.cols === cols, "cols", `${cols}, the site's ${t.axis}puts`, t.cols);
  },
};
export const sharedInFiles: NumbersInFiles = {
  index: false,
  fileName: (_, key) => key,
  shape: (group) => {
    const { t } = widest(group);
    return t.shape === "columns" ? [t.cols, most(group)] : [most(group), t.cols];
  },
  read: (group, values) => {
    const { t } = widest(group);
    const rows = t.shape === "columns" ? transpose(values, t.cols, most(group)) : values;
    for (const p of group)
      for (let r = 0; r < p.rank; r++)
        p.values.set(rows.subarray(r * t.cols, r * t.cols + p.t.cols), r * p.t.cols);
  },
  write: (group) => {
    const { t } = widest(group);
    const rows = new Float32Array(most(group) * t.cols);
    for (const p of group)
      for (let r = 0; r < p.rank; r++)
        rows.set(p.values.subarray(r * p.t.cols, (r + 1) * p.t.cols), r * t.cols);
    return t.shape === "columns" ? transpose(rows, most(group), t.cols) : rows;
  },
};
