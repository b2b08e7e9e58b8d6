/** What rounding took, given back by an adapter: least squares a matrix, and what a bundle makes of it. */
import { writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import type { Rounded } from "../compiler/corrections/correction.ts";
import { eora } from "../compiler/corrections/eora.ts";
import type { Factors } from "../compiler/corrections/lowrank.ts";
import { lrec } from "../compiler/corrections/lrec.ts";
import { openProduct } from "../compiler/corrections/product.ts";
import { type Batch, Streams } from "../compiler/corrections/streams.ts";
import type { FormatOption } from "../compiler/formats.ts";
import type { ModelSource } from "../compiler/source.ts";
import type { Capacities } from "../compiler/target.ts";
import { type EvalCtx, experts, Graph, interpret } from "../ops/index.ts";
import { encode } from "../runtime/safetensors.ts";
import { restore, store } from "../runtime/values.ts";
import { evaluate } from "../sdk/evaluate.ts";
import { compile, type Engine, load } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { batchOf, configs, idsOf, small } from "./support/engines.ts";
import { uniform } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { type Config, scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("correct");

/** A · B of f64 matrices [m, k] and [k, n]. */
function times(a: Float64Array, b: Float64Array, m: number, k: number, n: number): Float64Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let l = 0; l < k; l++)
      for (let j = 0; j < n; j++) out[i * n + j] = out[i * n + j]! + a[i * k + l]! * b[l * n + j]!;
  return out;
}
const turned = (a: Float64Array, rows: number, cols: number): Float64Array =>
  Float64Array.from({ length: rows * cols }, (_, i) => a[(i % rows) * cols + Math.floor(i / rows)]!);
/** Eigenvalues of a symmetric matrix, largest first: Jacobi's rotations until nothing is left beside them. */
function eigenvalues(symmetric: Float64Array, n: number): number[] {
  const a = symmetric.slice();
  const at = (i: number, j: number): number => a[i * n + j]!;
  for (let sweep = 0; sweep < 30; sweep++)
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        if (Math.abs(at(p, q)) < 1e-300) continue;
        const theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
        const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const [c, s] = [1 / Math.hypot(t, 1), t / Math.hypot(t, 1)];
        for (let k = 0; k < n; k++) {
          const [x, y] = [at(k, p), at(k, q)];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (let k = 0; k < n; k++) {
          const [x, y] = [at(p, k), at(q, k)];
          a[p * n + k] = c * x - s * y;
          a[q * n + k] = s * x + c * y;
        }
      }
  return Array.from({ length: n }, (_, i) => at(i, i)).sort((x, y) => y - x);
}
const [OUT, IN, ROWS] = [24, 40, 30];
/** A rounded matrix, some channels of whose inputs are much larger than others, as in a model. */
function example(): Rounded {
  const exact = uniform("matrix", OUT * IN);
  const held = restore("q4", store("q4", exact, OUT, IN, "matrix"), OUT, IN);
  const scale = (i: number): number => 0.1 + 3 * ((i % IN) / IN) ** 4;
  const entersExact = uniform("inputs", ROWS * IN).map((x, i) => x * scale(i));
  const noise = uniform("noise", ROWS * IN);
  return {
    ...{ shape: [OUT, IN], exact, held, entersExact },
    enters: entersExact.map((x, i) => x + 0.05 * scale(i) * noise[i]!),
  };
}
/** ‖(M − BᵀA)·C^½‖² for C = XᵀX + damping · 1. */
function weighted(m: Float64Array, c: Float64Array): number {
  const mc = times(m, c, OUT, IN, IN);
  return m.reduce((sum, v, i) => sum + v * mc[i]!, 0);
}
function covariance(x: Float32Array): Float64Array {
  const rows = Float64Array.from(x);
  const c = times(turned(rows, ROWS, IN), rows, IN, ROWS, IN);
  const mean = rows.reduce((sum, v) => sum + v * v, 0) / IN;
  for (let i = 0; i < IN; i++) c[i * IN + i] = c[i * IN + i]! + 0.01 * mean;
  return c;
}
function without(m: Float64Array, { a, b }: Factors, rank: number): Float64Array {
  const product = times(turned(Float64Array.from(b), rank, OUT), Float64Array.from(a), OUT, rank, IN);
  return m.map((v, i) => v - product[i]!);
}
/** What is left of M at the best of its rank: eigenvalues of M·C·Mᵀ beyond those. */
function leastLeft(m: Float64Array, c: Float64Array, rank: number): number {
  const mcm = times(times(m, c, OUT, IN, IN), turned(m, OUT, IN), OUT, IN, OUT);
  return eigenvalues(mcm, OUT)
    .slice(rank)
    .reduce((x, y) => x + y, 0);
}
const ranks = [1, 4, 8, 16, 24];

