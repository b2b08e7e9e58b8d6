/** Requests and streams: what ends them, what they are told, and what is left behind. */
import * as assert from "uvu/assert";
import type { StepTrace } from "../runtime/engine.ts";
import type { Serving } from "../runtime/serving.ts";
import { type Engine, load, type Piece, type WeftError } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { batchOf, bundle, collect, configs, engineOf, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";

const test = suite("engine");
const vocab = 128;
const prompt = idsOf("engine", 6, vocab);
const one = { load: { threads: 1 } } as const;
/** Requests that run or wait. */
const held = (engine: Engine): number => (engine.core as unknown as { serving: Serving }).serving.size;
const turns = async (n: number): Promise<void> => {
  for (let i = 0; i < n; i++) await new Promise((r) => setImmediate(r));
};
/** Streams that fill every row of the table of sequences, each read once: requests after them wait. */
const crowd = async (engine: Engine, n = 16): Promise<AsyncGenerator<Piece, void, void>[]> => {
  const streams = Array.from({ length: n }, (_, i) =>
    engine.generate({ prompt: idsOf(`crowd${i}`, 3, vocab), maxTokens: 100 }),
  );
  await Promise.all(streams.map((s) => s.next()));
  return streams;
};

test("a signal that is aborted already: every call rejects at once and leaves nothing", async () => {
  await using engine = await engineOf(configs.even, one);
  const signal = AbortSignal.abort(new Error("early"));
  const rejects = async (f: () => Promise<unknown>): Promise<void> => {
    const said = await f().then(
      () => "resolved",
      (e: Error) => e.message,
    );
    assert.is(said, "early");
    assert.is(held(engine), 0);
  };
  await rejects(() => engine.complete({ prompt, signal }));
  await rejects(() => engine.score(prompt, { signal }));
  await rejects(() => engine.finetune({ name: "a", data: batchOf(vocab), signal }));
  assert.is(engine.core.jobsRunning, 0);
  const dir = await bundle(configs.even);
  await rejects(() => load(dir, { device: "wasm", signal }));
});

test("an abort with any reason is an error; a stream is told the reason where it is one", async () => {
  await using engine = await engineOf(configs.even, one);
  for (const reason of [false, undefined, null, 0, new Error("mine")]) {
    const c = new AbortController();
    const said = await (async () => {
      for await (const _ of engine.generate({ prompt, maxTokens: 100, signal: c.signal })) c.abort(reason);
    })().then(
      () => "no error",
      (e: Error) => (e.name === "AbortError" ? e.name : e.message),
    );
    assert.is(said, reason instanceof Error ? "mine" : "AbortError", `abort(${reason})`);
    const s = new AbortController();
    const score = engine.score(idsOf("long", 100, vocab), { signal: s.signal });
    s.abort(reason);
    await score.then(
      () => assert.unreachable(),
      (e: unknown) => assert.instance(e, Error),
    );
  }
  assert.is(held(engine), 0);
});

test("return() before the first next(), in a wait, in a run: settled, nothing is held", async () => {
  await using engine = await engineOf(configs.even, one);
  const free = engine.memory();
  for (const of of [engine, engine.core]) {
    const never = of.generate({ prompt, maxTokens: 5 });
    await never.return();
    assert.is(held(engine), 0);
    assert.equal(await never.next(), { done: true, value: undefined });
  }
  const others = await crowd(engine);
  for (const of of [engine, engine.core]) {
    const before = held(engine);
    const waiting = of.generate({ prompt, maxTokens: 5 });
    const next = waiting.next();
    assert.is(held(engine), before + 1);
    const back = waiting.return();
    assert.is(held(engine), before);
    assert.equal(await next, { done: true, value: undefined });
    assert.equal(await back, { done: true, value: undefined });
  }
  // The same for one that runs: its next token is never waited for.
  const running = others[0]!;
  const next = running.next();
  await running.return();
  assert.equal((await next).done, true);
  await Promise.all(others.map((s) => s.return()));
  await turns(20);
  assert.is(held(engine), 0);
  assert.equal(engine.memory(), free);
});

test("functions of the caller that throw are reported, and end neither engine, job nor request", async () => {
  const heard: WeftError[] = [];
  let on = true;
  const boom = (what: string) => (): void => {
    if (on) throw new Error(what);
  };
  await using engine = await engineOf(configs.even, {
    load: {
      threads: 1,
      onStep: boom("of onStep"),
      onProgress: boom("of onProgress"),
      onError: (e) => {
        heard.push(e);
        throw new Error("of onError too");
      },
    },
  });
  assert.match(heard[0]!.message, /onProgress.*of onProgress/);
  heard.length = 0;
  assert.is((await collect(engine, { prompt, maxTokens: 3 })).ids.length, 3);
  assert.match(heard[0]!.message, /onStep.*of onStep/);
  const job = await engine.finetune({
    name: "job",
    data: batchOf(vocab),
    steps: 2,
    onEvent: async () => boom("of onEvent")(),
  });
  const { steps } = await job.done;
  assert.is(steps, 2);
  assert.ok(heard.some((e) => /onEvent of job job.*of onEvent/.test(e.message)));
  on = false;
  assert.is((await collect(engine, { prompt, maxTokens: 3 })).ids.length, 3);
  // Who does not listen finds the last of them.
  assert.ok(engine.reports.length > 0 && engine.reports.length <= 16);
});

test("20,000 waiting requests aborted at once: each rejects, with no search for any", async () => {
  const n = 20_000;
  await using engine = await engineOf(configs.even, { load: { threads: 1, maxQueued: n } });
  const controllers = Array.from({ length: n }, () => new AbortController());
  const all = controllers.map(({ signal }) => engine.complete({ prompt, maxTokens: 50, signal }));
  const ends = Promise.allSettled(all);
  assert.is(held(engine), n);
  // From the last on: a list would be searched from its beginning.
  const { indexOf } = Array.prototype;
  let looked = 0;
  Array.prototype.indexOf = function (this: unknown[], ...a: [unknown, number?]): number {
    looked += this.length;
    return indexOf.apply(this, a);
  };
  try {
    for (const c of controllers.toReversed()) c.abort();
  } finally {
    Array.prototype.indexOf = indexOf;
  }
  assert.is(held(engine), 0);
  assert.ok(looked < n, `looked at ${looked} requests`);
  for (const r of await ends) assert.is(r.status, "rejected");
});

test("one signal for many calls has one listener, and none when they have ended", async () => {
  await using engine = await engineOf(configs.even, one);
  const { signal } = new AbortController();
  let listeners = 0;
  let most = 0;
  const { addEventListener: add, removeEventListener: remove } = signal;
  signal.addEventListener = (...a: Parameters<typeof add>) => {
    most = Math.max(most, ++listeners);
    add.apply(signal, a);
  };
  signal.removeEventListener = (...a: Parameters<typeof remove>) => {
    listeners--;
    remove.apply(signal, a);
  };
  const warnings: string[] = [];
  const warn = (w: Error): void => void warnings.push(w.name);
  process.on("warning", warn);
  // Half of them are read, half are abandoned after a token: those run to their end.
  const read = Array.from({ length: 20 }, () => collect(engine, { prompt, maxTokens: 4, signal }));
  const abandoned = Array.from({ length: 20 }, () => engine.generate({ prompt, maxTokens: 4, signal }));
  await Promise.all([...read, ...abandoned.map((s) => s.next())]);
  while (held(engine)) await turns(1);
  await turns(2);
  process.off("warning", warn);
  assert.is(most, 1);
  assert.is(listeners, 0);
  assert.equal(warnings, []);
});

test("a full queue refuses the next request, retryably, and takes it when there is room", async () => {
  await using engine = await engineOf(configs.even, { load: { threads: 1, maxQueued: 16 } });
  const others = await crowd(engine);
  const waiting = Array.from({ length: 16 }, () => collect(engine, { prompt, maxTokens: 2 }));
  const e = await code("WEFT_CAPACITY", () => collect(engine, { prompt, maxTokens: 2 }), /at most 16/);
  assert.is(e.retryable, true);
  await code("WEFT_CAPACITY", () => engine.score(prompt));
  await Promise.all(others.map((s) => s.return()));
  await Promise.all(waiting);
  assert.is((await collect(engine, { prompt, maxTokens: 2 })).ids.length, 2);
});

test("maxTokens: clipped to the room and told, none for 0, the adapter's own tokens counted", async () => {
  await using engine = await engineOf(configs.even, {
    ...one,
    methods: ["lora", "prompt"],
    train: ["prompt"],
  });
  const { context } = engine.manifest.capacities;
  const long = idsOf("long", context - 8, vocab);
  const clipped = await engine.complete({ prompt: long, maxTokens: 20 });
  assert.equal([clipped.ids.length, clipped.finish], [8, "context"]);
  const asked = await engine.complete({ prompt: long, maxTokens: 8 });
  assert.equal([asked.ids, asked.finish], [clipped.ids, "length"]);
  assert.is((await engine.complete({ prompt: long })).ids.length, 8);
  const steps = engine.core.device.stats.launches;
  const none = await engine.complete({ prompt, maxTokens: 0 });
  assert.equal([none.ids, none.text, none.finish], [[], "", "length"]);
  assert.is(engine.core.device.stats.launches, steps, "nothing ran");
  await code("WEFT_CONTEXT_OVERFLOW", () => engine.complete({ prompt: idsOf("all", context, vocab) }));
  // A prompt that fits, with no token asked for, is no mistake.
  assert.is((await engine.complete({ prompt: idsOf("all", context, vocab), maxTokens: 0 })).ids.length, 0);
  await (await engine.finetune({ name: "own", method: "prompt", rank: 4, data: batchOf(vocab), steps: 1 }))
    .done;
  const own = await engine.complete({ prompt: idsOf("own", context - 8, vocab), adapter: "own" });
  assert.equal([own.ids.length, own.finish], [4, "context"]);
});

test("a request without a seed draws one and tells it; given, it gives the same answer", async () => {
  await using engine = await engineOf(configs.even, one);
  const o = { prompt, maxTokens: 24, temperature: 3 };
  const answers = await Promise.all(Array.from({ length: 4 }, () => engine.complete(o)));
  assert.is(new Set(answers.map((a) => String(a.ids))).size, 4);
  for (const a of answers) assert.equal((await engine.complete({ ...o, seed: a.seed! })).ids, a.ids);
  assert.is((await engine.complete({ prompt, maxTokens: 2 })).seed, null);
  assert.is((await engine.complete({ ...o, seed: 7 })).seed, 7);
});

test("logits that are not numbers: WEFT_NUMERICS for that request, others as without it", async () => {
  await using engine = await engineOf(configs.even, one);
  await (await engine.finetune({ name: "good", data: batchOf(vocab), steps: 1 })).done;
  const { content } = engine.core.adapters.find("good");
  engine.core.adapters.publish("bad", {
    ...content,
    tensors: content.tensors.map((t) => t.map(() => Number.NaN)),
  });
  const alone = await collect(engine, { prompt, maxTokens: 12, adapter: "good" });
  const [good] = await Promise.all([
    collect(engine, { prompt, maxTokens: 12, adapter: "good" }),
    code("WEFT_NUMERICS", () => collect(engine, { prompt, maxTokens: 12, adapter: "bad" }), /bad@1/),
    // The last token is the first: it ends where it fails.
    code("WEFT_NUMERICS", () => collect(engine, { prompt, maxTokens: 1, adapter: "bad" }), /bad@1/),
    code("WEFT_NUMERICS", () => engine.score(prompt, { adapter: "bad" }), /bad@1/),
  ]);
  assert.equal(good, alone);
  assert.is(held(engine), 0);
  assert.is(engine.memory().slots.used, 0);
  assert.is(engine.memory().blocks.free, engine.memory().blocks.total);
});

test("what an engine remembers of adapters is bounded: removed ones, and sums in use", async () => {
  await using engine = await engineOf(configs.even, one);
  await (await engine.finetune({ name: "a", data: batchOf(vocab), steps: 1 })).done;
  const store = engine.core.adapters;
  const { content } = store.find("a");
  assert.is(store.publish("first", content).number, 1);
  assert.is(store.publish("first", content).number, 2);
  store.remove("first");
  for (let i = 0; i < 5000; i++) {
    store.publish(`n${i}`, content);
    store.remove(`n${i}`);
  }
  const { latest } = store as unknown as { latest: Map<string, number> };
  assert.ok(latest.size <= 4096, `${latest.size} numbers`);
  assert.ok(store.publish("first", content).number > 2, "a number never comes twice");
  // What makes sums is fetched by the first; from then on requests keep their order.
  await collect(engine, { prompt, maxTokens: 1, adapter: { a: 0.5 } });
  const others = await crowd(engine);
  const sums = Array.from({ length: 32 }, (_, i) =>
    engine.generate({ prompt, maxTokens: 2, adapter: { a: 1 + i } }),
  );
  const first = sums.map((s) => s.next());
  const e = await code("WEFT_CAPACITY", () => collect(engine, { prompt, adapter: { a: 100 } }), /32/);
  assert.is(e.retryable, true);
  await Promise.all(others.map((s) => s.return()));
  await Promise.all(first);
  await Promise.all(sums.map((s) => s.return()));
  assert.is((await collect(engine, { prompt, maxTokens: 2, adapter: { a: 100 } })).ids.length, 2);
});

test("an onError that rejects is nobody's unhandled rejection", async () => {
  const unhandled: unknown[] = [];
  const hear = (e: unknown): void => void unhandled.push(e);
  process.on("unhandledRejection", hear);
  const onStep = (): void => {
    throw new Error("of onStep");
  };
  const onError = async (): Promise<void> => {
    throw new Error("of onError");
  };
  await using engine = await engineOf(configs.even, { load: { threads: 1, onStep, onError } });
  await collect(engine, { prompt, maxTokens: 2 });
  await turns(3);
  process.off("unhandledRejection", hear);
  assert.ok(engine.reports.length > 0);
  assert.equal(unhandled, []);
});

test("onStep counts rows of a request that was aborted under its list as what they are", async () => {
  const seen: StepTrace[] = [];
  await using engine = await engineOf(configs.even, {
    load: { threads: 1, onStep: (t) => void seen.push(t) },
  });
  const { device } = engine.core;
  const run = device.run.bind(device);
  const c = new AbortController();
  (device as { run: typeof run }).run = (...a) => {
    c.abort();
    return run(...a);
  };
  await collect(engine, { prompt, maxTokens: 2, signal: c.signal }).catch(() => {});
  while (!seen.length) await turns(1);
  const { rows, requests, jobs } = seen[0]!;
  assert.equal([rows, requests, jobs], [{ generate: prompt.length, score: 0, train: 0 }, 1, 0]);
});
test.run();
