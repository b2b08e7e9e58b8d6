/**
 * An adapter as a slot has it: pages of tensors in every layer, the same in each, and a row of each layer's
 * table that tells kernels where a branch's vectors and quads are.
 */
import {
  type Manifest,
  type ParamEntry,
  pagesFor,
  QUAD,
  QUAD_WORDS,
  quadsOf,
  ranked,
  SLOT_ROW,
  type TargetEntry,
} from "./bundle.ts";
import { type AdapterShape, type BranchState, placedOf, wordsIn } from "./content.ts";

/** Numbers that lie side by side in one of a slot's pages. */
interface Run {
  readonly values: Float32Array;
  readonly page: number;
  readonly at: number;
}
/** An adapter's rows in one layer, as part of what a slot is. */
interface Pointed {
  readonly method: string;
  readonly states: readonly BranchState[];
  /** Its pages by number. */
  readonly pages: ArrayLike<number>;
  readonly weight: number;
}
export class SlotPages {
  /** By branch and name. */
  private readonly factors: ReadonlyMap<string, ParamEntry>;
  private readonly written: Float32Array[] = [];
  constructor(
    private readonly manifest: Manifest,
    private readonly plan: TargetEntry,
  ) {
    this.factors = new Map(
      plan.factors.map((f) => [`${f.branch} ${f.name.slice(f.name.lastIndexOf(".") + 1)}`, f]),
    );
  }
  /** Pages that an adapter takes. */
  count({ config: { method }, branches }: AdapterShape): number {
    const quads = (s: BranchState, i: number): number =>
      Math.min(quadsOf(s.rank), this.plan.slots.branches[i]!.quads);
    return pagesFor(this.plan, method, Math.max(0, ...branches.flatMap((layer) => layer.map(quads))));
  }
  private quad(method: string, q: number): { page: number; at: number } {
    const { slots } = this.plan;
    const { homes, quad } = slots.methods[method]!;
    const each = Math.floor(slots.page / quad);
    return { page: homes + Math.floor(q / each), at: (q % each) * quad };
  }
  private *runs(layer: number, states: readonly BranchState[], words: Float32Array): Generator<Run> {
    for (const [i, placed] of placedOf(this.manifest, states, words, layer).entries())
      for (const { t, values, branch } of placed) {
        const { offset } = this.factors.get(`${i} ${t.name}`)!;
        const { page, home } = this.plan.slots.branches[i]!;
        if (!ranked(t)) yield { values, page, at: home + offset };
        else
          for (let q = 0; q * QUAD * t.cols < values.length; q++) {
            const place = this.quad(branch.method, q);
            const rows = values.subarray(q * QUAD * t.cols, (q + 1) * QUAD * t.cols);
            yield { values: rows, page: place.page, at: place.at + offset };
          }
      }
  }
  /** One layer's tensors as `count` pages, in the same memory as those written before. */
  write(layer: number, states: readonly BranchState[], words: Float32Array, count: number): Float32Array[] {
    const { page } = this.plan.slots;
    while (this.written.length < count) this.written.push(new Float32Array(page));
    const pages = this.written.slice(0, count);
    for (const p of pages) p.fill(0);
    for (const { values, page, at } of this.runs(layer, states, words)) pages[page]!.set(values, at);
    return pages;
  }
  /** The tensors that pages hold. */
  read(layer: number, states: readonly BranchState[], pages: readonly Float32Array[]): Float32Array {
    const words = new Float32Array(wordsIn(this.manifest, states));
    for (const { values, page, at } of this.runs(layer, states, words))
      values.set(pages[page]!.subarray(at, at + values.length));
    return words;
  }
  /** A slot's row of one layer's table: rows of adapters in pages of these numbers, times their weights. */
  row(parts: readonly Pointed[]): Uint32Array {
    const { slots } = this.plan;
    const row = new Uint32Array(slots.row);
    const scales = new Float32Array(row.buffer);
    for (const { method, states, pages, weight } of parts)
      for (const b of this.manifest.branches) {
        if (b.method !== method) continue;
        const { at, quads, page, home } = slots.branches[b.index]!;
        const { rank, scale } = states[b.index]!;
        // Rows of another part come before: whole quads, in which what is beyond its rank is zero.
        const before = quadsOf(row[at + SLOT_ROW.rank]!);
        if (rank) row[at + SLOT_ROW.rank] = before * QUAD + rank;
        // Updates of a job step through vectors in layers that lack the branch too.
        if (page < slots.methods[method]!.homes) row[at + SLOT_ROW.home] = pages[page]! * slots.page + home;
        for (let q = 0; q < Math.min(quads, quadsOf(rank)); q++) {
          const place = this.quad(method, q);
          const entry = at + SLOT_ROW.quads + (before + q) * QUAD_WORDS;
          row[entry] = pages[place.page]! * slots.page + place.at;
          scales[entry + 1] = weight * scale;
        }
      }
    return row;
  }
}
