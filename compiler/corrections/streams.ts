/**
 * Rows of a calibration on their way through a model's matrices, in three streams: those as their checkpoint
 * has them, as the bundle has them, and as the bundle has them with what was fitted so far.
 */
import { type Instead, inputName, type Node, type Type } from "../../ops/index.ts";
import { type Format, STORED_PANEL, transpose } from "../../runtime/bundle.ts";
import { roundedRows } from "../pack.ts";
import type { ModelSource } from "../source.ts";
import type { Correction } from "./correction.ts";
import type { Factors } from "./lowrank.ts";
import type { Product } from "./product.ts";

type Weight = Type & { kind: "weight" };
type Experts = Type & { kind: "experts" };
/** How often each row goes through the layers: exact, rounded, corrected. */
export const STREAMS = 3;
/** Of a matrix that is only multiplied, numbers that are read at once. */
const PIECE = 4 * 2 ** 20;

/** Sequences one after another, and those again for every stream. */
export interface Batch {
  /** Of one stream. */
  readonly rows: number;
  readonly ids: readonly number[];
  readonly positions: readonly number[];
  /** The label of a row's next token; IGNORE where there is none. */
  readonly next: readonly number[];
  /** Of each row, where its sequence's blocks begin, in all streams. */
  readonly tables: readonly number[];
  readonly blocks: number;
}
/** What a linear layer was given: an adapter of so many rows. */
export interface Fitted extends Factors {
  readonly path: string;
  readonly outs: number;
  readonly ins: number;
  readonly rank: number;
}

/** Products with weights, a stream at a time; what is fitted on the way is in `fitted`. */
export class Streams {
  readonly fitted: Fitted[] = [];
  /** Experts with a rounded matrix, by what their paths begin with, that no row has met. */
  readonly unreached = new Set<string>();
  /** What was split: several matrices read one value. */
  private readonly parts = new WeakMap<Float64Array, readonly Float32Array[]>();
  constructor(
    private readonly source: ModelSource,
    private readonly batch: Batch,
    private readonly product: Product,
    private readonly correction: Correction,
  ) {}

