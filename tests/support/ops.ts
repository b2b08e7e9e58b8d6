/** Graphs of single ops, and how close numbers must be. */
import * as assert from "uvu/assert";
import { allOps, Graph, interpret, make, type Op, type Type, type Value, valueKey } from "../../ops/index.ts";
import { type Batch, context, inputData } from "./graphs.ts";
import { generator } from "./random.ts";

export const targets = ["wasm", "webgpu"] as const;
export const graph = new Graph();
let scope = 0;
/** A number that no name has had. */
export const next = (): number => scope++;
export const rows = (cols: number, domain: "T" | "W" | "R" = "T"): Type => ({ kind: "rows", domain, cols });

export function close(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  where: string,
  tolerance = 3e-5,
): void {
  assert.is(got.length >= want.length, true, `${where}: ${got.length} values, expected ${want.length}`);
  let max = 0;
  for (let i = 0; i < want.length; i++) max = Math.max(max, Math.abs(want[i]!));
  for (let i = 0; i < want.length; i++)
    if (!(Math.abs(got[i]! - want[i]!) <= tolerance * (1 + max)))
      assert.unreachable(`${where}: element ${i} is ${got[i]}, f64 says ${want[i]}`);
}
/** Values of an op's sample, and its inputs. */
export function sample(op: Op, i: number): { outs: Value[]; ins: Value[] } {
  const s = op.samples![i]!;
  const region = `sample${next()}`;
  const ins = s.ins.map((t, k) =>
    graph.input(region, `${op.name}${i}.${s.attrs?.of && k === s.ins.length - 1 ? s.attrs.of : `x${k}`}`, t),
  );
  const attrs = s.attrs?.of ? { ...s.attrs, of: `${op.name}${i}.${s.attrs.of}` } : s.attrs;
  return { outs: make(op, ins, attrs), ins };
}
export function dataFor(
  op: Op,
  roots: readonly Value[],
  b: Batch,
  seed: string,
): Record<string, Float64Array> {
  const data = inputData(roots, b, seed);
  for (const { within } of op.samples!)
    if (within) for (const k of Object.keys(data)) data[k] = data[k]!.map((x) => Math.fround(within(x)));
  return data;
}
export const withSamples = allOps().filter((o) => o.samples);

export const oneSlot = (b: Batch): Batch => ({
  ...b,
  arrays: { ...b.arrays, slot: b.arrays.slot!.map(() => JOB) },
  header: { ...b.header, slot: JOB },
});
export const JOB = 2;

/** Gradients of Σ y · cot against central differences in f64. */
export function checkGradients(
  name: string,
  y: Value,
  cot: Value,
  wanted: readonly Value[],
  grads: ReadonlyMap<string, Value>,
  data: Record<string, Float64Array>,
  b: Batch,
): void {
  const ctx = context(b);
  const loss = (d: Record<string, Float64Array>): number => {
    const [out] = interpret([y], d, ctx);
    return out!.reduce((s, v, i) => s + v * d[String(cot.node.attrs.name)]![i]!, 0);
  };
  for (const x of wanted) {
    const g = grads.get(valueKey(x));
    assert.ok(g, `${name}: no gradient for ${x.node.label}`);
    const [analytic] = interpret([g!], data, ctx);
    const key = String(x.node.attrs.name);
    const next = generator(`${name}${key}`);
    // A factor has a block a slot; its gradient is that of the job's, in the rows that its rank uses.
    const { type } = x;
    const [first, count] =
      type.kind === "factor"
        ? [JOB * type.rows * type.cols, Math.min(type.rows, b.ranks[JOB]!) * type.cols]
        : [0, data[key]!.length];
    if (type.kind === "factor")
      assert.ok(
        b.arrays.slot!.every((s) => s === JOB),
        `${name}: rows of one slot`,
      );
    for (let k = 0; k < 12; k++) {
      const i = next() % count;
      const h = 1e-5;
      const moved = (by: number): number =>
        loss({ ...data, [key]: data[key]!.map((v, j) => (j === first + i ? v + by : v)) });
      const numeric = (moved(h) - moved(-h)) / (2 * h);
      assert.ok(
        Math.abs(numeric - analytic![i]!) <= 1e-6 * (1 + Math.abs(numeric)),
        `${name}: d/d${key}[${i}] is ${analytic![i]}, differences say ${numeric}`,
      );
    }
  }
}
