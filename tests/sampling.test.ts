/** Drawing tokens: against its definition, and as requests ask for it. */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { CANDIDATE_WORDS, CANDIDATES, COUNTER, EVENT, KIND, NONE, planOf } from "../runtime/bundle.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { Host } from "../runtime/host.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { bits, collect, configs, engineOf, idsOf, small } from "./support/engines.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("sampling");
/** The sampler's draw in [0, 1) from (seed, position). */
const drawOf = (seed: number, position: number): number => {
  let h = seed ^ Math.imul(position + 1, 0x9e3779b9);
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
};

test("sampling: greedy, top-k 1, a peaked nucleus, min-p agree; seeds; the distribution", async () => {
  await using engine = await engineOf(configs.even);
  const prompt = idsOf("sampling", 5, 128);
  const ids = async (o: object): Promise<number[]> =>
    (await collect(engine, { prompt, maxTokens: 8, ...o })).ids;
  const greedy = await ids({});
  for (const o of [{ topK: 1 }, { topP: 1e-6 }, { minP: 1 }])
    assert.equal(await ids({ temperature: 1, seed: 3, ...o }), greedy, JSON.stringify(o));
  assert.equal(await ids({ temperature: 1, seed: 3 }), await ids({ temperature: 1, seed: 3 }));
  assert.is.not(
    JSON.stringify(await ids({ temperature: 1, seed: 3 })),
    JSON.stringify(await ids({ temperature: 1, seed: 4 })),
  );
  // One token, many seeds, against the model's own probabilities under top-k 3.
  const row = (await engine.score(prompt, { logits: true })).logits!.at(-1)!;
  const top = [...row.keys()].sort((a, b) => row[b]! - row[a]!).slice(0, 3);
  const weights = top.map((i) => Math.exp((row[i]! - row[top[0]!]!) / 0.7));
  const total = weights.reduce((a, b) => a + b, 0);
  const seen = new Map<number, number>();
  const n = 600;
  const draws = await Promise.all(
    Array.from({ length: n }, (_, seed) =>
      collect(engine, { prompt, maxTokens: 1, temperature: 0.7, topK: 3, seed }),
    ),
  );
  for (const d of draws) seen.set(d.ids[0]!, (seen.get(d.ids[0]!) ?? 0) + 1);
  top.forEach((id, i) => {
    const p = weights[i]! / total;
    const got = (seen.get(id) ?? 0) / n;
    assert.ok(
      Math.abs(got - p) < 4 * Math.sqrt((p * (1 - p)) / n) + 0.005,
      `token ${id}: ${got}, probability ${p}`,
    );
  });
  assert.is(
    [...seen.keys()].every((id) => top.includes(id)),
    true,
  );
  const scored = await engine.score([...prompt, greedy[0]!]);
  const first = await collect(engine, { prompt, maxTokens: 1 });
  assert.is(first.logprobs[0], scored.logprobs.at(-1), "a streamed logprob is the scored one");
  const penalised = await ids({ repetitionPenalty: 50 });
  assert.is(new Set(penalised).size, penalised.length, "a strong penalty forbids repeats");
  assert.equal(
    await ids({ stopIds: [greedy[0]!] }),
    [greedy[0]!],
    "a stop id ends the answer and is its last token",
  );
});

