/**
 * What each term of a branch does to its site's weight and bias: merging into the base, export as LoRA, and
 * sums of adapters follow from it.
 */
import { addDeltas, type LowRank } from "./lowrank.ts";
import type { SiteEntry } from "./manifest.ts";
import type { TermName } from "./terms.ts";

/** A change of a weight [out, in] or a bias [out], in place, in f64. */
export type Change = (values: Float32Array) => void;
/** A branch of one layer, its tensors by what a term calls them. */
export interface TermOf {
  readonly site: SiteEntry;
  readonly rank: number;
  readonly scale: number;
  /** Rows in use; null where the branch has no such tensor. */
  readonly tensor: (role: string) => Float32Array | null;
  /** Which of the site's axes its columns run over. */
  readonly axis: (role: string) => "in" | "out" | null;
  /** What an index chooses. */
  readonly chosen: (role: string) => readonly number[];
}
interface TermChanges {
  /** What a method of such a term is, in an error. */
  readonly says: string;
  readonly weight?: (c: TermOf) => Change;
  readonly bias?: (c: TermOf) => Change;
  /** The change of the weight as Bᵀ·A, where it is exactly that and all there is. */
  readonly product?: (c: TermOf) => LowRank;
}
/** Each row o of W [out, in] becomes `row(o, W[o])`. */
const rows =
  (ins: number, row: (o: number, w: Float32Array) => void): Change =>
  (w) => {
    for (let o = 0; o * ins < w.length; o++) row(o, w.subarray(o * ins, (o + 1) * ins));
  };
const scaled = ({ tensor, scale }: TermOf, role: string): Float32Array => tensor(role)!.map((x) => x * scale);
function productOf(c: TermOf): LowRank {
  const { rank, site, tensor } = c;
  const [a, b, inner, outer] = [tensor("a")!, scaled(c, "b"), tensor("inner"), tensor("outer")];
  if (inner) for (let i = 0; i < a.length; i++) a[i] = a[i]! * inner[Math.floor(i / site.inFeatures)]!;
  if (outer) for (let i = 0; i < b.length; i++) b[i] = b[i]! * outer[i % site.outFeatures]!;
  return { rank, a, b };
}

const product: TermChanges = {
  says: "adds a product",
  product: productOf,
  weight: (c) => {
    const low = productOf(c);
    return (w) => addDeltas(w, [low]);
  },
};
const channels: TermChanges = {
  says: "adds to chosen channels",
  product: ({ site, rank, tensor, chosen }) => {
    const inner = site.coupling!.axis === "in";
    const width = inner ? site.inFeatures : site.outFeatures;
    const ones = new Float32Array(rank * width);
    chosen("index").forEach((c, r) => {
      ones[r * width + c] = 1;
    });
    const delta = tensor("delta")!;
    return inner ? { rank, a: ones, b: delta } : { rank, a: delta, b: ones };
  },
  weight: (c) => {
    const low = channels.product!(c);
    return (w) => addDeltas(w, [low]);
  },
};
const entries: TermChanges = {
  says: "adds to single entries",
  weight: ({ chosen, tensor }) => {
    const [places, values] = [chosen("index"), tensor("values")!];
    return (w) => {
      places.forEach((e, k) => {
        w[e] = w[e]! + values[k]!;
      });
    };
  },
};
const after: TermChanges = {
  says: "multiplies what leaves",
  weight: (c) => (w) => through(c, w, c.site.inFeatures),
  bias: (c) => (v) => through(c, v, 1),
};
/** v [outs, columns] += s·Bᵀ·(A·v). */
function through({ site, rank, scale, tensor }: TermOf, v: Float32Array, columns: number): void {
  const [down, up] = [tensor("a")!, tensor("b")!];
  const outs = site.outFeatures;
  const before = Float64Array.from(v);
  for (let r = 0; r < rank; r++)
    for (let c = 0; c < columns; c++) {
      let u = 0;
      for (let o = 0; o < outs; o++) u += down[r * outs + o]! * before[o * columns + c]!;
      for (let o = 0; o < outs; o++) v[o * columns + c] = v[o * columns + c]! + scale * up[r * outs + o]! * u;
    }
}
const magnitudes: TermChanges = {
  says: "scales rows to magnitudes",
  weight: ({ site, tensor }) => {
    const m = tensor("m")!;
    return rows(site.inFeatures, (o, row) => {
      const norm = Math.sqrt(row.reduce((s, x) => s + x * x, 0));
      for (let c = 0; c < row.length; c++) row[c] = (m[o]! * row[c]!) / norm;
    });
  },
};
const gains: TermChanges = {
  says: "multiplies channels",
  weight: ({ site, tensor, axis }) => {
    const gain = tensor("gain")!;
    const input = axis("gain") === "in";
    return rows(site.inFeatures, (o, row) => {
      for (let c = 0; c < row.length; c++) row[c] = row[c]! * gain[input ? c : o]!;
    });
  },
  bias: ({ tensor, axis }) => {
    const gain = tensor("gain")!;
    return axis("gain") === "in"
      ? () => {}
      : (v) => {
          for (let o = 0; o < v.length; o++) v[o] = v[o]! * gain[o]!;
        };
  },
};
const bias: TermChanges = {
  says: "has biases of its own",
  bias: ({ tensor }) => {
    const other = tensor("bias");
    return other ? (v) => v.set(other) : () => {};
  },
};

export const changes: Readonly<Record<TermName, TermChanges>> = {
  product,
  channels,
  entries,
  after,
  magnitudes,
  gains,
  bias,
};
