/**
 * Law 1, op by op: every op of the registry on both targets against f64, every gradient against finite
 * differences, random fused chains. One file: they share what makes a graph's inputs and plays it.
 */

import * as assert from "uvu/assert";
import { vjp } from "../compiler/autodiff.ts";
import { fuse } from "../compiler/fuse.ts";
import { graphKernels, skeletonOf } from "../compiler/kernels/index.ts";
import { PLAIN_ROWS, QUICK_ROWS } from "../compiler/kernels/text/wgsl_plain.ts";
import {
  type Attending,
  add,
  affine,
  allOps,
  attend,
  call,
  columns,
  crossEntropy,
  dropout,
  type Expr,
  elementwise,
  exp,
  expand,
  fma,
  gatherRows,
  interpret,
  konst,
  kvWrite,
  layerNorm,
  linear,
  linearT,
  mul,
  neg,
  type Op,
  outer,
  rmsNorm,
  rope,
  rowMax,
  rowSum,
  shrink,
  silu,
  softmax,
  sub,
  type Value,
  valueKey,
} from "../ops/index.ts";
import { weightFormats } from "../runtime/formats.ts";
import type { KvName } from "../runtime/kv.ts";
import { type Batch, batch, capacities, context, inputData, runOn } from "./support/graphs.ts";
import {
  checkGradients,
  close,
  dataFor,
  graph,
  next,
  rows,
  sample,
  targets,
  withSamples,
} from "./support/ops.ts";
import { generator } from "./support/random.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("ops");
/** Ops whose operands only make sense together; the tests below name each of them. */
const together = new Set([
  "input",
  "attend",
  "attend_dq",
  "attend_dkv",
  "kv_write",
  "store_rows",
  "gather_rows",
  "gather_slice",
  "embed",
  "scatter_rows",
  "slot_scale",
  "dropout",
  "select",
  "place",
  "slot_vector",
  "rebias",
  "leading",
  "widen",
  "overlay",
  "behind",
  "one_hot",
  "sparse",
  "sampled",
  "label_logit",
  "cross_entropy_grad",
  "spread",
  "zeros",
  "softmax",
  "pick",
  "put",
  "experts",
  "experts_t",
  "experts_shrink",
  "experts_expand",
  "experts_outer",
  "experts_select",
  "experts_place",
  "experts_leading",
  "experts_widen",
]);

test("every op has samples, or a test of its own", () => {
  for (const op of allOps())
    assert.is(
      op.samples !== undefined || together.has(op.name),
      true,
      `${op.name} has no samples, and no place in the list together`,
    );
});

test("every op that computes has a kernel, and every kernel of a graph an op", () => {
  const ops = allOps().filter((op) => op.kind !== "input");
  assert.equal([...new Set(ops.map(skeletonOf))].sort(), Object.keys(graphKernels).sort());
  const unknown: Op = { name: "unknown", kind: "kernel", infer: () => [] };
  assert.throws(() => skeletonOf(unknown), /unknown has no kernel: .* none named unknown/);
});

for (const target of targets)
  test(`each op on ${target} equals its f64 meaning`, async () => {
    for (const kind of ["step", "unit"] as const) {
      const b = batch(`ops ${kind}`, 13, 5, kind);
      const all: { op: Op; outs: Value[]; data: Record<string, Float64Array> }[] = [];
      for (const op of withSamples)
        op.samples!.forEach((_, i) => {
          const { outs } = sample(op, i);
          const unit = outs[0]!.type.kind === "grad";
          if (unit === (kind === "unit"))
            all.push({ op, outs, data: dataFor(op, outs, b, `seed ${op.name}`) });
        });
      const roots = all.flatMap((x) => x.outs);
      const data = Object.assign({}, ...all.map((x) => x.data)) as Record<string, Float64Array>;
      const { outputs } = await runOn(target, roots, data, b, { fuse: false });
      let at = 0;
      for (const { op, outs } of all)
        for (const want of interpret(outs, data, context(b)))
          close(outputs[at++]!, want, `${op.name} on ${target}`);
    }
  });