test("the sampler against its definition in f64, with ties, and odd vocabularies", async () => {
  const { files, manifest } = await compile(writeModel(configs.odd), {
    targets: ["wasm"],
    train: [],
    quick: true,
    capacities: small,
  });
  const { vocab } = manifest.model;
  assert.ok(vocab % 4, "a tail");
  const host = await Host.open(
    manifest,
    1,
    { families: { fewRows: 8 }, lanes: 1 },
    files.get("host.wasm")! as Uint8Array<ArrayBuffer>,
  );
  interface How {
    readonly t: number;
    readonly k: number;
    readonly p: number;
    readonly m: number;
    readonly penalty: number;
    readonly presence: number;
    readonly frequency: number;
    readonly biases: readonly (readonly [number, number])[];
    readonly seed: number;
  }
  const greedy: How = {
    ...{ t: 0, k: 0, p: 1, m: 0, penalty: 1, presence: 0, frequency: 0 },
    ...{ biases: [], seed: 0 },
  };
  /** The token drawn behind a prompt and an answer so far. */
  const step = (
    prompt: readonly number[],
    answer: readonly number[],
    logits: Float32Array,
    o: How,
  ): { id: number; logSum: number } => {
    const { exports } = host;
    const length = prompt.length;
    exports.submit(KIND.generate, length, length + answer.length + 1, 0, 0, 0, 0, NONE, 0);
    const seq = host.events(0, exports.decide(0))[2]!;
    host.tokens(seq).set(prompt);
    const draw = (row: Float32Array, h: How, said: number): Int32Array => {
      exports.setSampling(
        ...([seq, h.t, h.k, h.p, h.m, h.penalty, h.presence, h.frequency] as const),
        ...([h.biases.length, h.seed, 0, said, 0] as const),
      );
      host.setBiases(seq, h.biases);
      exports.schedule(0, 64, 0);
      assert.is(exports.counterOf(0, COUNTER.head), 1);
      host.logits().set(row);
      const events = host.events(0, exports.commit(0));
      assert.is(events[0], EVENT.token);
      assert.is(bits(host.logits().slice(0, vocab)), bits(row), "the row is as it was");
      return events;
    };
    for (const [i, id] of answer.entries()) draw(new Float32Array(vocab).fill(1, id, id + 1), greedy, i);
    const events = draw(logits, o, answer.length);
    return { id: events[2]!, logSum: host.logSums()[0]! };
  };
  const next = generator("sampler");
  const unit = (): number => next() / 2 ** 32;
  const pick = <T>(list: readonly T[]): T => list[next() % list.length]!;
  let certain = 0;
  for (let round = 0; round < 600; round++) {
    // Of few ids, so that some occur in both, and again.
    const few = Array.from({ length: 6 }, () => next() % vocab);
    const prompt = Array.from({ length: 5 }, () => pick(few));
    const answer = Array.from({ length: next() % 5 }, () => pick(few));
    const logits = Float32Array.from(
      { length: vocab },
      () => (unit() + unit() + unit() - 1.5) * pick([1, 6]),
    );
    if (round % 3 === 0) logits.forEach((x, i) => (logits[i] = Math.round(x * 2) / 2));
    if (round % 4 === 0) logits[vocab - 1 - (round % 3)] = 9;
    const o = {
      t: pick([0, 1e-42, 2e-38, 1e-30, 0.4, 1, 3]),
      k: pick([0, 0, 1, 7, vocab + 1]),
      p: pick([1, 1, 0.9, 0.3]),
      m: pick([0, 0, 0.05]),
      penalty: pick([1, 1, 1.3]),
      presence: pick([0, 0, 1.5, -0.7]),
      frequency: pick([0, 0, 0.9, -2]),
      biases: pick([
        [],
        [[few[0]!, 7]],
        [
          [few[1]!, -100],
          [next() % vocab, 3.3],
        ],
      ] as [number, number][][]),
      seed: next() | 0,
    };
    const { id, logSum } = step(prompt, answer, logits, o);

    const exact = (list: readonly number[]): number => {
      const max = Math.max(...list);
      return max + Math.log(list.reduce((sum, x) => sum + Math.exp(x - max), 0));
    };
    assert.ok(
      Math.abs(logSum - exact([...logits])) < 1e-6,
      `log-sum-exp ${logSum}, in f64 ${exact([...logits])}`,
    );
    const penalty = Math.fround(o.penalty);
    const biases = new Map(o.biases);
    const [presence, frequency] = [Math.fround(o.presence), Math.fround(o.frequency)];
    const values = [...logits].map((logit, i) => {
      let x = biases.has(i) ? Math.fround(logit + Math.fround(biases.get(i)!)) : logit;
      if (penalty !== 1 && (prompt.includes(i) || answer.includes(i)))
        x = Math.fround(x > 0 ? x / penalty : x * penalty);
      const count = answer.filter((id) => id === i).length;
      const taken = Math.fround(Math.fround(count * frequency) + presence);
      return count ? Math.fround(x - taken) : x;
    });
    const order = [...values.keys()].sort((a, b) => values[b]! - values[a]! || a - b);
    const t = Math.fround(o.t);
    if (t < 1e-30) {
      // Greedy; at a temperature that is all but zero, one of the largest.
      assert.is(values[id], values[order[0]!], JSON.stringify(o));
      if (t === 0) assert.is(id, order[0]);
      continue;
    }
    let left = order
      .slice(0, o.k || vocab)
      .map((i) => ({ i, w: Math.exp((values[i]! - values[order[0]!]!) / t) }));
    const total = left.reduce((sum, { w }) => sum + w, 0);
    let before = 0;
    let narrow = false;
    left = left.filter(({ w }, rank) => {
      const edge = before - Math.fround(o.p) * total;
      before += w;
      narrow ||= Math.abs(edge) < 1e-5 * total || Math.abs(w - Math.fround(o.m)) < 1e-9;
      return rank === 0 || (edge < 0 && w >= Math.fround(o.m));
    });
    const mass = left.reduce((sum, { w }) => sum + w, 0);
    const u = drawOf(o.seed, prompt.length + answer.length) * mass;
    let sum = 0;
    const want = left.find(({ w }) => {
      sum += w;
      narrow ||= Math.abs(sum - u) < 1e-5 * mass;
      return sum > u;
    });
    if (narrow) continue;
    certain++;
    assert.is(id, want!.i, JSON.stringify(o));
  }
  assert.ok(certain > 200, `${certain} rounds that rounding cannot turn`);
});

