/**
 * Prefix reuse: what is found, what is void, what gives way; and law 4 over it: the same tokens and
 * log-probabilities, bit for bit, with and without.
 */
import { createHash } from "node:crypto";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { compileAssembly } from "../compiler/emit/asc.ts";
import { hostSources } from "../compiler/emit/host.ts";
import type { HostConfig, Manifest } from "../runtime/bundle.ts";
import type { StepTrace } from "../runtime/engine.ts";
import { type Engine, type GenerateOptions, load } from "../sdk/index.ts";
import { batchOf, bundle, configs, engineOf, fixtures, idsOf, inUse } from "./support/engines.ts";
import { type Ask, Played } from "./support/hosts.ts";
import { poison } from "./support/poison.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("prefix");
const vocab = 128;

// The host alone.
const beginning = (seed: number, n: number): number[] => idsOf(`beginning${seed}`, n, 64);
function finish(p: Played, asks: readonly Ask[]): void {
  for (let i = 0; asks.some((a) => a.ended < 0); i++) {
    assert.ok(i < 5000 && p.step(), "it ends");
  }
  p.checkWhole();
}
/** A request from beginning to end: rows that were computed for it. */
function rowsOf(p: Played, o: Parameters<Played["ask"]>[0]): number {
  const ask = p.ask({ grows: 1, ...o })!;
  finish(p, [ask]);
  return ask.rows;
}

test("a prompt computes what no request before it had, and its last token always", async () => {
  const p = await Played.open();
  const prefix = beginning(1, 100);
  assert.is(rowsOf(p, { length: 100, prefix }), 100);
  assert.is(rowsOf(p, { length: 100, prefix }), 4);
  // Full blocks alone, and never all of a prompt.
  assert.is(rowsOf(p, { length: 97, prefix }), 1);
  assert.is(rowsOf(p, { length: 96, prefix }), 32);
  assert.is(rowsOf(p, { length: 33, prefix }), 1);
  assert.is(rowsOf(p, { length: 32, prefix }), 32);
  // Where two part, each goes on alone, and both stay.
  assert.is(rowsOf(p, { length: 100, prefix: prefix.slice(0, 70) }), 36);
  assert.is(rowsOf(p, { length: 100, prefix }), 4);
  // What was drawn is there too: a chat's next turn. Two tokens were drawn and 31 of 0 follow.
  const turn = p.ask({ length: 40, grows: 25, prefix: beginning(2, 40) })!;
  finish(p, [turn]);
  assert.is(rowsOf(p, { length: 70, prefix: [...turn.ids.subarray(0, 65)] }), 6);
  p.drain(10);
});

test("adapters, their generations and salts have prefixes of their own; scores have none", async () => {
  const p = await Played.open();
  const o = { length: 80, prefix: beginning(1, 80) };
  for (const owner of [
    {},
    { adapter: 1 },
    { salt: 1 },
    { adapter: 1, salt: 1 },
    { salt: 2 },
    { adapter: 2 },
  ]) {
    assert.is(rowsOf(p, { ...o, ...owner }), 80, JSON.stringify(owner));
    assert.is(rowsOf(p, { ...o, ...owner }), 16, JSON.stringify(owner));
  }
  assert.is(rowsOf(p, { ...o, kind: "score", grows: 0 }), 80);
  // Nobody asks for adapter 1 any more, and its blocks are free at once.
  const kept = p.host.exports.keptBlocks();
  p.forget(1);
  assert.is(p.host.exports.keptBlocks(), kept - 4);
  assert.is(rowsOf(p, { ...o, adapter: 1 }), 80);
  assert.is(rowsOf(p, o), 16);
  p.change();
  assert.is(p.host.exports.keptBlocks(), 0);
  assert.is(rowsOf(p, o), 80);
  const off = await Played.open({}, { prefixes: false });
  for (let i = 0; i < 2; i++) assert.is(rowsOf(off, o), 80);
  assert.is(off.host.exports.keptBlocks(), 0);
});