test("eora: of each rank the least weighted error that there is, and none at the full one", async () => {
  const rounded = example();
  const product = await openProduct();
  const error = Float64Array.from(rounded.exact, (x, i) => x - rounded.held[i]!);
  const c = covariance(rounded.entersExact);
  const all = weighted(error, c);
  let before = all;
  for (const rank of ranks) {
    const left = weighted(without(error, eora.fit(product, rounded, rank), rank), c);
    assert.ok(left < before, `rank ${rank}: ${left}, after ${before}`);
    before = left;
    const least = leastLeft(error, c, rank);
    assert.ok(left <= 1.03 * least + 1e-9 * all, `rank ${rank}: ${left / all}, of ${least / all}`);
  }
  assert.ok(before < 1e-9 * all, `full: ${before / all}`);
});

test("of no rows both are the singular vectors of the error alone", async () => {
  const product = await openProduct();
  const none = new Float32Array(0);
  const rounded = { ...example(), entersExact: none, enters: none };
  const error = Float64Array.from(rounded.exact, (x, i) => x - rounded.held[i]!);
  const identity = Float64Array.from({ length: IN * IN }, (_, i) => (i % (IN + 1) ? 0 : 1));
  for (const rank of ranks.slice(0, -1)) {
    const factors = eora.fit(product, rounded, rank);
    const [left, least] = [
      weighted(without(error, factors, rank), identity),
      leastLeft(error, identity, rank),
    ];
    assert.ok(left <= 1.03 * least, `rank ${rank}: ${left}, of ${least}`);
    assert.equal(lrec.fit(product, rounded, rank), factors);
  }
});

test("an expert's correction is of the rows that chose it, or of its error alone; all are one", async () => {
  const product = await openProduct();
  const [count, top, of] = [4, 2, 10];
  const matrices = Array.from({ length: count }, (_, e) => uniform(`expert ${e}`, OUT * IN));
  const weights = {
    read: (path: string, _: unknown, from: number, to: number) =>
      matrices[Number(/\d+/.exec(path))]!.slice(from * IN, to * IN),
    planes: () => null,
  };
  // What rows chose, by stream: the third is not all that the first was; nobody chose the last.
  const choices = [0, 0, 1].map((other) =>
    Array.from({ length: of }, (_, r) => (r < other ? [2, 1] : [r % 3, (r + 1) % 3])),
  );
  const chosen = Float64Array.from(choices.flat(2));
  for (const wide of [IN, top * IN]) {
    const x = Float64Array.from(uniform(`enters ${wide}`, 3 * of * wide));
    const rowOf = (s: number, r: number, e: number): Float32Array => {
      const from = (s * of + r) * wide + (wide === IN ? 0 : choices[s]![r]!.indexOf(e) * IN);
      return Float32Array.from(x.subarray(from, from + IN));
    };
    const graph = new Graph();
    const [at, which] = [wide, top].map((cols, i) =>
      graph.input("experts", ["x", "chosen"][i]!, { kind: "rows", domain: "T", cols }),
    );
    const type = { kind: "experts", count, n: OUT, k: IN, format: "q4" } as const;
    const y = experts(at!, which!, graph.input("experts", "{e}", type), "y");
    for (const correction of [eora, lrec]) {
      const streams = new Streams(
        { weights } as unknown as ModelSource,
        { rows: of } as Batch,
        product,
        correction,
      );
      const instead = streams.instead((name) => `experts.${name}.w`, new Map([["{e}", 4]]));
      const [out] = interpret([y], { x, chosen }, {} as EvalCtx, instead);
      assert.equal([...streams.unreached], ["experts.3"]);
      const held = matrices.map((m, e) => restore("q4", store("q4", m, OUT, IN, `${e}`), OUT, IN));
      streams.fitted.forEach(({ a, b, path }, e) => {
        assert.is(path, `experts.${e}.w`);
        const both = choices[0]!.flatMap((c, r) => (c.includes(e) && choices[2]![r]!.includes(e) ? [r] : []));
        const rows = (s: number) => Float32Array.from(both.flatMap((r) => [...rowOf(s, r, e)]));
        const rounded = { exact: matrices[e]!, held: held[e]!, entersExact: rows(0), enters: rows(2) };
        assert.equal({ a, b }, correction.fit(product, { ...rounded, shape: [OUT, IN] }, 4), `${e}`);
      });
      assert.is(streams.fitted.length, count);
      choices.forEach((stream, s) => {
        stream.forEach((mine, r) => {
          mine.forEach((e, j) => {
            const { a, b } = streams.fitted[e]!;
            const input = rowOf(s, r, e);
            for (let o = 0; o < OUT; o++) {
              let want = 0;
              for (let i = 0; i < IN; i++) {
                let w = (s ? held : matrices)[e]![o * IN + i]!;
                if (s === 2) for (let q = 0; q < 4; q++) w += b[q * OUT + o]! * a[q * IN + i]!;
                want += w * input[i]!;
              }
              const got = out![((s * of + r) * top + j) * OUT + o]!;
              assert.ok(Math.abs(got - want) < 1e-4, `${s} ${r} ${j} ${o}: ${got}, ${want}`);
            }
          });
        });
      });
    }
  }
});

