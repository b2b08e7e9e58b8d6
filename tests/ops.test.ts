/**
 * Law 1, op by op: every op of the registry on both targets against f64, every gradient against finite
 * differences, random fused chains.
 */
import * as assert from "uvu/assert";
import { vjp } from "../compiler/autodiff.ts";
import { graphKernels, skeletonOf } from "../compiler/kernels/index.ts";
import {
  type Attending,
  add,
  affine,
  allOps,
  attend,
  call,
  crossEntropy,
  dropout,
  type Expr,
  elementwise,
  embed,
  exp,
  expand,
  fma,
  Graph,
  gatherRows,
  inputName,
  interpret,
  konst,
  kvWrite,
  leading,
  linear,
  linearT,
  make,
  mul,
  neg,
  type Op,
  outer,
  overlay,
  place,
  rebias,
  rmsNorm,
  rope,
  rowMax,
  rowSum,
  scaleBySlot,
  select,
  shrink,
  silu,
  slotVector,
  sparse,
  sparseIndex,
  sub,
  type Type,
  type Value,
  valueKey,
  widen,
} from "../ops/index.ts";
import { weightFormats } from "../runtime/formats.ts";
import type { KvName } from "../runtime/kv.ts";
import { writeEntries } from "../runtime/tensors/entries.ts";
import { type Batch, batch, capacities, context, inputData, runOn } from "./support/graphs.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";

const test = suite("ops");
const targets = ["wasm", "webgpu"] as const;
const graph = new Graph();
let scope = 0;
const rows = (cols: number, domain: "T" | "W" | "R" = "T"): Type => ({ kind: "rows", domain, cols });

function close(got: ArrayLike<number>, want: ArrayLike<number>, where: string, tolerance = 3e-5): void {
  assert.is(got.length >= want.length, true, `${where}: ${got.length} values, expected ${want.length}`);
  let max = 0;
  for (let i = 0; i < want.length; i++) max = Math.max(max, Math.abs(want[i]!));
  for (let i = 0; i < want.length; i++)
    if (!(Math.abs(got[i]! - want[i]!) <= tolerance * (1 + max)))
      assert.unreachable(`${where}: element ${i} is ${got[i]}, f64 says ${want[i]}`);
}
/** Values of an op's sample, and its inputs. */
function sample(op: Op, i: number): { outs: Value[]; ins: Value[] } {
  const s = op.samples![i]!;
  const region = `sample${scope++}`;
  const ins = s.ins.map((t, k) =>
    graph.input(region, `${op.name}${i}.${s.attrs?.of && k === s.ins.length - 1 ? s.attrs.of : `x${k}`}`, t),
  );
  const attrs = s.attrs?.of ? { ...s.attrs, of: `${op.name}${i}.${s.attrs.of}` } : s.attrs;
  return { outs: make(op, ins, attrs), ins };
}
function dataFor(op: Op, roots: readonly Value[], b: Batch, seed: string): Record<string, Float64Array> {
  const data = inputData(roots, b, seed);
  for (const { within } of op.samples!)
    if (within) for (const k of Object.keys(data)) data[k] = data[k]!.map((x) => Math.fround(within(x)));
  return data;
}
const withSamples = allOps().filter((o) => o.samples);
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
      const { outputs } = await runOn("webgpu", [y], data, b, { variant: "plain" });
      close(outputs[0]!, want!, name);
      for (const variant of ["few", "many"] as const)
        assert.equal(
          (await runOn("webgpu", [y], data, b, { variant })).outputs,
          outputs,
          `${name} ${variant}`,
        );
      if (format !== "f32") continue;
      // A family that sums chunks in another order has other bits.
      const perturbed = await runOn("webgpu", [y], data, b, {
        variant: "few",
        mutate: (text) => text.replace(/(total\d*) = \1 \+ sums/g, "$1 = $1 * 0.9999999f + sums"),
      });
      assert.not.equal(perturbed.outputs, outputs, name);
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
    const { outputs } = await runOn("webgpu", [y], data, b, { variant: "plain" });
    close(outputs[0]!, interpret([y], data, context(b))[0]!, name);
    assert.equal((await runOn("webgpu", [y], data, b, { variant: "many" })).outputs, outputs, name);
  }
});