test("requests that come together compute a beginning once, in whatever pieces", async () => {
  for (const budget of [48, 21, 7]) {
    const p = await Played.open({ blocks: 128 }, { budget, idle: budget });
    const prefix = beginning(1, 96);
    const asks = Array.from({ length: 12 }, () => p.ask({ length: 101, grows: 3, prefix })!);
    finish(p, asks);
    const rows = asks.reduce((n, a) => n + a.rows, 0);
    // The first draw is of the last token's row; of each next token there is one.
    assert.is(rows, 96 + 12 * (5 + 2), `budget ${budget}`);
  }
});

test("what is shared needs room once; what is kept gives way, the oldest first", async () => {
  const p = await Played.open({ context: 96, blocks: 6, sequences: 8 });
  const prefix = beginning(1, 64);
  finish(p, [p.ask({ length: 66, grows: 4, prefix })!]);
  // Three blocks each, of which two are the same.
  const asks = Array.from({ length: 4 }, () => p.ask({ length: 66, grows: 20, prefix })!);
  p.step();
  assert.is(p.live.size, 4);
  finish(p, asks);
  // Others take its place, one by one: of two that are kept, the one that was used last stays longer.
  const [a, b] = [beginning(2, 40), beginning(3, 40)];
  rowsOf(p, { length: 40, prefix: a });
  rowsOf(p, { length: 40, prefix: b });
  assert.is(rowsOf(p, { length: 40, prefix: a }), 8);
  // Five blocks of six: no more than one is kept.
  const wide = await Played.open({ context: 192, blocks: 6, sequences: 8 });
  for (const prefix of [a, b, a]) rowsOf(wide, { length: 40, prefix });
  rowsOf(wide, { length: 150 });
  assert.is(wide.evicted, 1);
  assert.is(rowsOf(wide, { length: 40, prefix: a }), 8, "used after the other");
  // Jobs need room as well.
  const job = wide.startJob(0, [64, 64, 64], { most: 1 });
  for (let i = 0; job.steps < 2; i++) {
    assert.ok(i < 2000);
    wide.step();
  }
  wide.drain(100);
  assert.is(wide.host.exports.freeBlocks(), 6);
});

/** What must not be left out, by file. */
const mutations: readonly (readonly [string, string, string])[] = [
  ["prefix.ts", "get(ADAPTER, b) != adapter || ", ""],
  ["prefix.ts", " || get(SALT, b) != salt", ""],
  ["prefix.ts", "get(PARENT, b) != parent || ", ""],
  ["prefix.ts", " || !isOf(b, ids)", ""],
  ["blocks.ts", "    removePrefix(b);\n    free(b);", "    free(b);"],
  ["blocks.ts", "const b: i32 = firstOf(IDLE);", "const b: i32 = get(IDLE, 1);"],
  ["reuse.ts", "if (!mayRead) return;", ""],
  ["reuse.ts", "if (n > 0 && !isEntry(parent)) return;", ""],
  ["index.ts", "  discard(ALL);", ""],
];
const intact = ["prefix.ts", "export function isEntry", "export function isEntry"] as const;
/** A host some line of which is another. */
async function mutant(dir: string, [file, line, other]: (typeof mutations)[number]) {
  const { policy } = JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8")) as Manifest;
  const sources = hostSources(JSON.parse(readFileSync(`${dir}/host.json`, "utf8")) as HostConfig, policy);
  assert.is(sources[file]!.split(line).length, 2, `${file} says once: ${line}`);
  // Every hash the same: what is found is found by comparing.
  const blind = sources["prefix.ts"]!.replace("(<u32>CHAINS - 1)", "0");
  assert.is.not(blind, sources["prefix.ts"]);
  sources["prefix.ts"] = blind;
  sources[file] = sources[file]!.replace(line, other);
  return (await compileAssembly("host", sources, "index.ts", { cache: true, quick: true })) as BufferSource;
}
/** Chats of a few beginnings, adapters and salts, in a pool that is too small for all. */
async function chats(module?: BufferSource): Promise<number> {
  const p = await Played.open({ blocks: 20, context: 128, sequences: 6 }, module ? { module } : {});
  const next = generator("chats");
  const below = (n: number): number => next() % n;
  for (let i = 0; i < 600; i++) {
    // Blocks that differ in what is before them alone, too.
    const prefix = [0, 1, 2].flatMap((k) => beginning(2 * k + below(2), 32)).slice(0, 1 + below(4) * 22);
    p.ask({
      ...{ prefix, length: prefix.length + 1 + below(20), grows: 1 + below(40) },
      ...{ adapter: below(2), salt: below(2) },
    });
    // The same from beginning to end, what is drawn included: all fill the same block at once.
    if (i % 40 === 0) for (let k = 0; k < 3; k++) p.ask({ prefix: beginning(i, 20), length: 20, grows: 30 });
    for (let n = below(6); n > 0; n--) p.step();
    p.checkWhole();
    if (i % 17 === 0) p.forget(below(3));
    if (i % 160 < 159) continue;
    p.drain(5000);
    p.change();
  }
  assert.ok(p.evicted > 0);
  return p.found;
}
test("the laws of the pool can fail: a host that leaves out any part of them turns them red", async () => {
  assert.ok((await chats()) > 1000);
  const dir = await bundle(configs.even);
  assert.is(await chats(await mutant(dir, intact)), await chats(), "hashes find, and decide nothing");
  for (const mutation of mutations) {
    const module = await mutant(dir, mutation);
    const red = await chats(module).then(
      () => false,
      () => true,
    );
    assert.ok(red, `${mutation[0]} without ${mutation[1]}`);
  }
});

