/**
 * An engine that survives: whatever ends under it, answers go on with the same tokens, jobs end with the same
 * bits, adapters are what they were, and three losses are one error.
 */
import { existsSync } from "node:fs";
import * as assert from "uvu/assert";
import { Reports } from "../runtime/report.ts";
import {
  type Engine,
  type GenerateOptions,
  type LoadOptions,
  load,
  type Piece,
  WeftError,
} from "../sdk/index.ts";
import { ReplayEngine } from "../sdk/replay/engine.ts";
import { Local } from "../sdk/replay/local.ts";
import type { RecoverEvent, ReplayOptions } from "../sdk/replay/options.ts";
import { code } from "./support/code.ts";
import { devicesOf } from "./support/devices.ts";
import { batchOf, bundle, configs, contentBits, idsOf } from "./support/engines.ts";
import { generator } from "./support/random.ts";
import { rounds } from "./support/scale.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { withWorkers } from "./support/threads.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("replay");

/** An engine that survives, and those that it has had. */
interface Surviving {
  readonly engine: ReplayEngine;
  readonly engines: Engine[];
  readonly events: RecoverEvent[];
  /** The engine that computes now ends. */
  readonly kill: () => void;
}
async function surviving(location: string, o: LoadOptions, replay: ReplayOptions = {}): Promise<Surviving> {
  const engines: Engine[] = [];
  const events: RecoverEvent[] = [];
  const open = async (): Promise<Local> => {
    const engine = await load(location, o);
    engines.push(engine);
    return new Local(engine);
  };
  const reports = new Reports((e) => {
    throw e;
  });
  const onRecover = (e: RecoverEvent): void => void events.push(e);
  const engine = await ReplayEngine.open(open, { ...replay, onRecover }, reports);
  const kill = (): void =>
    engines
      .at(-1)!
      .core.fail(
        new WeftError({ code: "WEFT_DEVICE_LOST", where: "test", expected: "a device", found: "none" }),
      );
  return { engine, engines, events, kill };
}
const wasm = { device: "wasm", threads: 1 } as const;
const forever = { losses: 1000, checkpoint: 0.001 } as const;
const all = async (stream: AsyncIterable<Piece>): Promise<Piece[]> => {
  const out: Piece[] = [];
  for await (const p of stream) out.push(p);
  return out;
};
/** Ways to ask, each with something that a continuation may lose. */
const ways: readonly GenerateOptions[] = [
  { prompt: "Once upon a time", maxTokens: 24 },
  { prompt: "Once", maxTokens: 24, temperature: 1, seed: 7, logprobs: 3 },
  { prompt: "Question: Where", maxTokens: 24, temperature: 1.3, topP: 0.95, seed: 5 },
  {
    ...{ prompt: "Once", maxTokens: 30, temperature: 0.8, seed: 3 },
    ...{ presencePenalty: 1.5, frequencyPenalty: 0.7, repetitionPenalty: 1.2, logitBias: { 60: 2 } },
  },
  { prompt: "Once", maxTokens: 24, stop: ["the e", ". "], temperature: 1, seed: 11 },
  { prompt: "Once", maxTokens: 4000, temperature: 1, seed: 2 },
];

test("an answer that stopped anywhere goes on as if it had not: text, draws, penalties, limits", async () => {
  await using engine = await load(await storyBundle(), wasm);
  for (const o of ways) {
    const whole = await all(engine.generate(o));
    assert.ok(whole.length > 3);
    for (let n = 1; n < whole.length; n += 3) {
      const rest = await all(engine.generate({ ...o, said: whole.slice(0, n).map((p) => p.id) }));
      const told = (p: Piece): object => ({ ...p, cached: 0 });
      assert.equal(rest.map(told), whole.slice(n).map(told), `${JSON.stringify(o)} after ${n}`);
    }
  }
});

test("an engine lost at every token: the same pieces, and a pause", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  const { engine, events, kill } = await surviving(folder, wasm, { recover: forever });
  for (const o of ways) {
    const want = await all(alone.generate(o));
    const got: Piece[] = [];
    for await (const p of engine.generate(o)) {
      got.push(p);
      if (got.length % 7 === 1) kill();
    }
    assert.equal(got, want);
  }
  assert.is(
    events.filter((e) => e.type === "lost").length,
    events.filter((e) => e.type === "recovered").length,
  );
  await engine.dispose();
});