/** Rows that are all of one slot: a factor's gradient sums over the rows of a job, and a job has one slot. */
const oneSlot = (b: Batch): Batch => ({
  ...b,
  arrays: { ...b.arrays, slot: b.arrays.slot!.map(() => JOB) },
  header: { ...b.header, slot: JOB },
});
const JOB = 2;

test("each gradient equals central differences in f64", () => {
  const b = oneSlot(batch("grads", 5, 3, "step"));
  const neither = withSamples.filter((op) => Boolean(op.grad) === Boolean(op.constant)).map((op) => op.name);
  assert.equal(neither, [], "an op has a gradient, or says that nothing differentiates it");
  for (const op of withSamples) {
    if (!op.grad) continue;
    op.samples!.forEach((_, i) => {
      const { outs, ins } = sample(op, i);
      const y = outs[0]!;
      assert.is(y.type.kind, "rows", op.name);
      const cot = graph.input(`cot${scope++}`, "cot", y.type);
      const wanted = ins.filter((v) => v.type.kind !== "table");
      const grads = vjp([[y, cot]], wanted);
      checkGradients(op.name, y, cot, wanted, grads, dataFor(op, [y, cot], b, `g ${op.name}`), b);
    });
  }
});

function checkGradients(
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

test("gradients of what a slot holds: low-rank factors behind dropout, gains, biases", () => {
  const name = `slots${scope++}`;
  const b = oneSlot(batch("slots", 7, 4, "step", 11));
  const factor = (of: string, rows: number, cols: number) =>
    graph.input(name, of, { kind: "factor", rows, cols, branch: 2 });
  const x = graph.input(name, "x", rows(12));
  const [fa, fb] = [factor("fa", 8, 12), factor("fb", 8, 9)];
  const [gain, own] = [factor("gain", 1, 12), factor("own", 1, 12)];
  const bias = graph.input(name, "bias", { kind: "vector", n: 12 });
  const lora = expand(scaleBySlot(shrink(dropout(x, 2), fa), 2), fb);
  for (const [what, y, wanted] of [
    ["LoRA", lora, [x, fa, fb]],
    ["gain", mul(x, slotVector(gain, "T", 1)), [x, gain]],
    ["bias", rebias(x, own, bias), [x, own]],
  ] as const) {
    const cot = graph.input(`${name}${what}`, "cot", y.type);
    checkGradients(what, y, cot, wanted, vjp([[y, cot]], wanted), inputData([y, cot], b, what), b);
  }
});

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
    const g = attention(`attention${scope++}`, heads, kvHeads, hd, o, format);
    // A half has 11 bits: what it holds is off by 2^-12 of its size.
    const tolerance = format === "f16" ? 2e-3 : 1e-4;
    const b = unitBatch(32, from);
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
    }
  });

test("rows, embedding, dropout, adapters: ops that need surroundings, on both targets", async () => {
  const name = `together${scope++}`;
  const b = batch("together", 17, 6, "step", 11);
  const x = graph.input(name, "x", rows(12));
  const w = graph.input(name, "table", { kind: "weight", n: 11, k: 12, format: "f32" });
  const fa = graph.input(name, "fa", { kind: "factor", rows: 8, cols: 12, branch: 2 });
  const fb = graph.input(name, "fb", { kind: "factor", rows: 8, cols: 9, branch: 2 });
  const u = scaleBySlot(shrink(dropout(x, 2), fa), 2);
  const roots = [expand(u, fb), dropout(x, 5), add(x, embed(w, "T")), gatherRows(x, "head_row", "R")];
  const data = inputData(roots, b, "together");
  const want = interpret(roots, data, context(b));
  for (const target of targets)
    for (const fuse of [true, false]) {
      const { outputs } = await runOn(target, roots, data, b, { fuse });
      outputs.forEach((out, i) => close(out, want[i]!, `root ${i} on ${target}, fuse ${fuse}`));
    }
});