// Engines.
interface Answer {
  readonly ids: readonly number[];
  readonly logprobs: readonly number[];
  readonly cached: number;
}
async function answer(engine: Engine, o: GenerateOptions): Promise<Answer> {
  const [ids, logprobs] = [[] as number[], [] as number[]];
  let cached = 0;
  for await (const p of engine.generate(o)) {
    ids.push(p.id);
    logprobs.push(p.logprob);
    assert.ok(ids.length === 1 || p.cached === cached, "an answer has one number of them");
    cached = p.cached;
  }
  return { ids, logprobs, cached };
}
/** What an answer says, whatever was cached. */
const said = ({ ids, logprobs }: Answer) => ({ ids, logprobs });
/** The base, a LoRA from a file, one that is trained here, and tokens of a prefix adapter's own. */
const adapters = [undefined, "peft", "own", "before"] as const;
async function withAdapters(engine: Engine): Promise<Engine> {
  await engine.adapters.load("peft", `${fixtures}peft-even`);
  const data = batchOf(vocab);
  for (const [name, method] of [
    ["own", "lora"],
    ["before", "prefix"],
  ] as const)
    await (await engine.finetune({ name, method, data, steps: 1, learningRate: 0.05, rank: 4 })).done;
  return engine;
}
const opened = async (options: Parameters<typeof engineOf>[1]): Promise<Engine> =>
  withAdapters(await engineOf(configs.even, { train: ["lora", "prefix"], ...options }));
/** A conversation of turns in which each adapter is asked, all at once: everything that was said. */
async function converse(
  engine: Engine,
  turns: number,
  o: Partial<GenerateOptions> = {},
  who: readonly (typeof adapters)[number][] = adapters,
): Promise<Answer[]> {
  const talks = who.map((_, i) => idsOf(`talk${i % 2}`, 37, vocab));
  const answers: Answer[] = [];
  for (let turn = 0; turn < turns; turn++) {
    const given = await Promise.all(
      who.map((adapter, i) =>
        answer(engine, {
          ...{ prompt: talks[i]!, maxTokens: 5 + i, temperature: i % 2 ? 0.8 : 0, seed: turn, ...o },
          ...(adapter && { adapter }),
        }),
      ),
    );
    for (const [i, { ids }] of given.entries()) talks[i]!.push(...ids, ...idsOf(`turn${turn}`, 6, vocab));
    answers.push(...given);
  }
  // Another beginning.
  answers.push(await answer(engine, { prompt: idsOf("other", 37, vocab), maxTokens: 3, ...o }));
  return answers;
}

