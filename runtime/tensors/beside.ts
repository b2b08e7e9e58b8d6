/**
 * Numbers in rows; a file has those of all branches side by side in one tensor, whose name is the key alone.
 */
import { checkStart, starts } from "./dense.ts";
import type { Numbers, NumbersInFiles, Placed } from "./tensor.ts";

const total = (group: readonly Placed[]): number => group.reduce((n, p) => n + p.t.cols, 0);
/** Each row of a part, where it begins in it, and in the file. */
function* parts(group: readonly Placed[]): Generator<readonly [p: Placed, at: number, inFile: number]> {
  const width = total(group);
  let column = 0;
  for (const p of group) {
    for (let r = 0; r < p.rank; r++) yield [p, r * p.t.cols, r * width + column];
    column += p.t.cols;
  }
}

export const beside: Numbers = {
  index: false,
  starts,
  check: checkStart,
};
export const besideInFiles: NumbersInFiles = {
  index: false,
  fileName: (_, key) => key,
  shape: (group) => [Math.max(...group.map((p) => p.rank)), total(group)],
  read: (group, values) => {
    for (const [p, to, from] of parts(group)) p.values.set(values.subarray(from, from + p.t.cols), to);
  },
  write: (group) => {
    const out = new Float32Array(Math.max(...group.map((p) => p.rank)) * total(group));
    for (const [p, from, to] of parts(group)) out.set(p.values.subarray(from, from + p.t.cols), to);
    return out;
  },
};
