/**
 * Mixtures of experts, op by op: products, their transposes and routing on both targets against f64, for
 * every format of weights; gradients against finite differences; a row has the same bits whoever is beside
 * it.
 */
import * as assert from "uvu/assert";
import { vjp } from "../compiler/autodiff.ts";
import { PLAIN_ROWS } from "../compiler/kernels/text/wgsl_plain.ts";
import {
  expandExperts,
  experts,
  fold,
  Graph,
  interpret,
  leadingExperts,
  mul,
  placeExperts,
  route,
  scaleBySlot,
  selectExperts,
  shrinkExperts,
  silu,
  softmax,
  squaresOfExperts,
  type Type,
  topk,
  type Value,
  valueKey,
  weighed,
  widenExperts,
} from "../ops/index.ts";
import { formats } from "../runtime/bundle.ts";
import { type Batch, batch, context, inputData, runOn } from "./support/graphs.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("experts");
const targets = ["wasm", "webgpu"] as const;
const rows = (cols: number): Type => ({ kind: "rows", domain: "T", cols });
type Data = Record<string, Float64Array>;

function close(got: ArrayLike<number>, want: ArrayLike<number>, where: string, tolerance = 3e-5): void {
  const max = Array.from(want).reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  for (let i = 0; i < want.length; i++)
    if (!(Math.abs(got[i]! - want[i]!) <= tolerance * (1 + max)))
      assert.unreachable(`${where}: element ${i} is ${got[i]}, f64 says ${want[i]}`);
}
interface Shape {
  readonly count: number;
  readonly top: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly normed?: boolean;
  readonly format?: string;
}
/** A block of experts as families have them; its outputs, what it chose, and gradients of what enters. */
function mixture({ count, top, hidden, ffn, normed = true, format = "f32" }: Shape) {
  const graph = new Graph();
  const input = (name: string, type: Type): Value => graph.input("mixture", name, type);
  const w = (name: string, n: number, k: number): Value =>
    input(name, { kind: "experts", count, n, k, format });
  const [x, logits] = [input("x", rows(hidden)), input("logits", rows(count))];
  const matrices = [w("gate", ffn, hidden), w("up", ffn, hidden), w("down", hidden, ffn)] as const;
  const { chosen, weights } = route(logits, top, normed);
  const gate = experts(x, chosen, matrices[0], "gate");
  const up = experts(x, chosen, matrices[1], "up");
  const y = fold(experts(weighed(mul(silu(gate), up), weights), chosen, matrices[2], "down"), top);
  const cot = input("cot", rows(hidden));
  const of = (wanted: readonly Value[]): Value[] => {
    const grads = vjp([[y, cot]], wanted);
    return wanted.map((v) => grads.get(valueKey(v))!);
  };
  return { y, x, logits, cot, chosen, matrices, of, grads: of([x, logits]) };
}
/** Rows of step values, of all that have some. */
const rowOf = (data: Data, sizes: Readonly<Record<string, number>>, r: number): Data =>
  Object.fromEntries(
    Object.entries(data).map(([name, values]) => {
      const cols = sizes[name];
      return [name, cols ? values.slice(r * cols, (r + 1) * cols) : values];
    }),
  );
/** Data whose rows choose as `of` says: its columns score highest, the rest by chance. */
function choosing(data: Data, count: number, of: (row: number) => readonly number[]): Data {
  const logits = data.logits!.slice();
  for (let r = 0; r * count < logits.length; r++)
    of(r).forEach((e, j) => {
      logits[r * count + e] = Math.fround(4 - j / 2);
    });
  return { ...data, logits };
}
const bits = (a: Float32Array): string => Buffer.from(a.buffer, a.byteOffset, a.byteLength).toString("hex");

