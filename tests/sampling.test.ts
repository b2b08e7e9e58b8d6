/** Drawing tokens: against its definition, and as requests ask for it. */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { COUNTER, EVENT, KIND, NONE } from "../runtime/bundle.ts";
import { Host } from "../runtime/host.ts";
import { bits, collect, configs, engineOf, idsOf, small } from "./support/engines.ts";
import { hostFiles } from "./support/hosts.ts";
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
  const host = await Host.open(manifest, 1, { families: { fewRows: 8 }, lanes: 1 }, await hostFiles(files));
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
test.run();