test("adapters' first products: a lane through all chunks and a lane a chunk give the same bits", async () => {
  const b = batch("chunks", 13, 6, "step", 11);
  const [short, long] = [300, 600];
  const of = (cols: number) => {
    const name = `chunks${scope++}`;
    const x = graph.input(name, "x", rows(cols));
    const f = graph.input(name, "f", { kind: "factor", rows: 8, cols, branch: 2 });
    const root = shrink(x, f);
    const data = inputData([root], b, "chunks");
    return { root, data, x: data[inputName(x)]!, f: data[inputName(f)]! };
  };
  const [few, many] = [of(short), of(long)];
  // What is behind the first columns adds nothing.
  for (const key of ["x", "f"] as const)
    many[key].forEach((_, i) => {
      const [row, col] = [Math.floor(i / long), i % long];
      many[key][i] = col < short ? few[key][row * short + col]! : 0;
    });
  const run = async ({ root, data }: typeof few): Promise<Float64Array> => {
    const [out] = (await runOn("webgpu", [root], data, b)).outputs;
    close(out!, interpret([root], data, context(b))[0]!, "shrink");
    return Float64Array.from(out!);
  };
  assert.equal([...(await run(few))], [...(await run(many))]);
});

test("selections, slot vectors: gathered, scattered, broadcast by slot, on both targets", async () => {
  const name = `selection${scope++}`;
  const b = batch("selection", 19, 6, "step", 11);
  const [channels, rank] = [21, 8];
  const x = graph.input(name, "x", rows(channels));
  const index = graph.input(name, "index", { kind: "factor", rows: 1, cols: rank + channels, branch: 3 });
  const gain = graph.input(name, "gain", { kind: "factor", rows: 1, cols: channels, branch: 3 });
  const u = select(x, index);
  const delta = graph.input(name, "delta", { kind: "factor", rows: rank, cols: 5, branch: 3 });
  const first = leading(x, delta);
  const roots = [
    u,
    place(u, index, channels),
    mul(x, slotVector(gain, "T", 1)),
    first,
    widen(first, 3, channels),
  ];
  const data = inputData(roots, b, "selection");
  // Each slot has its own channels: as many as its rank.
  const words = rank + channels;
  const at = data.index!.fill(0);
  for (let s = 0; s < 4; s++)
    for (let r = 0; r < b.ranks[s]!; r++) {
      const c = (5 * r + 3 * s) % channels;
      at[s * words + r] = c;
      at[s * words + rank + c] = r + 1;
    }
  const want = interpret(roots, data, context(b));
  assert.ok(want[1]!.some((v) => v !== 0) && want[1]!.some((v) => v === 0));
  for (const target of targets)
    for (const fuse of [true, false]) {
      const { outputs } = await runOn(target, roots, data, b, { fuse });
      outputs.forEach((out, i) => close(out, want[i]!, `root ${i} on ${target}, fuse ${fuse}`));
    }
  // Transposes of one another: their gradients are each other.
  const cot = graph.input(name, "cot", rows(channels));
  const few = { ...data, ...inputData([cot], b, "cot") };
  checkGradients("place of select", roots[1]!, cot, [x], vjp([[roots[1]!, cot]], [x]), few, b);
  checkGradients("widen of leading", roots[4]!, cot, [x], vjp([[roots[4]!, cot]], [x]), few, b);
});