/** A bundle's kernels for CPUs behind WebGPU, but for trials. */
const shipped = { variant: "plain", plainRows: PLAIN_ROWS } as const;
test("products on webgpu: a row's bits are the same in a few rows and in tiles, in every format", async () => {
  // Chunks of 128: a few side by side, the last no whole word of some formats; and so many that they take
  // turns.
  const sizes = [
    { n: 70, k: 300 },
    { n: 5, k: 4300 },
  ];
  for (const format of Object.keys(weightFormats))
    for (const { n, k } of format === "f32" ? sizes : sizes.slice(0, 1)) {
      const name = `product ${format} ${k}`;
      const x = graph.input(name, "x", rows(k));
      const w = graph.input(`${name}:${format}`, "w", { kind: "weight", n, k, format });
      const y = linear(x, w, "y");
      const b = batch(name, 37, 5, "step");
      const data = inputData([y], b, name);
      const [want] = interpret([y], data, context(b));
      const { outputs } = await runOn("webgpu", [y], data, b, shipped);
      close(outputs[0]!, want!, name);
      for (const variant of ["plain", "few", "many"] as const)
        assert.equal(
          (await runOn("webgpu", [y], data, b, { variant, plainRows: QUICK_ROWS })).outputs,
          outputs,
          `${name} ${variant}`,
        );
      if (format !== "f32") continue;
      // A family that sums chunks in another order has other bits.
      const perturbed = await runOn("webgpu", [y], data, b, {
        variant: "few",
        mutate: (text) => text.replace(/(total\[\d\]) = \1 \+ sums/g, "$1 = $1 * 0.9999999f + sums"),
      });
      assert.not.equal(perturbed.outputs, outputs, name);
    }
});

test("two products whose results meet are one launch: the bits of two, in every family and format", async () => {
  // Chunks that take turns in `f32`; columns that fill no tile; adapters on both, as their deltas are met too.
  for (const format of Object.keys(weightFormats)) {
    const [n, k] = format === "f32" ? [37, 2100] : [70, 300];
    const name = `pair ${format}`;
    const x = graph.input(name, "x", rows(k));
    const product = (of: string, branch: number): Value => {
      const w = graph.input(`${name}:${format}`, of, { kind: "weight", n, k, format });
      const a = graph.input(name, `${of}_a`, { kind: "factor", rows: 8, cols: k, branch });
      const b = graph.input(name, `${of}_b`, { kind: "factor", rows: 8, cols: n, branch });
      return add(expand(shrink(x, a), b), linear(x, w, of));
    };
    const up = product("up", 1);
    const roots = [mul(silu(product("gate", 0)), up), up];
    const b = batch(name, 37, 5, "step");
    const data = inputData(roots, b, name);
    const alone = await runOn("webgpu", roots, data, b, { variant: "plain", fuse: false });
    interpret(roots, data, context(b)).forEach((want, i) => close(alone.outputs[i]!, want, `${name} ${i}`));
    for (const variant of ["plain", "few", "many"] as const) {
      const { outputs, launches } = await runOn("webgpu", roots, data, b, { variant });
      assert.equal(outputs, alone.outputs, `${name} ${variant}`);
      assert.is(launches, 2, "the first products of both adapters, then all the rest");
    }
    if (format === "q4" || long) {
      const of = { products: "matrix" } as const;
      const apart = await runOn("webgpu", roots, data, b, { ...of, variant: "many", fuse: !long });
      assert.not.equal(apart.outputs, alone.outputs, "a class of its own");
      for (const variant of long ? (["plain", "few", "many"] as const) : (["few"] as const)) {
        const { outputs } = await runOn("webgpu", roots, data, b, { ...of, variant });
        assert.equal(outputs, apart.outputs, `${name} ${variant}, of f16`);
      }
    }
    for (const products of ["f32", "integers"] as const) {
      const one = await runOn("wasm", roots, data, b, { products });
      const two = await runOn("wasm", roots, data, b, { products, fuse: false });
      assert.equal(one.outputs, two.outputs, `${name} on wasm`);
      assert.is(one.launches, 2);
    }
  }
});