test("a job lost again and again ends with the same bits, and tells each step once", async () => {
  const folder = await bundle(configs.even);
  const o = { name: "j", data: batchOf(128), steps: 9, batchSize: 2, publishEvery: 4, rank: 4 } as const;
  await using alone = await load(folder, wasm);
  const one: string[] = [];
  const want = await (await alone.finetune({ ...o, onEvent: (e) => one.push(shown(e)) })).done;
  const { engine, engines, kill } = await surviving(folder, wasm, { recover: forever });
  const told: string[] = [];
  const job = await engine.finetune({
    ...o,
    onEvent: (e) => {
      told.push(shown(e));
      if (e.type === "publish" || (e.type === "step" && e.step % 3 === 2)) queueMicrotask(kill);
    },
  });
  const got = await job.done;
  assert.equal(got, want);
  assert.equal(told, one);
  assert.ok(engines.length > 4);
  for (const ref of ["j@1", "j@2", "j@3"])
    assert.is(contentBits(engines.at(-1)!, ref), contentBits(alone, ref));
  await engine.dispose();
});
const shown = (e: object): string => JSON.stringify({ ...e, tokensPerSecond: 0 });

test("what is forgotten shows: a prompt that has the answer in it, another seed, a decoder that begins anew", async () => {
  await using engine = await load(await storyBundle(), wasm);
  const rest = async (o: GenerateOptions): Promise<string> =>
    (await all(engine.generate(o))).map((p) => `${p.id} ${p.text} ${p.finish}`).join();
  for (const [i, o] of ways.entries()) {
    const whole = await all(engine.generate(o));
    const n = 6;
    const said = whole.slice(0, n).map((p) => p.id);
    const prompt = [...engine.promptIds(o), ...said];
    const maxTokens = o.maxTokens! - n;
    const want = await rest({ ...o, said });
    // Without its seed, where it draws; as a part of the prompt, where the answer counts.
    if (o.temperature) assert.is.not(await rest({ ...o, said, seed: 999 }), want, `seed of ${i}`);
    if (o.presencePenalty) assert.is.not(await rest({ ...o, prompt, maxTokens }), want, `penalties of ${i}`);
    if (whole.at(-1)!.finish === "length")
      assert.is.not(await rest({ ...o, prompt }), want, `length of ${i}`);
  }
});

test("devices that are destroyed in the middle of streams and steps: the same tokens, the same bits", async () => {
  const folder = await bundle(
    { ...configs.even, num_hidden_layers: 1 },
    { targets: ["webgpu"], methods: [] },
  );
  const software = { device: "software" } as const;
  const prompts = ["a", "b", "c"].map((name) => idsOf(name, 20, 128));
  const asked = prompts.map((prompt, i) => ({
    ...{ prompt, maxTokens: 40, temperature: i, presencePenalty: i / 2, seed: i + 1, logprobs: 2 },
  }));
  const o = { name: "j", data: batchOf(128), steps: 10, batchSize: 3, rank: 4, publishEvery: 4 } as const;
  await devicesOf(async (devices) => {
    const alone = await load(folder, software);
    const want = await Promise.all(asked.map((a) => all(alone.generate(a))));
    const learned = await (await alone.finetune(o)).done;
    const adapter = contentBits(alone, "j");
    await alone.dispose();

    const { engine, engines, events } = await surviving(folder, software, { recover: forever });
    const next = generator("destroy");
    const most = rounds(2, 20);
    let lost = 0;
    // Any event may be the one at which the device goes.
    const maybe = (): void => {
      if (lost >= most || next() % 12) return;
      lost++;
      devices.at(-1)!.destroy();
    };
    const until = async (): Promise<void> => {
      const job = await engine.finetune({ ...o, onEvent: maybe });
      const got = await Promise.all(
        asked.map(async (a) => {
          const pieces: Piece[] = [];
          for await (const p of engine.generate(a)) {
            pieces.push(p);
            maybe();
          }
          return pieces;
        }),
      );
      const plain = (list: readonly Piece[]): object[] => list.map((p) => ({ ...p, cached: 0 }));
      assert.equal(got.map(plain), want.map(plain));
      assert.equal({ ...(await job.done), generation: null }, { ...learned, generation: null });
      assert.is(contentBits(engines.at(-1)!, "j"), adapter);
    };
    do await until();
    while (lost < most);
    const recovered = events.filter((e) => e.type === "recovered");
    console.log(`${lost} devices destroyed, ${recovered.length} engines opened again`);
    assert.ok(recovered.length > 0);
    for (const e of events) if (e.type === "lost") assert.is(e.why.code, "WEFT_DEVICE_LOST");
    await engine.dispose();
  });
});

