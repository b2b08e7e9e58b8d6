/**
 * Classes of numerics: products of integers, and of halves as matrix units take them, are what they are
 * defined as, bit for bit, in every family of kernels.
 */
import * as assert from "uvu/assert";
import { PLAIN_ROWS, QUICK_ROWS } from "../compiler/kernels/text/wgsl_plain.ts";
import { experts, inputName, interpret, linear } from "../ops/index.ts";
import { floatToHalf, halfToFloat } from "../runtime/dtypes.ts";
import { formatValues } from "../runtime/values.ts";
import { batch, context, inputData, runOn } from "./support/graphs.ts";
import { graph, rows } from "./support/ops.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("numerics");
const r = Math.fround;
/** How targets round a block whose largest magnitude is given, and how many values they sum before others. */
const roundings = {
  wasm: { chunk: Infinity, step: (most: number) => r(32767 / most), unit: (most: number) => r(most / 32767) },
  webgpu: {
    chunk: 128,
    step: (most: number) => 2 ** (13 - Math.floor(Math.log2(most))),
    unit: (most: number) => 2 ** (Math.floor(Math.log2(most)) - 13),
  },
};
/** A product of integers as it is defined: rows rounded a block of 32, exact sums, f32 between. */
function ofIntegers(
  target: keyof typeof roundings,
  format: "int8" | "q4",
  x: Float64Array,
  w: Float64Array,
  n: number,
  k: number,
) {
  const { chunk, step: stepOf, unit } = roundings[target];
  const [q, halves] = formatValues[format].encode(Float32Array.from(w), n, k, () => {
    throw new Error("all values are within range");
  });
  const blocks = Math.ceil(k / 32);
  const step = (col: number, i: number): number =>
    format === "int8" ? q![col * k + i]! : (q![col * Math.ceil(k / 2) + (i >> 1)]! >> ((i & 1) * 4)) & 15;
  const shared = (col: number, b: number, i: number): number => {
    const count = format === "int8" ? 1 : 2;
    return halfToFloat(halves![(col * blocks + b) * count + i]!);
  };
  const rows = x.length / k;
  const out = new Float32Array(rows * n);
  const sums = new Float32Array(n);
  for (let row = 0; row < rows; row++)
    for (let b = 0; b < blocks; b++) {
      const block = Float32Array.from(x.subarray(row * k + b * 32, row * k + Math.min(k, b * 32 + 32)));
      const largest = Math.max(...block.map(Math.abs));
      const steps = largest < 2 ** -100 ? 0 : stepOf(largest);
      const rounded = block.map((v) => r(r(v * steps) + 12582912) - 12582912);
      const scale = steps && unit(largest);
      if ((b * 32) % chunk === 0) sums.fill(0);
      for (let col = 0; col < n; col++) {
        const sum = r(rounded.reduce((s, v, i) => s + v * step(col, b * 32 + i), 0));
        const inputs = rounded.reduce((s, v) => s + v, 0);
        const product = r(shared(col, b, 0) * sum);
        const value = format === "int8" ? product : r(product + r(shared(col, b, 1) * inputs));
        sums[col] = r(r(scale * value) + sums[col]!);
        if ((b * 32 + 32) % chunk === 0 || b + 1 === blocks)
          out[row * n + col] = r(out[row * n + col]! + sums[col]!);
      }
    }
  return out;
}
test("products of integers on wasm are what they are defined as, few rows and many, near f64", async () => {
  for (const format of ["int8", "q4"] as const)
    for (const [n, k] of [
      [70, 300],
      [9, 41],
      [5, 4],
    ] as const) {
      const name = `integers ${format} ${k}`;
      const x = graph.input(name, "x", rows(k));
      const w = graph.input(`${name}:${format}`, "w", { kind: "weight", n, k, format });
      const y = linear(x, w, "y");
      for (const count of [1, 2, 3, 37]) {
        const b = batch(name, count, 5, "step");
        const data = inputData([y], b, name);
        const [xs, ws] = [data[inputName(x)]!, data[inputName(w)]!];
        // Blocks of one size each, from too small to large; and one of zeros.
        for (let i = 0; i < xs.length; i++)
          xs[i] = Math.fround(xs[i]! * [1, 1e-20, 3e4, 1e-33, 0][Math.floor(i / 32) % 5]!);
        const { outputs } = await runOn("wasm", [y], data, b, { products: "integers" });
        const exact = interpret([y], data, context(b))[0]!;
        assert.equal(outputs[0], ofIntegers("wasm", format, xs, ws, n, k), `${name}, ${count} rows`);
        const most = Math.max(...exact.map(Math.abs));
        exact.forEach((v, i) => assert.ok(Math.abs(outputs[0]![i]! - v) < 5e-5 * most, `${name} ${i}`));
        assert.not.equal(outputs, (await runOn("wasm", [y], data, b)).outputs, "a class of its own");
        xs[0] = count === 1 ? Number.NaN : Number.POSITIVE_INFINITY;
        const lost = (await runOn("wasm", [y], data, b, { products: "integers" })).outputs[0]!;
        assert.ok(
          lost.subarray(0, n).every((v) => !Number.isFinite(v)),
          "what is no number stays so",
        );
        assert.equal(lost.subarray(n), outputs[0]!.subarray(n));
      }
    }
});