test("law 4: the same bits with prefixes and without, alone and together", async () => {
  const turns = 5;
  await using without = await opened({});
  const want = await converse(without, turns);
  assert.ok(want.every((a) => a.cached === 0));
  // Once with room for everything, once with hardly any; free and evicted blocks are NaN.
  for (const blocks of [64, 6]) {
    const traces: StepTrace[] = [];
    await using engine = await opened({
      load: { prefixCache: true, capacities: { blocks }, onStep: (t) => traces.push(t) },
    });
    const poisoned = poison(engine.core);
    const free = inUse(engine);
    const first = await converse(engine, turns);
    assert.equal(first.map(said), want.map(said));
    if (blocks === 64) {
      // All of what was computed, in full blocks: of the base after one turn 37 + 5 - 1 tokens.
      const turn = first.slice(adapters.length, 2 * adapters.length).map((a) => a.cached);
      assert.equal(turn, [32, 32, 32, 32 - 4], "tokens of the adapter's own are no tokens of the prompt");
      assert.ok(engine.memory().blocks.cached > 0);
    } else assert.ok(poisoned().evicted > 0);
    // Again, from what is there, and beside jobs that need room.
    const job = await engine.finetune({ name: "job", data: batchOf(vocab), steps: 3 });
    const again = await Promise.all([converse(engine, turns), converse(engine, turns, { salt: "other" })]);
    for (const a of again) assert.equal(a.map(said), want.map(said));
    await job.done;
    const cached = [first, ...again].flat().reduce((n, a) => n + a.cached, 0);
    assert.ok(cached > 0 && traces.reduce((n, t) => n + t.cached, 0) >= cached);
    assert.ok(poisoned().free > 0);
    assert.equal(inUse(engine), free);
  }
});

test("law 4 on webgpu: the same bits with prefixes and without", async () => {
  const who = [undefined, "peft"] as const;
  const answers: Answer[][] = [];
  for (const prefixCache of [false, true]) {
    await using engine = await engineOf(configs.even, { targets: ["webgpu"], load: { prefixCache } });
    await engine.adapters.load("peft", `${fixtures}peft-even`);
    const poisoned = poison(engine.core);
    answers.push(await converse(engine, 2, {}, who));
    assert.ok(poisoned().free > 0);
  }
  const [want, got] = answers as [Answer[], Answer[]];
  assert.equal(got.map(said), want.map(said));
  assert.ok(got.some((a) => a.cached > 0));
});

test("law 4 over prefixes can fail: a host that leaves out whose they are is wrong", async () => {
  const dir = await bundle(configs.even, { train: ["lora", "prefix"] });
  await using without = await opened({});
  const want = await converse(without, 4);
  for (const [i, same] of [
    [-1, true],
    [0, false],
    [3, false],
  ] as const) {
    const changed = `${scratch()}/mutant.weft`;
    cpSync(dir, changed, { recursive: true });
    const wasm = new Uint8Array((await mutant(dir, mutations[i] ?? intact)) as Uint8Array);
    writeFileSync(`${changed}/host.wasm`, wasm);
    const manifest = JSON.parse(readFileSync(`${changed}/manifest.json`, "utf8")) as Manifest;
    const files = {
      ...manifest.files,
      "host.wasm": { bytes: wasm.length, sha256: createHash("sha256").update(wasm).digest("hex") },
    };
    writeFileSync(`${changed}/manifest.json`, JSON.stringify({ ...manifest, files }));
    await using engine = await withAdapters(await load(changed, { device: "wasm" }));
    const got = await converse(engine, 4);
    assert.is(JSON.stringify(got.map(said)) === JSON.stringify(want.map(said)), same, mutations[i]?.[1]);
  }
});