const shapes: Readonly<Record<string, Shape & { of?: (row: number) => readonly number[] }>> = {
  "odd sizes, one expert empty": {
    ...{ count: 5, top: 2, hidden: 21, ffn: 19 },
    of: (r) => [(r % 4) + 1, ((r + 1) % 4) + 1],
  },
  "more experts than rows": { count: 40, top: 3, hidden: 16, ffn: 12, normed: false },
  "all rows choose the same": { count: 4, top: 1, hidden: 20, ffn: 24, of: () => [2] },
  "every expert chosen": { count: 3, top: 3, hidden: 12, ffn: 20 },
};
for (const target of targets) {
  test(`a mixture on ${target}, forward and backward, equals f64`, async () => {
    for (const [name, { of, ...shape }] of Object.entries(shapes)) {
      const { y, grads, chosen } = mixture(shape);
      const roots = [y, chosen, ...grads];
      const b = batch(name, 21, 3, "step");
      const drawn = inputData(roots, b, name);
      const data = of ? choosing(drawn, shape.count, of) : drawn;
      const want = interpret(roots, data, context(b));
      // What is not fused is compiled for long on a software adapter: one shape of it there.
      const both = long || target === "wasm" || name === Object.keys(shapes)[0];
      for (const fuse of both ? [true, false] : [true]) {
        const { outputs } = await runOn(target, roots, data, b, { fuse });
        want.forEach((w, i) => close(outputs[i]!, w, `${name} ${fuse ? "fused" : "unfused"} ${i}`));
      }
    }
  });
  test(`a mixture on ${target} stored in each format equals f64 of what it holds`, async () => {
    for (const format of long || target === "wasm" ? formats : (["f16", "q4"] as const)) {
      const { y, grads } = mixture({ count: 4, top: 2, hidden: 45, ffn: 37, format });
      const b = batch("formats", 29, 3, "step");
      const data = inputData([y, ...grads], b, format);
      const want = interpret([y, ...grads], data, context(b));
      const { outputs } = await runOn(target, [y, ...grads], data, b);
      want.forEach((w, i) => close(outputs[i]!, w, `${format} ${i}`));
    }
  });
  test(`a row on ${target} has the bits that it has alone, whoever is beside it`, async () => {
    const shape = { count: 6, top: 2, hidden: 21, ffn: 35 };
    const { y, chosen, grads } = mixture(shape);
    const roots = [y, chosen, ...grads];
    const b = batch("alone", 40, 3, "step");
    const data = inputData(roots, b, "alone");
    const crowded = choosing(data, 6, (r) => (r === 7 ? [1, 4] : r % 3 ? [1, 0] : [4, 1]));
    const sizes = { x: shape.hidden, logits: shape.count, cot: shape.hidden };
    const one: Batch = { ...batch("alone", 1, 1, "step"), rows: 1 };
    const alone = await runOn(target, roots, rowOf(crowded, sizes, 7), one);
    const other = target === "wasm" ? { threads: 3 } : { plainRows: PLAIN_ROWS };
    for (const options of [{}, other]) {
      const { outputs } = await runOn(target, roots, crowded, b, options);
      outputs.forEach((all, i) => {
        const cols = (roots[i]!.type as { cols: number }).cols;
        assert.is(bits(all.slice(7 * cols, 8 * cols)), bits(alone.outputs[i]!), `${i}`);
      });
    }
  });
  test(`of equal scores the first wins on ${target}; a row of NaN disturbs no other`, async () => {
    const { y, chosen } = mixture({ count: 70, top: 4, hidden: 8, ffn: 8 });
    const b = batch("ties", 3, 1, "step");
    const data = inputData([y, chosen], b, "ties");
    data.logits!.fill(0.5);
    for (const e of [69, 33, 65]) data.logits![2 * 70 + e] = 0.75;
    const calm = await runOn(target, [y, chosen], data, b);
    assert.equal([...calm.outputs[1]!], [0, 1, 2, 3, 0, 1, 2, 3, 33, 65, 69, 0]);
    data.logits!.fill(Number.NaN, 70, 140);
    const { outputs } = await runOn(target, [y, chosen], data, b);
    for (const r of [0, 2])
      assert.is(bits(outputs[0]!.slice(r * 8, r * 8 + 8)), bits(calm.outputs[0]!.slice(r * 8, r * 8 + 8)));
    assert.ok(outputs[0]!.slice(8, 16).every(Number.isNaN));
    assert.ok(outputs[1]!.slice(4, 8).every((e) => Number.isInteger(e) && e >= 0 && e < 70));
  });
}

test("gradients of a mixture: inputs, weights and router by central differences in f64", () => {
  for (const normed of [true, false]) {
    const { y, x, logits, cot, matrices, of } = mixture({ count: 6, top: 3, hidden: 7, ffn: 5, normed });
    const wanted = [x, logits, ...matrices];
    const grads = of(wanted);
    const b = batch("differences", 5, 3, "step");
    const ctx = context(b);
    const data = inputData([y, cot, ...grads], b, "differences");
    const loss = (d: Data): number =>
      interpret([y], d, ctx)[0]!.reduce((s, v, i) => s + v * data.cot![i]!, 0);
    wanted.forEach((v, i) => {
      const name = String(v.node.attrs.name);
      const [got] = interpret([grads[i]!], data, ctx);
      const h = 1e-5;
      got!.forEach((g, k) => {
        const at = (step: number): number => {
          const moved = data[name]!.slice();
          moved[k] = moved[k]! + step;
          return loss({ ...data, [name]: moved });
        };
        const want = (at(h) - at(-h)) / (2 * h);
        assert.ok(Math.abs(g - want) < 1e-6 * (1 + Math.abs(want)), `${name} ${k}: ${g}, ${want}`);
      });
      assert.ok(got!.some((g) => Math.abs(g) > 1e-3));
    });
  }
});