test("a thread that dies is the same event", async () => {
  const folder = await storyBundle();
  const two = { device: "wasm", threads: 2 } as const;
  await using alone = await load(folder, two);
  const want = await all(alone.generate(ways[3]!));
  await withWorkers(async (started) => {
    const { engine, events } = await surviving(folder, two, { recover: forever });
    const job = await engine.finetune({ name: "j", data: [{ text: "Once upon" }], steps: 4 });
    const got: Piece[] = [];
    for await (const p of engine.generate(ways[3]!)) {
      got.push(p);
      if (got.length % 10 === 5) void started.at(-1)!.terminate();
    }
    assert.equal(
      got.map((p) => ({ ...p, cached: 0 })),
      want.map((p) => ({ ...p, cached: 0 })),
    );
    assert.is((await job.done).steps, 4);
    assert.ok(events.some((e) => e.type === "lost" && e.why.code === "WEFT_DEVICE"));
    await engine.dispose();
  });
});

test("three losses are one error, of everything that waits and comes", async () => {
  const { engine, events, kill } = await surviving(await storyBundle(), wasm);
  const stream = engine.generate({ prompt: "Once", maxTokens: 100 });
  await stream.next();
  const data = [{ text: "Once upon a time" }];
  const job = await engine.finetune({ name: "j", data, steps: 100_000 });
  const rest = all(stream).catch((e) => e);
  const done = job.done.catch((e) => e);
  for (let n = 1; n <= 3; n++) {
    const recovered = events.length + 2;
    kill();
    const asked = engine.score("Once");
    if (n < 3) {
      assert.is((await asked).logprobs.length, (await engine.encode("Once")).length - 1);
      assert.is(events.length, recovered);
    } else await code("WEFT_DEVICE_LOST", () => asked, /fewer than 3 losses within 60 seconds/);
  }
  const why = await engine.closed;
  assert.is(why.code, "WEFT_DEVICE_LOST");
  assert.is(await rest, why);
  assert.is(await done, why);
  for (const f of [
    () => engine.encode("Once"),
    () => engine.finetune({ name: "k", data }),
    () => job.publish(),
  ])
    assert.is(await f().catch((e: unknown) => e), why);
  assert.equal(
    events.map((e) => e.type),
    ["lost", "recovered", "lost", "recovered", "lost"],
  );
  await engine.dispose();
});

test("mistakes of the caller end no engine", async () => {
  const { engine, events } = await surviving(await storyBundle(), wasm);
  await code("WEFT_OPTION", () => engine.generate({ prompt: "Once", temperature: -1 }).next());
  await code("WEFT_NOT_FOUND", () => engine.complete({ prompt: "Once", adapter: "nobody" }));
  await code("WEFT_CONTEXT_OVERFLOW", () => engine.complete({ prompt: Array(4000).fill(5) }));
  await code("WEFT_DATA", () => engine.finetune({ name: "j", data: [] }));
  assert.equal(events, []);
  await engine.dispose();
});