test("a publish, an unload, a merge and full training void what they change, and nothing else", async () => {
  await using engine = await engineOf(configs.even, { train: ["lora", "full"], load: { prefixCache: true } });
  await using without = await engineOf(configs.even, { train: ["lora", "full"] });
  const o = { prompt: idsOf("void", 70, vocab), maxTokens: 3 };
  const asked = async (adapter: string | Record<string, number> | null, cached: number): Promise<void> => {
    const [got, want] = await Promise.all(
      [engine, without].map((e) => answer(e, { ...o, ...(adapter && { adapter }) })),
    );
    assert.is(got!.cached, cached, JSON.stringify(adapter));
    assert.equal(said(got!), said(want!), JSON.stringify(adapter));
  };
  const both = <T>(f: (e: Engine) => Promise<T>): Promise<T[]> => Promise.all([engine, without].map(f));
  const train = (name: string, more: object = {}) =>
    both(async (e) => {
      const rows = { data: batchOf(vocab), steps: 1, learningRate: 0.05 };
      const method = name === "all" ? { method: "full" } : { method: "lora", rank: 4 };
      await (await e.finetune({ name, ...method, ...rows, ...more })).done;
    });
  await train("a");
  await asked(null, 0);
  await asked("a", 0);
  await asked("a", 64);
  await train("a", { from: "a" });
  await asked("a", 0);
  await asked("a@2", 64);
  await asked("a@1", 64);
  await asked({ "a@1": 0.5, "a@2": 0.5 }, 0);
  await asked({ "a@1": 0.5, "a@2": 0.5 }, 64);
  await asked(null, 64);
  // What nobody can ask for any more is free at once.
  const { cached } = engine.memory().blocks;
  await both(async (e) => e.adapters.remove("a"));
  assert.is(engine.memory().blocks.cached, cached - 2 * 2);
  await train("a");
  await asked("a", 0);
  await both((e) => e.merge("a"));
  await asked(null, 0);
  await asked(null, 64);
  await both((e) => e.merge(null));
  await asked(null, 0);
  await asked("a", 0);
  await train("all");
  await asked(null, 0);
  await asked(null, 64);
  // One that was given up leaves the base as it was, and nothing that was computed on the way.
  const job = await engine.finetune({ name: "none", method: "full", data: batchOf(vocab), steps: 50 });
  job.cancel();
  await job.done.catch((e: Error) => assert.is(e.name, "AbortError"));
  await asked(null, 0);
});

test("an answer says how much was cached, per salt; a load without; a wrong salt", async () => {
  await using engine = await load(await bundle(configs.even), { device: "wasm" });
  const o = { prompt: idsOf("salt", 70, vocab), maxTokens: 2 };
  for (const salt of [undefined, "one", "two"]) {
    const { cached } = await engine.complete({ ...o, ...(salt && { salt }) });
    assert.is(cached, 0, `${salt}`);
    assert.is((await engine.complete({ ...o, ...(salt && { salt }) })).cached, 64, `${salt}`);
  }
  assert.is((await engine.complete({ ...o, maxTokens: 0 })).cached, 0);
  const { blocks } = engine.memory();
  assert.equal([blocks.free, blocks.cached], [blocks.total, 6]);
  // Who is given up in the middle of a prompt leaves what it has computed.
  const c = new AbortController();
  const given = engine.complete({ ...o, prompt: idsOf("given up", 100, vocab), signal: c.signal });
  setTimeout(() => c.abort(), 1);
  await given.catch((e: Error) => assert.is(e.name, "AbortError"));
  assert.equal(await engine.score(o.prompt), await engine.score(o.prompt));
  for (const salt of ["", "x".repeat(257), 7 as never])
    await engine.complete({ ...o, salt }).then(
      () => assert.unreachable(`salt ${salt}`),
      (e: { code: string; where: string }) => assert.equal([e.code, e.where], ["WEFT_OPTION", "salt"]),
    );
});
test.run();
