/** What a device picks out of logits, and tokens that are drawn from it: those of the whole row. */
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { CANDIDATE_WORDS, CANDIDATES, KIND, MAX_RAISED, NONE, planOf } from "../runtime/bundle.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { Host } from "../runtime/host.ts";
import type { Sampling } from "../runtime/sampling.ts";
import { openWebGpu } from "../runtime/webgpu.ts";
import { configs, idsOf, small } from "./support/engines.ts";
import { hostFiles } from "./support/hosts.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { writeModel } from "./support/tiny.ts";

const test = suite("candidates");
/** Logits that are picked from in three parts; of lanes and of eight at once no multiple. */
const wide = { ...configs.even, num_hidden_layers: 1, vocab_size: 16391 };
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
  for (let i = 0; i < 12; i++) peaked[(i * 1397) % vocab] = 8 + i / 3;
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
  assert.is(kernels.length, 2, "of parts, and what folds these");
  const launches = plan.programs.flatMap((p) => p.launches).filter((l) => kernels.includes(l.kernel));
  assert.equal(
    launches.map((l) => l.grid[1]),
    [3, 1].map((mul) => ({ count: "one", mul, div: 1 })),
  );
  const rows = rowsOf("picked");
  const odd = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map((x, i) => {
    const row = rows[0]!.slice();
    row[(i * 6501) % vocab] = x;
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
    const commands = launches.flatMap(({ kernel, grid }) => {
      const at = Object.keys(plan.kernels).indexOf(kernel);
      return [at, manifest.model.layers, 0, all.length, grid[1].mul, 1];
    });
    const [read] = await device.run(0, Int32Array.from(commands), meta, [
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
  const open = async (picks: boolean): Promise<Host> =>
    Host.open(
      manifest,
      planOf(manifest, "webgpu", manifest.capacities).metaWords,
      { families: { fewRows: 8 }, lanes: 1, picks },
      await hostFiles(files),
    );
  const [whole, few] = await Promise.all([open(false), open(true)]);
  interface How {
    readonly t: number;
    readonly k: number;
    readonly p: number;
    readonly m: number;
    readonly seed: number;
    /** Tokens before, of which the last are of the answer. */
    readonly ids: readonly number[];
    readonly said: number;
    readonly repetition: number;
    readonly presence: number;
    readonly frequency: number;
    readonly biases: readonly (readonly [id: number, bias: number])[];
  }
  const changes = (o: How): boolean =>
    o.repetition !== 1 || o.presence !== 0 || o.frequency !== 0 || o.biases.length > 0;
  const lifted = (o: How): number[] => o.biases.flatMap(([id, bias]) => (bias < 0 ? [] : [id]));
  const lifts = (o: How): boolean =>
    o.repetition < 1 || o.presence < 0 || o.frequency < 0 || lifted(o).length > MAX_RAISED;
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
    const n = o.ids.length;
    exports.submit(KIND.generate, n, n + 1, 0, 0, 0, 0, NONE, 0);
    const seq = host.events(0, exports.decide(0))[2]!;
    host.tokens(seq).set(o.ids);
    const { repetition, presence, frequency, biases } = o;
    exports.setSampling(
      ...[seq, o.t, o.k, o.p, o.m, repetition, presence, frequency, biases.length, o.seed, 0, o.said, 0],
    );
    host.setBiases(seq, biases);
    exports.schedule(0, 64, 0);
    const read = host.whole(0)[0] === 1;
    assert.is(read, error === null || lifts(o) || (o.t > 0 && o.k > CANDIDATES && o.k < vocab));
    let told = false;
    if (read) host.logits().set(row);
    else {
      // What was there before is of other rows.
      host.logits().fill(99, 0, vocab);
      const { arrays } = manifest.targets.webgpu!.blocks.step;
      const wanted = host.meta(0)[arrays.head_wanted!]!;
      const scale = new Float32Array(host.meta(0).slice().buffer)[arrays.head_scale!]!;
      const single = host.raised(0)[0]!;
      assert.equal(single, lifted(o));
      for (const id of single) host.logits()[id] = row[id]!;
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
  const changed = { told: 0, none: 0, lifted: 0 };
  let edges = 0;
  for (let round = 0; round < 2000; round++) {
    const row = pick(rows);
    const t = pick([0, 0.2, 0.7, 1, 1, 1.6]);
    const order = orderOf(row);
    const max = row[order[0]!]!;
    /** An id: of the likeliest, of other candidates, of any. */
    const some = (): number => order[Math.floor(unit() * pick([4, 40, 400, vocab]))]!;
    const several = <T>(most: number, of: () => T): T[] =>
      Array.from({ length: Math.floor(unit() * (most + 1)) }, of);
    const plain = unit() < 0.5;
    const o: How = {
      ids: [1, 2, ...several(plain ? 0 : 40, some)],
      said: 1,
      repetition: plain ? 1 : pick([1, 1, 1.1, 2, 0.9]),
      presence: plain ? 0 : pick([0, 0, 0.5, 2, -0.5]),
      frequency: plain ? 0 : pick([0, 0, 0.3, 1.5]),
      biases: plain
        ? []
        : [
            ...new Map(
              several(pick([0, 2, 30]), () => [some(), pick([-100, -3, -0.1, -1, 0, 2, 100])] as const),
            ),
          ],
      ...{ t, k: pick([0, 0, 0, 1, 40, 255, 256, 257, vocab]), p: pick([1, 1, 0.95, 0.5, 0.05]) },
      ...{ m: pick([0, 0, 0, 0.02, 0.3]), seed: Math.floor(unit() * 2 ** 32) | 0 },
    };
    if (plain && t > 0 && unit() < 0.3) {
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
    if (changes(o)) {
      changed[got.told ? "told" : "none"]++;
      if (got.told && lifted(o).includes(got.id)) changed.lifted++;
    } else if (!got.told) told.none++;
    else if (!t) told.greedy++;
    else if (o.k > 0 && o.k < vocab) told.topK++;
    else if (o.p < 1) told.topP++;
    else if (o.m > 0) told.minP++;
    else told.all++;
  }
  console.log(`    ${JSON.stringify({ told, changed })}`);
  assert.ok(changed.told > 200 && changed.none > 10 && changed.lifted > 10, JSON.stringify(changed));
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
    const hows: (Sampling & { logprobs?: number })[] = [
      { logprobs: 5 },
      { temperature: 0.8, topK: 40, seed: 5, logprobs: 256 },
      { temperature: 1, topP: 0.01, seed: 6 },
      { temperature: 1, minP: 0.98, seed: 7 },
      { presencePenalty: 1, logitBias: { 7: -100, 9: 0.5 }, logprobs: 3 },
      { temperature: 0.7, topK: 40, repetitionPenalty: 1.3, frequencyPenalty: 0.5, seed: 8 },
    ];
    for (const how of hows) {
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
      // Of more biases than are read one by one the row is read whole, as all rows were.
      const nothing = Array.from({ length: MAX_RAISED + 1 }, (_, i) => [20 + i, 0] as const);
      const whole = await told({ logitBias: { ...how.logitBias, ...Object.fromEntries(nothing) } });
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