test("what is told of a token is the model's probability, whatever was added", async () => {
  await using engine = await engineOf(configs.even);
  const prompt = idsOf("told", 6, 128);
  const plain = await collect(engine, { prompt, maxTokens: 6 });
  const frequency = await collect(engine, { prompt, maxTokens: 6, frequencyPenalty: 2, presencePenalty: 2 });
  assert.is(new Set(frequency.ids).size, frequency.ids.length, "what was said is not said again");
  const [first] = plain.ids;
  const barred = await collect(engine, { prompt, maxTokens: 6, logitBias: { [first!]: -100 } });
  assert.not(barred.ids.includes(first!));
  const forced = await collect(engine, { prompt, maxTokens: 6, logitBias: { 77: 100 } });
  assert.equal(forced.ids, [77, 77, 77, 77, 77, 77]);
  const repetition = await collect(engine, { prompt, maxTokens: 6, repetitionPenalty: 50 });
  for (const said of [frequency, barred, forced, repetition]) {
    const { logprobs } = await engine.score([...prompt, ...said.ids]);
    assert.equal(said.logprobs, [...logprobs.slice(-said.ids.length)]);
  }
  for (const [o, where] of [
    [{ logitBias: { 128: 1 } }, "logitBias"],
    [{ logitBias: { "01": 1 } }, "logitBias.01"],
    [{ logitBias: { 1: 101 } }, "logitBias.1"],
    [{ presencePenalty: 2.5 }, "presencePenalty"],
    [{ frequencyPenalty: Number.NaN }, "frequencyPenalty"],
    [{ logitBias: Object.fromEntries(Array.from({ length: 301 }, (_, i) => [i, 1])) }, "logitBias"],
  ] as const)
    await collect(engine, { prompt, ...(o as object) }).then(
      () => assert.unreachable(where),
      (e) => assert.equal([e.code, e.where], ["WEFT_OPTION", where]),
    );
});
/** Enough logits that a row of them is not read whole; of lanes and of eight at once no multiple. */
const wide = { ...configs.even, num_hidden_layers: 1, vocab_size: 4001 };
const { vocab_size: vocab } = wide;
const compiled = compile(writeModel(wide), {
  targets: ["webgpu"],
  train: [],
  quick: true,
  capacities: small,
});
const unitsOf = (name: string): (() => number) => {
  const next = generator(name);
  return () => next() / 2 ** 32;
};
/** Rows that are awkward to pick from. */
function rowsOf(name: string): Float32Array[] {
  const unit = unitsOf(name);
  const normal = (): number => (unit() + unit() + unit() + unit() - 2) * 4;
  const row = (f: (i: number) => number): Float32Array =>
    Float32Array.from({ length: vocab }, (_, i) => f(i));
  const peaked = row(() => normal());
  for (let i = 0; i < 12; i++) peaked[(i * 397) % vocab] = 8 + i / 3;
  return [
    row(() => normal()),
    peaked,
    // Ties: of a few values, of all, of both zeros, among those that one lane has.
    row(() => Math.round(normal())),
    row(() => 3),
    row((i) => (i % 3 ? -0 : i % 2 ? 0 : -1)),
    row((i) => (i % 128 === 5 ? 9 + (i % 7) : normal())),
    row((i) => -i * 1e-3),
    row((i) => i * 1e30 - 1e33),
  ];
}
const orders = new Map<Float32Array, number[]>();
const orderOf = (row: Float32Array): number[] => {
  const order = orders.get(row) ?? [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b);
  orders.set(row, order);
  return order;
};
const sumOf = (row: Float32Array, max: number, scale: number): number =>
  row.reduce((sum, x) => sum + Math.exp((x - max) * scale), 0);