test("gate and up of one matrix are halves of a sum each: the bits of several launches", async () => {
  for (const [format, n, k] of [
    ["f32", 48, 2100],
    ["q4", 80, 300],
  ] as const) {
    const name = `halves ${format}`;
    const x = graph.input(name, "x", rows(k));
    const w = graph.input(`${name}:${format}`, "w", { kind: "weight", n: 2 * n, k, format });
    const a = graph.input(name, "a", { kind: "factor", rows: 8, cols: k, branch: 0 });
    const b = graph.input(name, "b", { kind: "factor", rows: 8, cols: 2 * n, branch: 0 });
    const both = add(expand(shrink(x, a), b), linear(x, w, "gate_up"));
    const y = mul(silu(columns(both, 0, n)), columns(both, n, n));
    // Also kept as they were, for a gradient; and what is made of the result.
    const roots = [y, both, mul(y, graph.input(name, "gain", { kind: "vector", n }))];
    const of = batch(name, 37, 5, "step");
    const data = inputData(roots, of, name);
    const alone = await runOn("webgpu", roots, data, of, { variant: "plain", fuse: false });
    interpret(roots, data, context(of)).forEach((want, i) => close(alone.outputs[i]!, want, `${name} ${i}`));
    for (const variant of ["plain", "few", "many"] as const) {
      const { outputs, launches } = await runOn("webgpu", roots, data, of, { variant });
      assert.equal(outputs, alone.outputs, `${name} ${variant}`);
      assert.is(launches, 2, "the adapter's first product, then all the rest");
    }
    const [one, two] = [
      await runOn("wasm", roots, data, of),
      await runOn("wasm", roots, data, of, { fuse: false }),
    ];
    assert.equal(one.outputs, two.outputs, `${name} on wasm`);
    assert.is(one.launches, 2);
  }
});

test("queries and keys turn, and are kept, where they are made: the bits of two launches", async () => {
  // Halves of four quads and of six; chunks that take turns; keys without an adapter. In short each kernel
  // meets what is hardest for it.
  const all = ["plain", "few", "many"] as const;
  const cases = [
    ["f32", 16, 2100, "T", ["few", "many"]],
    ["f32", 48, 64, "T", []],
    ["f32", 16, 40, "W", ["plain", "many"]],
    ["q4", 32, 300, "T", ["few"]],
  ] as const;
  for (const [format, hd, k, domain, some] of cases) {
    if (!long && !some.length) continue;
    const name = `turning ${format} ${hd} ${domain}`;
    const x = graph.input(name, "x", rows(k, domain));
    const table = graph.input(name, "rotary", { kind: "table", rows: capacities.context, cols: hd });
    const product = (of: string, heads: number, branch: number): Value => {
      const n = heads * hd;
      const w = graph.input(`${name}:${format}`, of, { kind: "weight", n, k, format });
      const a = graph.input(name, `${of}_a`, { kind: "factor", rows: 8, cols: k, branch });
      const b = graph.input(name, `${of}_b`, { kind: "factor", rows: 8, cols: n, branch });
      const y = linear(x, w, of);
      const biased = of === "v" ? y : add(y, graph.input(name, `${of}_bias`, { kind: "vector", n }));
      return of === "k" ? biased : add(expand(shrink(x, a), b), biased);
    };
    const [q, key, v] = [product("q", 4, 0), product("k", 2, 1), product("v", 2, 1)];
    const turned = rope(q, table, hd);
    const kv = graph.input(name, "kv", { kind: "kv", heads: 2, headDim: hd, format: "f16" });
    const written = kvWrite(kv, rope(key, table, hd), v);
    // Queries also as they were, and what is made of them; a unit's rows are a sequence, which attends.
    const made = domain === "T" ? rope(key, table, hd) : attend(turned, written, 4, { scale: 0.01 }).o;
    const roots = [made, v, turned, q, affine(turned, { scale: 0.5, shift: 0.1 })];
    const b = domain === "T" ? batch(name, 37, 5, "step") : unitBatch(32);
    const data = inputData(roots, b, name);
    const alone = await runOn("webgpu", roots, data, b, { variant: "plain", fuse: false });
    interpret(roots, data, context(b)).forEach((want, i) =>
      close(alone.outputs[i]!, want, `${name} ${i}`, i || domain === "T" ? 3e-5 : 2e-3),
    );
    // The first products of both adapters, and all that is made of the rows; attention.
    const launches = domain === "T" ? 2 : 3;
    for (const variant of long ? all : some) {
      if (variant === "few" && domain === "W") continue;
      const fused = await runOn("webgpu", roots, data, b, { variant });
      assert.equal(fused.outputs, alone.outputs, `${name} ${variant}`);
      assert.is(fused.launches, launches);
    }
    for (const products of format === "q4" ? (["f32", "integers"] as const) : (["f32"] as const)) {
      const one = await runOn("wasm", roots, data, b, { products });
      const two = await runOn("wasm", roots, data, b, { products, fuse: false });
      assert.equal(one.outputs, two.outputs, `${name} on wasm`);
      assert.is(one.launches, launches);
    }
  }
});