test("adapters come back with their numbers, a request stays on its own, sums and what is merged stay", async () => {
  const folder = await bundle(configs.even);
  await using alone = await load(folder, wasm);
  const { engine, engines, kill } = await surviving(folder, wasm, { recover: forever });
  const prompt = idsOf("numbers", 8, 128);
  const o = { data: batchOf(128), steps: 2, batchSize: 2, rank: 4, learningRate: 0.02 } as const;
  const teach = async (name: string, seed: number): Promise<void> => {
    for (const e of [alone, engine]) await (await e.finetune({ ...o, name, seed })).done;
  };
  await teach("a", 1);
  await teach("a", 2);
  await teach("b", 3);
  // Few enough tokens that nobody is paused: what is in use would be kept.
  const asks: readonly GenerateOptions[] = [
    { prompt, adapter: "a", maxTokens: 14 },
    { prompt, adapter: "a@1", maxTokens: 14 },
    { prompt, adapter: { a: 0.5, b: 0.5 }, maxTokens: 14, temperature: 1, seed: 4 },
  ];
  const same = (p: Piece): object => ({ ...p, cached: 0 });
  const want = (await Promise.all(asks.map((a) => all(alone.generate(a))))).map((l) => l.map(same));
  const streams = asks.map((a) => engine.generate(a));
  const got = await Promise.all(streams.map(async (s) => [(await s.next()).value as Piece]));
  // Five more generations: neither engine keeps the first ones but for who uses them.
  for (let seed = 4; seed < 9; seed++) await teach("a", seed);
  kill();
  for (const [i, s] of streams.entries()) got[i]!.push(...(await all(s)));
  assert.equal(
    got.map((l) => l.map(same)),
    want,
  );
  const numbers = async (): Promise<unknown> =>
    (await engine.adapters.list()).map((a) => [a.name, a.generations]);
  await teach("a", 9);
  assert.equal(
    await numbers(),
    alone.adapters.list().map((a) => [a.name, a.generations]),
  );
  for (const ref of ["a@8", "a@7", "b"])
    assert.is(contentBits(engines.at(-1)!, ref), contentBits(alone, ref));
  // A name that was removed goes on where it was.
  for (const e of [alone, engine]) await e.adapters.remove("b");
  kill();
  await teach("b", 5);
  assert.is((await engine.adapters.get("b")).generation, 2);
  // What is loaded under a name is its next generation, also under one that was removed.
  const saved = new Map<string, Blob>();
  await (await engine.adapters.get("b")).save(saved);
  assert.is((await engine.adapters.load("b", saved)).generation, 3);
  await engine.adapters.remove("b");
  kill();
  assert.is((await engine.adapters.load("b", saved)).generation, 4);
  assert.is((await engine.complete({ prompt, adapter: "b@4", maxTokens: 1 })).adapter, "b@4");
  for (const e of [alone, engine]) await e.merge("a@8");
  kill();
  assert.equal(await engine.complete({ prompt }), await alone.complete({ prompt }));
  for (const e of [alone, engine]) await e.merge(null);
  kill();
  assert.equal((await engine.complete({ prompt })).ids, (await alone.complete({ prompt })).ids);
  await engine.dispose();
});

test("a base that full training made is made again", async () => {
  const folder = await bundle(configs.even, { train: ["lora", "full"] });
  await using alone = await load(folder, wasm);
  const { engine, kill } = await surviving(folder, wasm, { recover: forever });
  const prompt = idsOf("full", 8, 128);
  const o = { data: batchOf(128), steps: 3, batchSize: 2, method: "full" } as const;
  for (const name of ["one", "two"]) {
    const want = await (await alone.finetune({ ...o, name })).done;
    const job = await engine.finetune({
      ...{ ...o, name },
      onEvent: (e) => e.type === "step" && e.step === 2 && queueMicrotask(kill),
    });
    assert.equal(await job.done, want);
    assert.is(engine.base, alone.base);
  }
  kill();
  assert.equal(await engine.complete({ prompt }), await alone.complete({ prompt }));
  assert.is(engine.base, alone.base);
  await engine.dispose();
});

test("what is asked while there is no engine waits, is ended by its signal, and is left at once", async () => {
  const folder = await storyBundle();
  const { engine, kill, events } = await surviving(folder, wasm, { recover: forever });
  const stream = engine.generate({ prompt: "Once", maxTokens: 50 });
  await stream.next();
  const job = await engine.finetune({ name: "j", data: [{ text: "Once upon a time" }], steps: 1000 });
  kill();
  const controller = new AbortController();
  const signal = controller.signal;
  const waiting = [
    engine.score("Once", { signal }),
    engine.generate({ prompt: "Once", signal }).next(),
    engine.finetune({ name: "k", data: [{ text: "Once" }], signal }),
  ].map((p) => p.catch((e: unknown) => e));
  const read = stream.next();
  await stream.return();
  assert.equal(await read, { done: true, value: undefined });
  job.cancel();
  assert.is((await job.done.catch((e) => e)).name, "AbortError");
  controller.abort("enough");
  assert.equal(await Promise.all(waiting), ["enough", "enough", "enough"]);
  assert.equal(
    events.map((e) => e.type),
    ["lost"],
  );
  const published = await engine.finetune({ name: "p", data: [{ text: "Once upon" }], steps: 1000 });
  kill();
  assert.is(await published.publish(), "p@1");
  const dir = `${scratch()}/kept`;
  const kept = published.checkpoint(dir);
  kill();
  await kept;
  assert.ok(existsSync(`${dir}/CURRENT`));
  const gone = engine.dispose();
  await code("WEFT_DISPOSED", () => published.done);
  await gone;
});
test.run();