test("lrec: what leaves the matrix, with what enters it now, is nearest to what left the exact one", async () => {
  const rounded = example();
  const product = await openProduct();
  const [x, y] = [rounded.entersExact, rounded.enters].map((v) => Float64Array.from(v)) as [
    Float64Array,
    Float64Array,
  ];
  const w = Float64Array.from(rounded.exact);
  const error = w.map((v, i) => v - rounded.held[i]!);
  // The unconstrained least squares by its gradient: (T − M·Yᵀ)·Y + λ(ΔW − M) = 0 at the full rank.
  const c = covariance(rounded.enters);
  const full = lrec.fit(product, rounded, OUT);
  const m = without(new Float64Array(OUT * IN), full, OUT).map((v) => -v);
  const wanted = times(w, turned(x, ROWS, IN), OUT, IN, ROWS);
  const held = times(Float64Array.from(rounded.held), turned(y, ROWS, IN), OUT, IN, ROWS);
  const target = wanted.map((v, i) => v - held[i]!);
  const lambda = (0.01 * y.reduce((sum, v) => sum + v * v, 0)) / IN;
  const [ty, mc] = [times(target, y, OUT, ROWS, IN), times(m, c, OUT, IN, IN)];
  const size = Math.max(...ty.map(Math.abs));
  ty.forEach((v, i) => {
    const gradient = v + lambda * error[i]! - mc[i]!;
    assert.ok(Math.abs(gradient) < 1e-3 * size, `${i}: ${gradient} of ${size}`);
  });
  const loss = (f: Factors, rank: number): number => {
    const left = without(error, f, rank);
    const d = error.map((v, i) => v - left[i]!);
    const out = times(d, turned(y, ROWS, IN), OUT, IN, ROWS);
    return (
      target.reduce((sum, v, i) => sum + (v - out[i]!) ** 2, 0) +
      lambda * left.reduce((sum, v) => sum + v * v, 0)
    );
  };
  const bottom = loss(full, OUT);
  for (const rank of ranks) {
    const mine = loss(lrec.fit(product, rounded, rank), rank);
    assert.ok(
      mine <= loss(eora.fit(product, rounded, rank), rank) * (1 + 1e-6),
      `rank ${rank}: no worse than eora`,
    );
    const least = bottom + leastLeft(m, c, rank);
    assert.ok(mine <= 1.03 * least, `rank ${rank}: ${mine}, of ${least}`);
  }
});

async function corrected(
  config: Config,
  how: "eora" | "lrec",
  format: FormatOption = "q4",
  capacities: Partial<Capacities> = {},
  model = writeModel(config),
): Promise<string> {
  const out = `${scratch()}/b.weft`;
  await compile(model, out, {
    ...{ targets: ["wasm"], quick: true, correct: how, capacities: { ...small, ...capacities } },
    ...{ format, calibrate: { data: batchOf(config.vocab_size) } },
  });
  return out;
}
const lossOf = async (engine: Engine, vocab: number): Promise<number> =>
  (await evaluate(engine, batchOf(vocab))).loss;
async function exactLoss(config: Config): Promise<number> {
  const out = `${scratch()}/b.weft`;
  await compile(writeModel(config), out, {
    targets: ["wasm"],
    format: "f32",
    quick: true,
    capacities: small,
  });
  await using engine = await load(out, { device: "wasm" });
  return await lossOf(engine, config.vocab_size);
}
const near = (got: number, want: number, what: string): void =>
  assert.ok(Math.abs(got - want) <= 2e-4, `${what}: ${got}, and not ${want}`);