test("a lone row's norm is made where it is read: the bits of a launch that is not there", async () => {
  // Chunks that take turns; columns that fill no turn of lanes, of workgroups of 128 and of 64.
  const cases = [
    ["f32", 2100, 1, "layer", [1]],
    ["f16", 300, 1, "rms", [3]],
    ["q4", 300, 1, "one plus", []],
    ["f32", 70, 5, "rms", []],
  ] as const;
  for (const [format, k, count, kind, some] of cases) {
    const name = `anew ${format} ${kind}`;
    const x = graph.input(name, "x", rows(k));
    const [gain, bias] = ["gain", "bias"].map((of) => graph.input(name, of, { kind: "vector", n: k }));
    const normed =
      kind === "layer" ? layerNorm(x, gain!, bias!, 1e-5) : rmsNorm(x, gain!, 1e-5, kind === "one plus");
    const product = (of: string, n: number): Value =>
      linear(normed, graph.input(`${name}:${format}`, of, { kind: "weight", n, k, format }), of);
    const [a, b] = [k, 21].map((cols) =>
      graph.input(name, `factor${cols}`, { kind: "factor", rows: 8, cols, branch: 0 }),
    );
    const adapter = (x: Value): Value => add(expand(shrink(x, a!), b!), product("q", 21));
    const [adapted, dropping] = [adapter(normed), adapter(dropout(normed, 3))];
    const pair = mul(silu(product("gate", 37)), product("up", 37));
    const all = batch(name, count, 5, "step");
    const none = {
      ...all,
      header: { ...all.header, mask_4: 0 },
      arrays: { ...all.arrays, drop_key: all.arrays.drop_key!.map(() => 0) },
    };
    // With what else reads the norm it is there, too: dropout in steps where rows have some, others always.
    for (const [i, [roots, of, rest, launches]] of (
      [
        [[product("q", 21)], all, [], 1],
        [[adapted, pair], all, [], 2],
        [[dropping, pair], all, [128], 4],
        [[dropping, pair], none, [128], 3],
        [[pair, add(x, product("r", k)), exp(normed)], all, null, 2],
        [[product("q", 21), normed], all, null, 2],
      ] as const
    ).entries()) {
      const bodies = fuse(roots, { fuse: true }).flatMap((l) => l.bodies);
      assert.equal(bodies.find(({ skeleton }) => skeleton === "row")!.rest, rest, `${name} ${i}`);
      if (!long && !some.some((one) => one === i)) continue;
      const data = inputData(roots, of, name);
      const alone = await runOn("webgpu", roots, data, of, { variant: "plain", fuse: false });
      interpret(roots, data, context(of)).forEach((want, at) =>
        close(alone.outputs[at]!, want, `${name} ${i}: ${at}`),
      );
      const few = await runOn("webgpu", roots, data, of, { variant: "few" });
      assert.equal(few.outputs, alone.outputs, `${name} ${i}`);
      if (count === 1) assert.is(few.launches, launches, `${name} ${i}`);
    }
  }
});