test("a device picks the largest logits, in order, and sums of exp", async () => {
  const { manifest, files } = await compiled;
  const device = (await openWebGpu(manifest, async (name) => files.get(name)!, "software", { picks: true }))!;
  const { plan } = device;
  const { logits, candidates } = plan.homes;
  const kernels = Object.keys(plan.kernels).filter((name) => /candidates/.test(name));
  assert.is(kernels.length, 1, "one more pipeline, and one more launch");
  const launches = plan.programs.flatMap((p) => p.launches).filter((l) => l.kernel === kernels[0]);
  assert.is(launches.length, 1);
  const rows = rowsOf("picked");
  const odd = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map((x, i) => {
    const row = rows[0]!.slice();
    row[(i * 2501) % vocab] = x;
    return row;
  });
  const at = { space: "arena", group: 0, lane: 0 } as const;
  // Wanted of each, and 1 / temperature.
  const wants = [1, 2, 7, 50, 129, 255, CANDIDATES];
  let told = 0;
  for (const [turn, scale] of [1, 0.3, 2.5, 1e6].entries()) {
    const all = [...rows, ...odd];
    const meta = new Uint32Array(plan.metaWords);
    all.forEach((row, h) => {
      device.write({ ...at, offset: logits + h * vocab }, row);
      meta[plan.blocks.step.arrays.head_wanted! + h] = wants[(h + 3 * turn) % wants.length]!;
      new Float32Array(meta.buffer)[plan.blocks.step.arrays.head_scale! + h] = scale;
    });
    const kernel = Object.keys(plan.kernels).indexOf(kernels[0]!);
    const command = [kernel, manifest.model.layers, 0, all.length, 1, 1];
    const [read] = await device.run(0, Int32Array.from(command), meta, [
      { ...at, offset: candidates!, words: all.length * CANDIDATE_WORDS },
    ]);
    for (const [h, row] of all.entries()) {
      const wanted = wants[(h + 3 * turn) % wants.length]!;
      const [n, max, sum, scaled, ...pairs] = read!.subarray(h * CANDIDATE_WORDS, (h + 1) * CANDIDATE_WORDS);
      if (h >= rows.length) {
        assert.equal([n, sum], [0, 0], "a row with what is no number is left to the host");
        continue;
      }
      const order = orderOf(row).slice(0, wanted);
      assert.is(max, row[order[0]!]);
      for (const [got, s] of [
        [sum!, 1],
        [scaled!, Math.fround(scale)],
      ] as const)
        assert.ok(Math.abs(got / sumOf(row, max!, s) - 1) < 1e-5, `row ${h}: ${got}`);
      // More than four of the largest in one lane: there may be no room for what reaches the bound.
      if (n === 0 && h === 5) continue;
      told++;
      assert.is(n, wanted);
      const ids = order.map((_, i) => pairs[2 * i + 1]!);
      assert.equal(ids, order, `row ${h}, ${wanted} wanted`);
      assert.equal(
        order.map((_, i) => pairs[2 * i]!),
        order.map((id) => row[id]!),
      );
    }
  }
  assert.ok(told >= 28);
  await device.dispose();
});