test("sparse entries and virtual tokens: rows of several slots, gradients of the job's", async () => {
  const name = `sparse${scope++}`;
  const [outs, ins, entries] = [13, 9, 8];
  const at = sparseIndex(entries, outs, ins);
  const build = (domain: "T" | "W") => {
    const x = graph.input(`${name}${domain}`, "x", rows(ins, domain));
    const values = graph.input(`${name}${domain}`, "values", {
      kind: "factor",
      rows: entries,
      cols: 1,
      branch: 1,
    });
    const index = graph.input(`${name}${domain}`, "index", {
      kind: "factor",
      rows: 1,
      cols: at.words,
      branch: 1,
    });
    const tokens = graph.input(`${name}${domain}`, "tokens", {
      kind: "factor",
      rows: 8,
      cols: outs,
      branch: 4,
    });
    const y = overlay(sparse(x, values, index, outs), tokens);
    const cot = graph.input(`${name}${domain}`, "cot", rows(outs, domain));
    return { x, values, tokens, y, cot, grads: vjp([[y, cot]], [x, values, tokens]) };
  };
  const dataOf = (roots: readonly Value[], b: Batch): Record<string, Float64Array> => {
    const data = inputData(roots, b, "sparse");
    for (let s = 0; s < 4; s++) {
      const slot = new Float32Array(at.words);
      const places = [...new Set(Array.from({ length: 40 }, (_, i) => (i * 29 + s * 7) % (outs * ins)))]
        .slice(0, b.ranks[s])
        .sort((p, q) => p - q);
      writeEntries(slot, entries, outs, ins, places);
      data.index!.set(slot, s * at.words);
    }
    return data;
  };
  // Rows at positions below and beyond every slot's rank.
  const near = (b: Batch): Batch => ({ ...b, arrays: { ...b.arrays, pos: b.arrays.pos!.map((_, r) => r) } });
  const step = near(batch("sparse", 19, 6, "step", 11));
  const forward = build("T");
  const data = dataOf([forward.y, forward.cot], step);
  const [want] = interpret([forward.y], data, context(step));
  for (const target of targets)
    for (const fuse of [true, false])
      close(
        (await runOn(target, [forward.y], data, step, { fuse })).outputs[0]!,
        want!,
        `sparse on ${target}, fuse ${fuse}`,
      );
  checkGradients("sparse", forward.y, forward.cot, [forward.x], forward.grads, data, step);

  const unit = near(batch("sparse unit", 17, 6, "unit", 11));
  const back = build("W");
  const roots = [back.x, back.values, back.tokens].map((v) => back.grads.get(valueKey(v))!);
  const given = dataOf([back.y, back.cot], unit);
  const gradients = interpret(roots, given, context(unit));
  const loss = (d: Record<string, Float64Array>): number =>
    interpret([back.y], d, context(unit))[0]!.reduce((s, v, i) => s + v * d.cot![i]!, 0);
  const [slot, rank] = [2, unit.ranks[2]!];
  for (const [key, words, cols, root] of [
    ["values", entries, 1, 1],
    ["tokens", 8 * outs, outs, 2],
  ] as const)
    for (let i = 0; i < rank * cols; i++) {
      const moved = (by: number): number =>
        loss({ ...given, [key]: given[key]!.map((v, j) => (j === slot * words + i ? v + by : v)) });
      const numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
      assert.ok(
        Math.abs(numeric - gradients[root]![i]!) <= 1e-6 * (1 + Math.abs(numeric)),
        `d/d${key}[${i}] is ${gradients[root]![i]}, differences say ${numeric}`,
      );
    }
  for (const target of targets)
    (await runOn(target, roots, given, unit)).outputs.forEach((out, i) =>
      close(out, gradients[i]!, `gradient ${i} on ${target}`),
    );
});

test("cross-entropy: loss and gradient of a chunk of logits, on both targets", async () => {
  const name = `ce${scope++}`;
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

test("random fused chains, odd tails: fused = unfused bit for bit, both near f64", async () => {
  const next = generator("chains");
  for (let c = 0; c < 6; c++) {
    const name = `chain${scope++}`;
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
  const x = graph.input(`trial${scope++}`, "x", rows(7));
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
    const name = `outer${scope++}`;
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