test("products with a matrix turned: the same bits in tiles and in registers on webgpu", async () => {
  const b = batch("turned", 37, 5, "step");
  for (const format of Object.keys(weightFormats)) {
    const name = `turned ${format}`;
    const pairs = [150, 13].map((n): [Value, Value] => [
      graph.input(name, `y${n}`, rows(n)),
      graph.input(`${name}:${format}`, `w${n}`, { kind: "weight", n, k: 70, format }),
    ]);
    const y = linearT(pairs);
    const data = inputData([y], b, name);
    const { outputs } = await runOn("webgpu", [y], data, b, shipped);
    close(outputs[0]!, interpret([y], data, context(b))[0]!, name);
    for (const variant of ["plain", "many"] as const) {
      const other = await runOn("webgpu", [y], data, b, { variant, plainRows: QUICK_ROWS });
      assert.equal(other.outputs, outputs, `${name} ${variant}`);
    }
  }
});

/** Rows that are all of one slot: a factor's gradient sums over the rows of a job, and a job has one slot. */

/** One sequence from a position on, all of one adapter: what a backward unit sees. */
function unitBatch(n: number, from = 0): Batch {
  const b = batch("attention", n, 3, "unit");
  return {
    ...b,
    arrays: {
      ...b.arrays,
      pos: Array.from({ length: n }, (_, r) => from + r),
      save_row: Array.from({ length: n }, (_, r) => from + r),
      seg_keys: [from + n],
    },
    header: { ...b.header, n_keys: from + n },
  };
}
function attention(
  scopeName: string,
  heads: number,
  kvHeads: number,
  hd: number,
  how: Attending = {},
  format: KvName = "f32",
) {
  const q = graph.input(scopeName, "q", rows(heads * hd, "W"));
  const k = graph.input(scopeName, "k", rows(kvHeads * hd, "W"));
  const v = graph.input(scopeName, "v", rows(kvHeads * hd, "W"));
  const kv = graph.input(scopeName, "kv", { kind: "kv", heads: kvHeads, headDim: hd, format });
  const table = graph.input(scopeName, "rotary", { kind: "table", rows: capacities.context, cols: hd });
  const written = kvWrite(kv, rope(k, table, hd), v);
  const { o, lse } = attend(rope(q, table, hd), written, heads, how);
  return { q, k, v, kv, o, lse, cot: graph.input(scopeName, "cot", rows(heads * hd, "W")) };
}
for (const [heads, kvHeads, hd, o, from, format] of [
  [4, 2, 16, {}, 0],
  [6, 2, 10, {}, 0],
  [3, 3, 6, {}, 0],
  [4, 1, 20, {}, 0],
  [4, 2, 16, { scale: 0.4, softcap: 1.5 }, 0],
  [6, 2, 10, { window: true }, 0],
  [4, 2, 12, { scale: 0.7, softcap: 2, window: true }, 43],
  [4, 2, 16, {}, 0, "f16"],
  [6, 2, 10, { softcap: 2, window: true }, 43, "f16"],
] as [number, number, number, Attending, number, KvName?][])
  test(`attention ${heads}/${kvHeads} × ${hd} ${JSON.stringify(o)} ${format ?? "f32"}: across blocks`, async () => {
    const g = attention(`attention${next()}`, heads, kvHeads, hd, o, format);
    // A half has 11 bits: what it holds is off by 2^-12 of its size.
    const tolerance = format === "f16" ? 2e-3 : 1e-4;
    // Of rows that go in pairs, one is alone.
    const b = unitBatch(31, from);
    const few = unitBatch(9);
    const grads = vjp([[g.o, g.cot]], [g.q, g.k, g.v]);
    const roots = [g.q, g.k, g.v].map((x) => grads.get(valueKey(x))!);
    checkGradients(
      "attention",
      g.o,
      g.cot,
      [g.q, g.k, g.v],
      grads,
      inputData([g.o, ...roots], few, "fd"),
      few,
    );
    const data = inputData([g.o, ...roots], b, "attention data");
    const want = interpret([g.o, g.lse, ...roots], data, context(b));
    for (const target of targets) {
      const { outputs } = await runOn(target, [g.o, g.lse, ...roots], data, b);
      outputs.forEach((out, i) => close(out, want[i]!, `attention root ${i} on ${target}`, tolerance));
      // In short a job's gradients say enough of tiles (attention.test.ts).
      for (const fuse of long && target === "webgpu" ? [true, false] : []) {
        const tiles = await runOn(target, [g.o, g.lse, ...roots], data, b, { variant: "many", fuse });
        assert.equal(tiles.outputs, outputs, `in tiles, ${fuse ? "side by side" : "each alone"}`);
      }
    }
  });