test("a token told by candidates is the one that the whole row would give", async () => {
  const { manifest, files } = await compiled;
  const open = (picks: boolean): Promise<Host> =>
    Host.open(
      manifest,
      planOf(manifest, "webgpu", manifest.capacities).metaWords,
      { families: { fewRows: 8 }, lanes: 1, picks },
      files.get("host.wasm")! as Uint8Array<ArrayBuffer>,
    );
  const [whole, few] = await Promise.all([open(false), open(true)]);
  interface How {
    readonly t: number;
    readonly k: number;
    readonly p: number;
    readonly m: number;
    readonly bias: number;
    readonly seed: number;
  }
  const unit = unitsOf("told");
  const pick = <T>(list: readonly T[]): T => list[Math.floor(unit() * list.length)]!;
  /** The token; `picks`: what a device would pick, its sums off by as much as they may be. */
  const draw = (
    host: Host,
    row: Float32Array,
    o: How,
    error: number | null,
  ): { id: number; told: boolean } => {
    const { exports } = host;
    exports.submit(KIND.generate, 3, 4, 0, 0, 0, 0, NONE, 0);
    const seq = host.events(0, exports.decide(0))[2]!;
    host.tokens(seq).set([1, 2, 3]);
    exports.setSampling(seq, o.t, o.k, o.p, o.m, 1, 0, 0, o.bias ? 1 : 0, o.seed, 0, 0, 0);
    if (o.bias) host.setBiases(seq, [[o.bias, 0]]);
    exports.schedule(0, 64, 0);
    const read = host.whole(0)[0] === 1;
    assert.is(read, error === null || o.bias > 0 || (o.t > 0 && o.k > CANDIDATES && o.k < vocab));
    let told = false;
    if (read) host.logits().set(row);
    else {
      // What was there before is of other rows.
      host.logits().fill(99, 0, vocab);
      const { arrays } = manifest.targets.webgpu!.blocks.step;
      const wanted = host.meta(0)[arrays.head_wanted!]!;
      const scale = new Float32Array(host.meta(0).slice().buffer)[arrays.head_scale!]!;
      const finite = row.every(Number.isFinite);
      const order = orderOf(row).slice(0, wanted);
      const max = row[order[0]!]!;
      const picked = host.picked()!;
      picked.set([finite ? wanted : 0, max, finite ? sumOf(row, max, 1) * (1 + error!) : 0]);
      picked[3] = sumOf(row, max, scale) * (1 + error!);
      picked.set(
        order.flatMap((id) => [row[id]!, id]),
        4,
      );
      told = exports.settle(0) === 0;
      assert.is(told, host.whole(0)[0] === 0);
      if (!told) host.logits().set(row);
    }
    const id = host.events(0, exports.commit(0))[2]!;
    return { id, told };
  };
  const rows = rowsOf("told");
  const holed = rows[0]!.slice();
  holed.fill(Number.NEGATIVE_INFINITY, 7, 900);
  rows.push(holed);
  const told = { greedy: 0, topK: 0, topP: 0, minP: 0, all: 0, none: 0 };
  let edges = 0;
  for (let round = 0; round < 1000; round++) {
    const row = pick(rows);
    const t = pick([0, 0.2, 0.7, 1, 1, 1.6]);
    const o: How = {
      ...{ t, k: pick([0, 0, 0, 1, 40, 255, 256, 257, vocab]), p: pick([1, 1, 0.95, 0.5, 0.05]) },
      ...{
        m: pick([0, 0, 0, 0.02, 0.3]),
        bias: unit() < 0.02 ? 4 : 0,
        seed: Math.floor(unit() * 2 ** 32) | 0,
      },
    };
    const order = orderOf(row);
    const max = row[order[0]!]!;
    if (t > 0 && unit() < 0.3) {
      // A nucleus that ends within rounding of the mass of a few: the sum's error decides where.
      const n = 1 + Math.floor(unit() * 60);
      const scale = 1 / Math.fround(t);
      const mass = order.slice(0, n).reduce((sum, id) => sum + Math.exp((row[id]! - max) * scale), 0);
      Object.assign(o, { k: 0, p: (mass / sumOf(row, max, scale)) * (1 + pick([-1, 0, 1]) * 2 ** -22) });
      edges++;
    }
    const want = draw(whole, row, o, null).id;
    const got = draw(few, row, o, pick([-1, 0, 1]) * 5e-6);
    assert.is(got.id, want, JSON.stringify({ row: rows.indexOf(row), ...o }));
    if (!got.told) told.none++;
    else if (!t) told.greedy++;
    else if (o.k > 0 && o.k < vocab) told.topK++;
    else if (o.p < 1) told.topP++;
    else if (o.m > 0) told.minP++;
    else told.all++;
  }
  assert.ok(edges > 150 && Math.min(...Object.values(told)) > 10, JSON.stringify(told));
});