test("products of integers on webgpu are what they are defined as, in every family, near f64", async () => {
  // Blocks that are not whole, chunks that take turns, and neither.
  for (const [format, n, k] of [
    ["q4", 70, 300],
    ...(long
      ? ([
          ["int8", 5, 4352],
          ["int8", 70, 300],
          ["q4", 5, 4330],
          ["q4", 40, 256],
          ["int8", 9, 41],
        ] as const)
      : []),
  ] as const) {
    const name = `integers on webgpu ${format} ${k}`;
    const x = graph.input(name, "x", rows(k));
    const w = graph.input(`${name}:${format}`, "w", { kind: "weight", n, k, format });
    const y = linear(x, w, "y");
    const b = batch(name, 37, 5, "step");
    const data = inputData([y], b, name);
    const [xs, ws] = [data[inputName(x)]!, data[inputName(w)]!];
    for (let i = 0; i < xs.length; i++)
      xs[i] = Math.fround(xs[i]! * [1, 1e-20, 3e4, 1e-33, 0][Math.floor(i / 32) % 5]!);
    const exact = interpret([y], data, context(b))[0]!;
    const most = Math.max(...exact.map(Math.abs));
    const want = ofIntegers("webgpu", format, xs, ws, n, k);
    const infinite = { ...data, [inputName(x)]: xs.map((v, i) => (i ? v : Number.POSITIVE_INFINITY)) };
    for (const variant of ["plain", "few", "many"] as const) {
      const how = { variant, products: "integers", plainRows: PLAIN_ROWS } as const;
      const { outputs } = await runOn("webgpu", [y], data, b, how);
      assert.equal(outputs[0], want, `${name} ${variant}`);
      exact.forEach((v, i) => assert.ok(Math.abs(outputs[0]![i]! - v) < 1e-4 * most, `${name} ${i}`));
      if (k > 300) continue;
      const lost = (await runOn("webgpu", [y], infinite, b, how)).outputs[0]!;
      assert.ok(
        lost.subarray(0, n).every((v) => !Number.isFinite(v)),
        "what is no number stays so",
      );
      assert.equal(lost.subarray(n), outputs[0]!.subarray(n));
    }
  }
});