test("cross-entropy: loss and gradient of a chunk of logits, on both targets", async () => {
  const name = `ce${next()}`;
  const b = batch("ce", 17, 6, "unit", 11);
  const x = graph.input(name, "x", rows(12, "W"));
  const w = graph.input(name, "head", { kind: "weight", n: 11, k: 12, format: "f32" });
  const { nll, dlogits } = crossEntropy(linear(gatherRows(x, "head_row", "R"), w, "head"));
  const data = inputData([nll, dlogits], b, "ce");
  const want = interpret([nll, dlogits], data, context(b));
  for (const target of targets)
    (await runOn(target, [nll, dlogits], data, b)).outputs.forEach((out, i) =>
      close(out, want[i]!, `root ${i} on ${target}`),
    );
});

test("whole rows on webgpu: the same bits in a lane and in a workgroup", async () => {
  // No whole turn of a workgroup's lanes, several, and some columns behind them.
  for (const cols of [70, 384, 423]) {
    const name = `rows of ${cols}`;
    const b = batch(name, 19, 4, "step");
    const x = graph.input(name, "x", rows(cols));
    const y = rmsNorm(x, graph.input(name, "gain", { kind: "vector", n: cols }), 1e-5);
    const roots = [y, mul(softmax(x), rowMax(x))];
    const data = inputData(roots, b, name);
    const { outputs } = await runOn("webgpu", roots, data, b, { variant: "plain" });
    interpret(roots, data, context(b)).forEach((want, i) => close(outputs[i]!, want, `${name}, ${i}`));
    assert.equal((await runOn("webgpu", roots, data, b, { variant: "any" })).outputs, outputs, name);
  }
});