/**
 * An adapter on the experts of one matrix: x that all read, or a part for each; of the rows of a job's unit.
 * `of`: two factors, or channels that are chosen, or the first, of the inputs where these are a part for
 * each.
 */
function adapted(
  of: "factors" | "channels" | "leading",
  wide: boolean,
  domain: "T" | "W",
  { count, top, ins, outs }: Sizes,
) {
  const graph = new Graph();
  const rowsOf = (cols: number): Type => ({ kind: "rows", domain, cols });
  const entering = [rowsOf(wide ? top * ins : ins), rowsOf(count)];
  const [x, logits] = entering.map((t, i) => graph.input("a", `x${i}`, t));
  const factor = (name: string, cols: number, rows = 8): Value =>
    graph.input("adapted", name, { kind: "factor", rows, cols: count * cols, branch: 1 });
  const chosen = topk(logits!, top);
  const channels = wide ? ins : outs;
  const made = (): { y: Value; trained: Value[] } => {
    if (of === "factors") {
      const [a, b] = [factor("a", ins), factor("b", outs)];
      const u = scaleBySlot(shrinkExperts(x!, a, chosen, count), 1, 8);
      return { y: expandExperts(u, b, chosen, count), trained: [a, b] };
    }
    const delta = factor("delta", wide ? outs : ins);
    if (of === "leading") {
      const y = wide
        ? expandExperts(leadingExperts(x!, delta, chosen), delta, chosen, count)
        : widenExperts(shrinkExperts(x!, delta, chosen, count), delta, chosen, outs);
      return { y, trained: [delta] };
    }
    const index = factor("index", 8 + channels, 1);
    const y = wide
      ? expandExperts(selectExperts(x!, index, chosen, count), delta, chosen, count)
      : placeExperts(shrinkExperts(x!, delta, chosen, count), index, chosen, count, outs);
    return { y, trained: [delta] };
  };
  const { y, trained } = made();
  const cot = graph.input("adapted", "cot", rowsOf(top * outs));
  const wanted = [x!, ...trained];
  const grads = vjp([[y, cot]], wanted);
  /** Each slot has channels of its own for each expert. */
  const choose = (data: Data, ranks: readonly number[]): Data => {
    if (!data.index) return data;
    const at = data.index.map(() => 0);
    for (let s = 0; s < 4; s++)
      for (let e = 0; e < count; e++) {
        const from = (s * count + e) * (8 + channels);
        for (let r = 0; r < ranks[s]!; r++) {
          const c = (5 * r + 3 * s + e) % channels;
          at[from + r] = c;
          at[from + 8 + c] = r + 1;
        }
      }
    return { ...data, index: at };
  };
  return { y, cot, choose, wanted, grads: wanted.map((v) => grads.get(valueKey(v))!) };
}
interface Sizes {
  readonly count: number;
  readonly top: number;
  readonly ins: number;
  readonly outs: number;
}
const adapters: Readonly<Record<string, Sizes>> = {
  odd: { count: 5, top: 2, ins: 21, outs: 19 },
  even: { count: 8, top: 3, ins: 16, outs: 24 },
  "one each": { count: 40, top: 1, ins: 9, outs: 8 },
};
for (const target of targets) {
  for (const of of ["factors", "channels", "leading"] as const)
    test(`${of} of experts on ${target}: rows of many slots, gradients of a job's, equal f64`, async () => {
      for (const [name, sizes] of Object.entries(adapters))
        for (const wide of [false, true])
          for (const domain of ["T", "W"] as const) {
            const { y, grads, choose } = adapted(of, wide, domain, sizes);
            // What is trained is of one slot; what is served of any.
            const roots = domain === "T" ? [y] : [y, ...grads];
            const b = batch(`${name} ${domain}`, 25, 3, domain === "T" ? "step" : "unit");
            const data = choose(inputData(roots, b, name), b.ranks);
            const want = interpret(roots, data, context(b));
            const { outputs } = await runOn(target, roots, data, b, { fuse: wide });
            want.forEach((w, i) => {
              // Rows of a factor beyond the job's rank are left alone.
              close(outputs[i]!.slice(0, w.length), w, `${name} ${wide} ${domain} ${i}`);
            });
          }
    });
  test(`gradients of experts' matrices on ${target}, of what all read and of parts, equal f64`, async () => {
    for (const [name, { count, top, ins, outs }] of Object.entries(adapters))
      for (const wide of [false, true]) {
        const graph = new Graph();
        const sizes = [wide ? top * ins : ins, count, top * outs];
        const [x, logits, dy] = sizes.map((cols, i) =>
          graph.input("matrices", `x${i}`, { kind: "rows", domain: "W", cols }),
        );
        const type: Type = { kind: "experts", count, n: outs, k: ins, format: "f32" };
        const w = graph.input("matrices", "w", type);
        const root = vjp([[experts(x!, topk(logits!, top), w, "y"), dy!]], [w]).get(valueKey(w))!;
        const b = batch(`matrices ${name}`, 25, 3, "unit");
        const data = inputData([root], b, name);
        // One that nobody chose.
        const some = choosing({ ...data, logits: data.x1! }, count, (r) =>
          Array.from({ length: top }, (_, j) => 1 + ((r + j) % (count - 1))),
        );
        const given = { ...data, x1: some.logits! };
        const want = interpret([root], given, context(b));
        const threads = target === "wasm" ? { threads: 3 } : {};
        for (const options of [{}, threads]) {
          const { outputs } = await runOn(target, [root], given, b, options);
          close(outputs[0]!, want[0]!, `${name} ${wide}`);
        }
      }
  });
  test(`squares of experts' channels on ${target}, of rows and weighed, equal f64`, async () => {
    for (const [name, { count, top, ins }] of Object.entries(adapters))
      for (const weighs of [false, true]) {
        const graph = new Graph();
        const sizes = [top * ins, count, top];
        const [x, logits, weights] = sizes.map((cols, i) =>
          graph.input("squares", `x${i}`, { kind: "rows", domain: "W", cols }),
        );
        const sums = graph.input("squares", "sums", { kind: "vector", n: count * ins });
        const root = squaresOfExperts(x!, topk(logits!, top), sums, count, weighs ? weights : undefined);
        const b = batch(`squares ${name}`, 25, 3, "unit");
        const data = inputData([root], b, name);
        const want = interpret([root], data, context(b));
        const { outputs } = await runOn(target, [root], data, b);
        close(outputs[0]!.slice(0, count * ins), want[0]!, `${name} ${weighs}`);
      }
  });
}
test("gradients of experts' adapters equal central differences in f64", () => {
  for (const [of, wide] of [
    ["factors", false],
    ["factors", true],
    ["channels", false],
    ["channels", true],
    ["leading", false],
    ["leading", true],
  ] as const) {
    const { y, cot, wanted, grads, choose } = adapted(of, wide, "W", { count: 4, top: 2, ins: 9, outs: 8 });
    const b = batch("adapted", 6, 3, "unit");
    const ctx = context(b);
    const data = choose(inputData([y, cot, ...grads], b, "adapted"), b.ranks);
    const loss = (d: Data): number =>
      interpret([y], d, ctx)[0]!.reduce((s, v, i) => s + v * data.cot![i]!, 0);
    wanted.forEach((v, i) => {
      const name = String(v.node.attrs.name);
      const [got] = interpret([grads[i]!], data, ctx);
      // Of a factor, the job's slot.
      const from = v.type.kind === "factor" ? b.header.slot! * v.type.rows * v.type.cols : 0;
      got!.forEach((g, k) => {
        const at = (step: number): number => {
          const moved = data[name]!.slice();
          moved[from + k] = moved[from + k]! + step;
          return loss({ ...data, [name]: moved });
        };
        const want = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert.ok(Math.abs(g - want) < 1e-6 * (1 + Math.abs(want)), `${name} ${k}: ${g}, ${want}`);
      });
    });
  }
});

test("softmax sums to 1 whatever is added to a row; the largest are told apart at any size", () => {
  const graph = new Graph();
  const x = graph.input("softmax", "x", rows(9));
  const b = batch("softmax", 4, 1, "step");
  const data = { x: inputData([x], b, "softmax").x!.map((v, i) => v + (i < 18 ? 300 : -300)) };
  const [p, chosen] = interpret([softmax(x), topk(x, 9)], data, context(b));
  for (let r = 0; r < 4; r++) {
    const row = p!.slice(r * 9, r * 9 + 9);
    assert.ok(Math.abs(row.reduce((s, v) => s + v, 0) - 1) < 1e-12);
    const order = [...chosen!.slice(r * 9, r * 9 + 9)].map((e) => row[e]!);
    assert.equal(
      order,
      [...row].sort((a, z) => z - a),
    );
  }
});
test.run();