test("experts' products of integers are those of each expert's own matrix, on both targets", async () => {
  const [count, top, n, k, rowCount] = [3, 2, 22, 75, 21];
  for (const format of long ? (["int8", "q4"] as const) : (["q4"] as const)) {
    const name = `integers of experts ${format}`;
    const x = graph.input(name, "x", rows(k));
    const chosen = graph.input(name, "chosen", rows(top));
    const w = graph.input(`${name}:${format}`, "w", { kind: "experts", count, n, k, format });
    const y = experts(x, chosen, w, "y");
    const b = batch(name, rowCount, 5, "step");
    const data = inputData([y], b, name);
    const [xs, ws] = [data[inputName(x)]!, data[inputName(w)]!];
    const ids = data[inputName(chosen)]!.map((_, i) => (Math.floor(i / top) + (i % top)) % count);
    data[inputName(chosen)] = ids;
    for (const target of ["wasm", "webgpu"] as const) {
      const want = Array.from(ids, (e, i) => {
        const row = Math.floor(i / top);
        const own = [xs.subarray(row * k, (row + 1) * k), ws.subarray(e * n * k, (e + 1) * n * k)] as const;
        return [...ofIntegers(target, format, ...own, n, k)];
      }).flat();
      for (const plainRows of [QUICK_ROWS, PLAIN_ROWS]) {
        const { outputs } = await runOn(target, [y], data, b, { products: "integers", plainRows });
        assert.equal([...outputs[0]!], want, `${name} on ${target}, tiles of ${plainRows}`);
      }
    }
  }
});

/** A product as matrix units take it: both sides rounded to f16, spans of 512 ascending, added in order. */
function ofHalves(x: Float64Array, w: Float64Array, n: number, k: number): Float32Array {
  const half = (v: number): number => halfToFloat(floatToHalf(v));
  const [xs, ws] = [x.map(half), w.map(half)];
  const rows = x.length / k;
  const out = new Float32Array(rows * n);
  for (let row = 0; row < rows; row++)
    for (let col = 0; col < n; col++)
      for (let from = 0; from < k; from += 512) {
        let sum = 0;
        // Products are exact in f32.
        for (let i = from; i < Math.min(k, from + 512); i++)
          sum = r(xs[row * k + i]! * ws[col * k + i]! + sum);
        out[row * n + col] = r(out[row * n + col]! + sum);
      }
  return out;
}
test("products of f16 are what they are defined as, without matrix units, in every family", async () => {
  // Spans, steps and tiles that are not whole; more spans than a few rows' workgroup has at once.
  for (const [format, n, k, count] of [
    ["f32", 70, 523, 37],
    ...(long
      ? ([
          ["f16", 5, 2700, 17],
          ["bf16", 130, 41, 64],
          ["int8", 70, 1300, 1],
          ["q4", 70, 2100, 70],
          ["q4", 40, 256, 8],
          ["f16", 64, 512, 16],
        ] as const)
      : []),
  ] as const) {
    const name = `halves ${format} ${k}`;
    const x = graph.input(name, "x", rows(k));
    const w = graph.input(`${name}:${format}`, "w", { kind: "weight", n, k, format });
    const y = linear(x, w, "y");
    const b = batch(name, count, 5, "step");
    const data = inputData([y], b, name);
    const [xs, ws] = [data[inputName(x)]!, data[inputName(w)]!];
    const exact = interpret([y], data, context(b))[0]!;
    const most = Math.max(...exact.map(Math.abs));
    // What is no number stays so, in its row; what f16 has no room for is lost.
    if (count > 1) [xs[0], xs[k]] = [Number.NaN, 1e6];
    const lost = count > 1 ? 2 * n : 0;
    const want = ofHalves(xs, ws, n, k).subarray(lost);
    for (const variant of ["plain", "few", "many"] as const) {
      const how = { variant, products: "matrix", plainRows: PLAIN_ROWS } as const;
      const out = (await runOn("webgpu", [y], data, b, how)).outputs[0]!;
      assert.equal(out.subarray(lost), want, `${name} ${variant}`);
      want.forEach((v, i) => assert.ok(Math.abs(v - exact[lost + i]!) < 2e-3 * most, `${name} ${i}`));
      assert.ok(
        out.subarray(0, lost).every((v) => !Number.isFinite(v)),
        "what is no number stays so",
      );
    }
  }
});
test.run();