test("random fused chains, odd tails: fused = unfused bit for bit, both near f64", async () => {
  const next = generator("chains");
  for (let c = 0; c < 6; c++) {
    const name = `chain${next()}`;
    const cols = [5, 8, 13, 24, 31, 33][c]!;
    const b = batch(`chain ${c}`, 3 + (next() % 20), 4, "step");
    let v: Value = graph.input(name, "x", rows(cols));
    const gain = graph.input(name, "gain", { kind: "vector", n: cols });
    const other = graph.input(name, "other", rows(cols));
    const w = graph.input(name, "w", { kind: "weight", n: cols, k: cols, format: "f32" });
    const kept: Value[] = [v];
    for (let i = 0; i < 9; i++) {
      const pick = kept[next() % kept.length]!;
      const steps: (() => Value)[] = [
        () => add(v, pick),
        () => mul(v, gain),
        () => sub(v, other),
        () => fma(v, pick, other),
        () => silu(v),
        () => neg(v),
        () => affine(v, { scale: 0.5, shift: 0.1 }),
        () => rmsNorm(v, gain, 1e-5),
        () => linear(v, w, "w"),
        () => linearT([[v, w]]),
        () =>
          mul(v, exp(sub(rowMax(affine(v, { scale: 0.1, shift: 0 })), affine(v, { scale: 0.1, shift: 2 })))),
        () => add(v, affine(rowSum(v), { scale: 1 / cols, shift: 0 })),
      ];
      v = steps[next() % steps.length]!();
      kept.push(v);
    }
    const roots = [v, kept[4]!].filter((r) => r.node.op !== "input");
    const data = inputData(roots, b, `chain ${c}`);
    const want = interpret(roots, data, context(b));
    for (const target of c < 3 ? targets : (["wasm"] as const)) {
      const fused = await runOn(target, roots, data, b);
      const plain = await runOn(target, roots, data, b, { fuse: false });
      assert.ok(
        fused.launches < plain.launches,
        `chain ${c}: fusion saves launches (${fused.launches} of ${plain.launches})`,
      );
      roots.forEach((_, i) => {
        assert.equal([...fused.outputs[i]!], [...plain.outputs[i]!], `chain ${c} on ${target}: fused bits`);
        close(fused.outputs[i]!, want[i]!, `chain ${c} on ${target}`, 1e-4);
      });
    }
  }
});

test("an elementwise op is one definition: kernels, gradient and meaning follow", async () => {
  // x / (1 + |x|), and its derivative 1 / (1 + |x|)².
  const beyond = (x: Expr) => call("add", konst(1), call("max", x, call("neg", x)));
  const slope = elementwise("softsign_slope_trial", {
    arity: 1,
    constant: true,
    expr: ([x]) => call("div", konst(1), call("pin", call("mul", beyond(x!), beyond(x!)))),
  });
  const softsign = elementwise("softsign_trial", {
    arity: 1,
    expr: ([x]) => call("div", x!, beyond(x!)),
    grad: ({ ins: [x], dout }) => [() => mul(dout, slope(x!))],
  });
  const x = graph.input(`trial${next()}`, "x", rows(7));
  const b = batch("trial", 6, 2, "step");
  const data = inputData([x], b, "trial");
  const roots = [softsign(x), slope(x)];
  const want = interpret(roots, data, context(b));
  const bump = 1e-5;
  const [name] = Object.keys(data) as [string];
  const moved = (by: number) =>
    interpret([softsign(x)], { ...data, [name]: data[name]!.map((v) => v + by) }, context(b))[0]!;
  const [up, down] = [moved(bump), moved(-bump)];
  close(
    want[1]!,
    up.map((v, i) => (v - down[i]!) / (2 * bump)),
    "its slope by differences",
  );
  for (const target of targets)
    (await runOn(target, roots, data, b)).outputs.forEach((out, i) =>
      close(out, want[i]!, `softsign and its slope on ${target}`),
    );
});

test("outer products of factors and matrices fold rows in order, whatever the row count", async () => {
  for (const n of [1, 5, 32]) {
    const name = `outer${next()}`;
    const a = graph.input(name, "a", rows(8, "W"));
    const x = graph.input(name, "x", rows(19, "W"));
    const f = graph.input(name, "f", { kind: "factor", rows: 8, cols: 19, branch: 1 });
    const b = unitBatch(n);
    const root = outer(a, x, f);
    const data = inputData([root], b, "outer");
    const want = interpret([root], data, context(b));
    for (const target of targets)
      close((await runOn(target, [root], data, b)).outputs[0]!, want[0]!, `outer of ${n} rows on ${target}`);
  }
});
test.run();