  /**
   * What nodes give that have to do with weights. `pathOf`: where a checkpoint has a parameter; `ranks`: of
   * adapters, by the names in the region of the matrices that they reach.
   */
  instead(pathOf: (name: string) => string, ranks: ReadonlyMap<string, number>): Instead {
    return (node, ins) => {
      if (node.op === "input") {
        const t = node.outs[0]!;
        if (t.kind === "vector")
          return [Float64Array.from(this.source.weights.read(pathOf(String(node.attrs.name)), [t.n]))];
        // Matrices are read by who multiplies with them.
        return t.kind === "weight" || t.kind === "experts" ? [] : null;
      }
      const weight = node.ins.find((v) => v.type.kind === "weight" || v.type.kind === "experts");
      if (!weight) return null;
      const name = inputName(weight);
      if (node.op === "embed") return [this.embedded(weight.type as Weight, pathOf(name), node)];
      if (node.op === "linear")
        return [this.linear(weight.type as Weight, pathOf(name), ins[0]!, ranks.get(name))];
      if (node.op === "experts")
        return [this.experts(weight.type as Experts, pathOf(name), node, ins, ranks.get(name))];
      throw new Error(`${node.op} has no streams`);
    };
  }
  private rounded({ n, k, format }: Omit<Weight, "kind">, path: string, from = 0, to = n) {
    const tensor = { name: path, shape: [n, k], format: format as Format };
    return roundedRows(this.source, tensor, from, to);
  }
  /** x [3 · rows, cols] as each stream has it. */
  private split(x: Float64Array): readonly Float32Array[] {
    const known = this.parts.get(x);
    if (known) return known;
    const words = x.length / STREAMS;
    const parts = Array.from({ length: STREAMS }, (_, s) =>
      Float32Array.from(x.subarray(s * words, (s + 1) * words)),
    );
    this.parts.set(x, parts);
    return parts;
  }
  private embedded(t: Weight, path: string, node: Node): Float64Array {
    const { ids, positions, rows } = this.batch;
    const at = node.attrs.by === "pos" ? positions : ids;
    const out = new Float64Array(STREAMS * rows * t.k);
    const panels = new Map<number, { exact: Float32Array; held: Float32Array }>();
    at.forEach((id, r) => {
      const first = id - (id % STORED_PANEL);
      const panel = panels.get(first) ?? this.rounded(t, path, first, Math.min(t.n, first + STORED_PANEL));
      panels.set(first, panel);
      [panel.exact, panel.held, panel.held].forEach((values, s) => {
        const from = (id - first) * t.k;
        out.set(values.subarray(from, from + t.k), (s * rows + r) * t.k);
      });
    });
    return out;
  }
  private linear(t: Weight, path: string, x: Float64Array, rank: number | undefined): Float64Array {
    const { n, k } = t;
    const entering = this.split(x);
    const rows = entering[0]!.length / k;
    const out = new Float64Array(STREAMS * rows * n);
    const multiply = (from: number, to: number): ReturnType<Streams["rounded"]> => {
      const both = this.rounded(t, path, from, to);
      [both.exact, both.held, both.held].forEach((values, s) => {
        const y = this.product(entering[s]!, values, rows, to - from, k);
        for (let r = 0; r < rows; r++)
          out.set(y.subarray(r * (to - from), (r + 1) * (to - from)), (s * rows + r) * n + from);
      });
      return both;
    };
    if (rank === undefined) {
      const step = Math.max(1, Math.floor(PIECE / (k * STORED_PANEL))) * STORED_PANEL;
      for (let from = 0; from < n; from += step) multiply(from, Math.min(n, from + step));
      return out;
    }
    const { exact, held } = multiply(0, n);
    if (exact.every((v, i) => v === held[i])) return out;
    const [entersExact, , enters] = entering as [Float32Array, Float32Array, Float32Array];
    const shape = [n, k] as const;
    const factors = this.correction.fit(this.product, { shape, exact, held, entersExact, enters }, rank);
    const fitted = { ...factors, path, outs: n, ins: k, rank };
    this.fitted.push(fitted);
    const y = this.given(fitted, enters);
    const last = (STREAMS - 1) * rows * n;
    for (let i = 0; i < y.length; i++) out[last + i] = out[last + i]! + y[i]!;
    return out;
  }
  /** What the adapter makes of rows that enter its matrix. */
  private given({ a, b, rank, outs, ins }: Fitted, enters: Float32Array): Float32Array {
    const rows = enters.length / ins;
    const u = this.product(enters, a, rows, rank, ins);
    return this.product(u, transpose(b, rank, outs), rows, outs, rank);
  }
  /**
   * Each expert's matrix is read once, for the rows of all streams that chose it. A correction sees those
   * that chose it in the first and in the third. Of experts an adapter has all or none.
   */
  private experts(
    t: Experts,
    path: string,
    node: Node,
    [x, chosen]: readonly Float64Array[],
    rank: number | undefined,
  ): Float64Array {
    const { n, k } = t;
    const [wide, top] = node.ins.slice(0, 2).map((v) => (v.type as Type & { kind: "rows" }).cols) as [
      number,
      number,
    ];
    const out = new Float64Array(chosen!.length * n);
    /** What enters at places of `chosen`, and what leaves there. */
    const enter = (places: readonly number[]): Float32Array => {
      const rows = new Float32Array(places.length * k);
      places.forEach((at, i) => {
        const from = Math.floor(at / top) * wide + (wide === k ? 0 : (at % top) * k);
        rows.set(x!.subarray(from, from + k), i * k);
      });
      return rows;
    };
    const leave = (places: readonly number[], y: Float32Array): void =>
      places.forEach((at, i) => {
        for (let o = 0; o < n; o++) out[at * n + o] = out[at * n + o]! + y[i * n + o]!;
      });
    const fitted: Fitted[] = [];
    for (let e = 0; e < t.count; e++) {
      // By stream: its rows that chose the expert, and where.
      const rows = Array.from({ length: STREAMS }, () => new Map<number, number>());
      chosen!.forEach((c, at) => {
        const row = Math.floor(at / top);
        if (c === e) rows[Math.floor(row / this.batch.rows)]!.set(row % this.batch.rows, at);
      });
      const [first, , last] = rows as [Map<number, number>, Map<number, number>, Map<number, number>];
      if (rank === undefined && rows.every((r) => !r.size)) continue;
      const { exact, held } = this.rounded(t, path.replace("{e}", String(e)));
      for (const [s, r] of rows.entries()) {
        const places = [...r.values()];
        leave(places, this.product(enter(places), s ? held : exact, places.length, n, k));
      }
      if (rank === undefined) continue;
      const both = [...first.keys()].filter((row) => last.has(row));
      const [entersExact, enters] = [first, last].map((r) => enter(both.map((row) => r.get(row)!)));
      const rounded = { shape: [n, k], exact, held, entersExact: entersExact!, enters: enters! } as const;
      const differs = exact.some((v, i) => v !== held[i]);
      const factors = differs
        ? this.correction.fit(this.product, rounded, rank)
        : { a: new Float32Array(rank * k), b: new Float32Array(rank * n) };
      if (differs && !both.length) this.unreached.add(path.slice(0, path.indexOf("{e}")) + String(e));
      const own = { ...factors, path: path.replace("{e}", String(e)), outs: n, ins: k, rank };
      fitted.push(own);
      const places = [...last.values()];
      leave(places, this.given(own, enter(places)));
    }
    if (fitted.some(({ b }) => b.some((v) => v !== 0))) this.fitted.push(...fitted);
    return out;
  }
}