for (const name of ["odd", "gemma3", "phi3", "gpt2", "qwen3_moe", "qwen3_moe_mixed"] as const)
  test(`${name}: what compile tells is what engines say; the correction is nearer to the checkpoint`, async () => {
    const config = configs[name];
    const vocab = config.vocab_size;
    const exact = await exactLoss(config);
    for (const how of name === "odd" ? (["eora", "lrec"] as const) : (["lrec"] as const)) {
      await using engine = await load(await corrected(config, how), { device: "wasm" });
      const { loss, divergence } = engine.manifest.correction!;
      near(loss.exact, exact, "loss of the checkpoint");
      near(await lossOf(engine, vocab), loss.corrected, "loss with the correction");
      engine.adapters.remove("correction");
      near(await lossOf(engine, vocab), loss.rounded, "loss without");
      assert.ok(divergence.corrected < divergence.rounded, JSON.stringify(divergence));
      if (name !== "qwen3_moe") continue;
      // Of 24 experts some meet no row, which is told; experts corrected too, it is nearer than without.
      assert.ok(engine.manifest.correction!.unreached! > 0);
      await using others = await load(await corrected(config, how, "q4", { experts: 0 }), { device: "wasm" });
      const left = others.manifest.correction!.divergence;
      assert.is(left.rounded, divergence.rounded);
      assert.ok(divergence.corrected < left.corrected, JSON.stringify([divergence, left]));
    }
  });

test("a correction of the full rank gives all of it back", async () => {
  const layersAlone = { default: "q4", embed_tokens: "f32", lm_head: "f32" } as const;
  const bundle = await corrected(configs.mixtral, "eora", layersAlone, { rank: 64, experts: 40 });
  await using engine = await load(bundle, { device: "wasm" });
  const { loss, divergence } = engine.manifest.correction!;
  assert.ok(divergence.rounded > 1e-4, `${divergence.rounded}`);
  assert.ok(divergence.corrected < 1e-6 * divergence.rounded, `${divergence.corrected}`);
  near(loss.corrected, loss.exact, "loss");
});

test("its folder names the modules that were rounded, where others of that name were not", async () => {
  // Zeros are what they were. Experts call theirs as a dense layer does, which here is none of the rounded.
  const kept = /layers\.(0|2|3)\.mlp\.|layers\.3\.self_attn\.q_proj/;
  const config = configs.qwen3_moe_mixed;
  const model = writeModel(config);
  const tensors = tensorsOf(config).map((t) => (kept.test(t.name) ? { ...t, data: t.data.map(() => 0) } : t));
  writeFileSync(`${model}/model.safetensors`, encode(tensors));
  await using engine = await load(await corrected(config, "lrec", "q4", {}, model), { device: "wasm" });
  const { divergence, loss } = engine.manifest.correction!;
  near(await lossOf(engine, config.vocab_size), loss.corrected, "loss with the correction");
  assert.ok(divergence.corrected < divergence.rounded, JSON.stringify(divergence));
});

test("requests and jobs of LoRA start from it, while it is there", async () => {
  const out = await corrected(configs.even, "eora");
  await using engine = await load(out, { device: "wasm" });
  const prompt = idsOf("prompt", 9, 128);
  const ask = { prompt, maxTokens: 6, temperature: 0 } as const;
  assert.is((await engine.complete(ask)).adapter, "correction@1");
  const data = batchOf(128);
  const job = await engine.finetune({ data, name: "notes", steps: 0 });
  await job.done;
  const content = (ref: string) => engine.core.adapters.find(ref).content;
  assert.equal(
    content("notes").tensors,
    content("correction").tensors,
    "a job of no steps is what it starts from",
  );
  await code("WEFT_OPTION", () => engine.finetune({ data, name: "other", rank: 4 }), /starts from/);
  const dir = `${scratch()}/correction`;
  await engine.adapters.get("correction").save(dir);
  engine.adapters.remove("correction");
  assert.is((await engine.complete(ask)).adapter, "base");
  const fresh = await engine.finetune({ data, name: "fresh", rank: 4, steps: 0 });
  await fresh.done;
  assert.is(content("fresh").config.rank, 4);
  await engine.adapters.load("again", dir);
  assert.equal(content("again").tensors, content("notes").tensors, "saved = loaded");
});

test("what cannot be corrected is refused, with nothing written", async () => {
  const [model, out] = [writeModel(configs.even), `${scratch()}/b.weft`];
  const calibrate = { data: batchOf(128) };
  const common = { targets: ["wasm"], quick: true, capacities: small } as const;
  await code("WEFT_OPTION", () => compile(model, out, { ...common, correct: "eora" }), /calibrate/);
  const q = { ...common, format: "q4", calibrate } as const;
  await code("WEFT_OPTION", () => compile(model, out, { ...q, correct: "svd" as "eora" }), /eora/);
  await code("WEFT_OPTION", () => compile(model, out, { ...q, format: "f32", correct: "eora" }), /rounds/);
  const noLora = { train: ["ia3"], methods: [], correct: "eora" } as const;
  await code("WEFT_OPTION", () => compile(model, out, { ...q, ...noLora }), /lora/);
  const bad = { data: [{ input_ids: [1, 999], labels: [1, 999] }] };
  await code("WEFT_OPTION", () => compile(model, out, { ...q, calibrate: bad, correct: "lrec" }), /128/);
  await code("WEFT_BUNDLE", () => load(out));
});

test.run();