test("of a token at most 4 KiB are read back, and it is as if the whole row were", async () => {
  const { files } = await compiled;
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const engine = await Core.open(reader, async (m, file) => {
    return (await openWebGpu(m, file, "software", { picks: true }))!;
  });
  assert.is(engine.invariance, "verified");
  const { prototype } = GPUCommandEncoder;
  const { copyBufferToBuffer } = prototype;
  let bytes = 0;
  prototype.copyBufferToBuffer = function (this: GPUCommandEncoder, ...a: unknown[]) {
    const [, , to, , size] = a as [GPUBuffer, number, GPUBuffer, number, number];
    if (to.usage & GPUBufferUsage.MAP_READ) bytes += size;
    return (copyBufferToBuffer as (...a: unknown[]) => undefined).apply(this, a);
  } as typeof copyBufferToBuffer;
  try {
    const prompt = idsOf("wide", 9, vocab);
    const maxTokens = 8;
    for (const how of [
      { logprobs: 5 },
      { temperature: 0.8, topK: 40, seed: 5, logprobs: 256 },
      { temperature: 1, topP: 0.01, seed: 6 },
      { temperature: 1, minP: 0.98, seed: 7 },
    ]) {
      const told = async (o: object) => {
        bytes = 0;
        const pieces = [];
        for await (const p of engine.generate({ prompt, maxTokens, ...how, ...o })) {
          const { id, logprob, top } = p;
          pieces.push({ id, logprob, top });
        }
        return { pieces, bytes: bytes / pieces.length };
      };
      const few = await told({});
      // A bias of nothing: the row is read whole, as all rows were.
      const whole = await told({ logitBias: { 3: 0 } });
      assert.equal(few.pieces, whole.pieces, JSON.stringify(how));
      assert.ok(few.bytes <= 4096, `${few.bytes} bytes a token`);
      assert.ok(whole.bytes >= 4 * vocab);
      const scored = await engine.score([...prompt, ...few.pieces.map((p) => p.id)]);
      assert.equal(
        few.pieces.map((p) => p.logprob),
        [...scored.logprobs.slice(-maxTokens)],
      );
      console.log(`    ${JSON.stringify(how)}: ${few.bytes} bytes a token, of the whole row ${whole.bytes}`);
    }
  } finally {
    prototype.copyBufferToBuffer = copyBufferToBuffer;
    await engine.dispose();
  }
});
test.run();
