/**
 * An engine in a thread of its own: what it says, learns and refuses is what `Engine` does, bit for bit and
 * field by field; who reads slowly, leaves or stops holds up nobody.
 */
import type { Worker } from "node:worker_threads";
import * as assert from "uvu/assert";
import { type GenerateOptions, load, type Piece, WeftError } from "../sdk/index.ts";
import { type AsyncEngine, createWorkerEngine, type WorkerOptions } from "../sdk/worker/index.ts";
import type { Port } from "../sdk/worker/protocol.ts";
import { serve } from "../sdk/worker/serve.ts";
import { code } from "./support/code.ts";
import { batchOf, bundle, configs, contentBits, idsOf } from "./support/engines.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";
import { fromSources } from "./support/worker.ts";

const test = suite("worker");
const wasm = { device: "wasm", threads: 1 } as const;
const apart = (folder: string, o: WorkerOptions = {}): Promise<AsyncEngine> =>
  createWorkerEngine(folder, { ...wasm, worker: fromSources, ...o });
const rows = batchOf(128);
const job = { name: "j", data: rows, steps: 3, batchSize: 2, publishEvery: 2, rank: 4 } as const;

const all = async (stream: AsyncIterable<Piece>): Promise<Piece[]> => {
  const out: Piece[] = [];
  for await (const p of stream) out.push(p);
  return out;
};
const ways: readonly GenerateOptions[] = [
  { prompt: "Once upon a time", maxTokens: 24 },
  { prompt: "Once", maxTokens: 40, temperature: 1, seed: 7, logprobs: 3 },
  { prompt: "Once", maxTokens: 30, stop: ["the e", ". "], temperature: 1, seed: 11, presencePenalty: 1 },
];

test("what it says is what the engine says: greedy, drawn, with stop texts and log-probabilities", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  await using there = await apart(folder);
  assert.equal(there.manifest, alone.manifest);
  assert.equal(there.device, alone.device);
  assert.is(there.base, alone.base);
  for (const o of ways) {
    const want = await all(alone.generate(o));
    assert.equal(await all(there.generate(o)), want);
    assert.equal(await there.complete(o), await alone.complete(o));
  }
  const ids = alone.encode("Once upon");
  assert.equal(await there.encode("Once upon"), ids);
  assert.is(await there.decode(ids), alone.decode(ids));
  assert.equal(
    await there.score("Once upon a time", { logits: true }),
    await alone.score("Once upon a time", { logits: true }),
  );
  const messages = [{ role: "user", content: "Where does Mia live?" }];
  assert.equal(await there.promptIds({ messages }), alone.promptIds({ messages }));
});

test("what it learns is what the engine learns, and is saved as the same files, wherever they go", async () => {
  const folder = await bundle(configs.even);
  await using alone = await load(folder, wasm);
  await using there = await apart(folder);
  const told: unknown[][] = [[], []];
  const hear = (i: number) => (e: object) => void told[i]!.push({ ...e, tokensPerSecond: 0 });
  const want = await (await alone.finetune({ ...job, onEvent: hear(0) })).done;
  assert.equal(await (await there.finetune({ ...job, onEvent: hear(1) })).done, want);
  assert.equal(told[1], told[0]);
  assert.equal(await there.adapters.list(), alone.adapters.list());
  const [mine, theirs] = [alone.adapters.get("j"), await there.adapters.get("j")];
  const facts = { ref: "j", generation: 2, base: mine.base, config: mine.config, warnings: [] };
  assert.equal(JSON.parse(JSON.stringify(theirs)), facts);
  const bytes = async (files: Map<string, Blob>): Promise<[string, string][]> =>
    Promise.all(
      [...files].map(async ([name, b]) => [name, Buffer.from(await b.arrayBuffer()).toString("hex")]),
    );
  const files = await bytes(await mine.toBlobs());
  assert.equal(await bytes(await theirs.toBlobs()), files);
  // To a map of this thread's memory, to a folder, and back from both.
  const map = new Map<string, Blob>();
  await theirs.save(map);
  assert.equal((await bytes(map)).filter(([name]) => !name.startsWith(".")).sort(), [...files].sort());
  const dir = `${scratch()}/j`;
  await theirs.save(dir);
  for (const [name, place] of [
    ["a", map],
    ["b", dir],
  ] as const) {
    const { generation } = await there.adapters.load(name, place);
    assert.is(generation, 1);
    await alone.adapters.load(name, dir);
    assert.equal(await bytes(await (await there.adapters.get(name)).toBlobs()), files);
  }
  const prompt = idsOf("worker", 9, 128);
  const o = { prompt, maxTokens: 8, adapter: { a: 0.5, j: 0.25 } };
  assert.equal(await there.complete(o), await alone.complete(o));
  await there.adapters.combine("c", { a: 0.5, b: 0.5 });
  await there.adapters.remove("a");
  assert.equal((await there.adapters.list()).map((a) => a.name).sort(), ["b", "c", "j"]);
  await there.merge("j");
  await alone.merge("j");
  assert.equal(await there.complete({ prompt }), await alone.complete({ prompt }));
});

test("every error is the engine's, field by field", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  await using there = await apart(folder);
  const bad = (x: unknown) => x as never;
  type Either = Pick<
    AsyncEngine,
    "generate" | "score" | "encode" | "finetune" | "merge" | "adapters" | "promptIds"
  >;
  const next = (o: unknown) => async (e: Either) => void (await e.generate(bad(o)).next());
  const mistakes: Readonly<Record<string, (e: Either) => unknown>> = {
    "an unknown option": next({ prompt: "Once", maxToken: 3 }),
    "a wrong temperature": next({ prompt: "Once", temperature: -1 }),
    "a wrong seed": next({ prompt: "Once", seed: 0.5 }),
    "no prompt": next({}),
    "an image": next({ messages: [{ role: "user", content: [{ type: "image" }] }] }),
    "an id that is none": next({ prompt: [1, 1e6] }),
    "too long": next({ prompt: Array.from({ length: 400 }, () => 5) }),
    "no such adapter": next({ prompt: "Once", adapter: "nobody" }),
    "no such generation": next({ prompt: "Once", adapter: { nobody: 1 } }),
    "said what is none": next({ prompt: "Once", said: [-1] }),
    "an aborted signal": next({ prompt: "Once", signal: AbortSignal.abort(new TypeError("why")) }),
    "an aborted score": (e) => e.score("Once", { signal: AbortSignal.abort("a text") }),
    "a score of nothing": (e) => e.score([]),
    "rows of nothing": (e) => e.finetune({ name: "j", data: [] }),
    "a file that is not there": (e) => e.finetune({ name: "j", data: "nowhere.jsonl" }),
    "a wrong row": (e) => e.finetune({ name: "j", data: [{ text: 5 }] as never }),
    "an unknown method": (e) => e.finetune({ name: "j", data: [{ text: "Once upon" }], method: "magic" }),
    "from nobody": (e) => e.finetune({ name: "j", data: [{ text: "Once upon" }], from: "nobody" }),
    "resume of nothing": (e) => e.finetune({ name: "j", data: [{ text: "Once upon" }], resume: "nowhere" }),
    "a folder that is no adapter": (e) => e.adapters.load("a", folder),
    "a name that is none": (e) => e.adapters.load("a b", folder),
    "no adapter to get": (e) => e.adapters.get("nobody"),
    "no adapter to remove": (e) => e.adapters.remove("nobody"),
    "nothing to merge": (e) => e.merge("nobody"),
  };
  const thrown = async (f: () => unknown): Promise<unknown> => {
    try {
      await f();
    } catch (e) {
      return e;
    }
    return assert.unreachable("an error is thrown");
  };
  const shown = (e: unknown): unknown => {
    if (!(e instanceof Error)) return e;
    const { name, message, cause } = e;
    const because = e instanceof WeftError ? e.cause.cause : cause;
    return {
      name,
      message,
      fields: e instanceof WeftError && e.toJSON(),
      because: because && shown(because),
    };
  };
  for (const [what, f] of Object.entries(mistakes))
    assert.equal(shown(await thrown(() => f(there))), shown(await thrown(() => f(alone as never))), what);
  // The reason of an abort is the very one that was given.
  const reason = new Error("enough");
  const controller = new AbortController();
  const stream = there.generate({ prompt: "Once", maxTokens: 100, signal: controller.signal });
  await stream.next();
  controller.abort(reason);
  assert.is(await thrown(async () => all(stream)), reason);
  const long = { name: "j", data: [{ text: "Once upon a time" }], steps: 1000 };
  const stop = new AbortController();
  const stopped = await there.finetune({ ...long, signal: stop.signal });
  stop.abort(reason);
  assert.is(await thrown(() => stopped.done), reason);
  const learning = await there.finetune(long);
  learning.cancel();
  assert.is(((await thrown(() => learning.done)) as Error).name, "AbortError");
  await code(
    "WEFT_OPTION",
    () => there.finetune({ name: "j", data: [bad({ text: () => 1 })] }),
    /sent to a worker/,
  );
  await code("WEFT_OPTION", () => apart(folder, { heartbeat: -1 }), /heartbeat/);
  await code("WEFT_OPTION", () => apart(folder, bad({ thread: 1 })), /thread/);
  await code("WEFT_BUNDLE", () => apart(`${folder}/nowhere`));
});

test("leaving, return() and an abort end an answer where it is computed, and free its cache", async () => {
  const folder = await storyBundle();
  await using there = await apart(folder, { prefixCache: false });
  const before = (await there.memory()).blocks.free;
  const o = { prompt: "Once upon a time", maxTokens: 150, temperature: 1 };
  for await (const _ of there.generate(o)) break;
  const left = there.generate(o);
  await left.next();
  await left.return();
  const controller = new AbortController();
  const aborted = there.generate({ ...o, signal: controller.signal });
  await aborted.next();
  controller.abort();
  await aborted.next().catch(() => {});
  // One that never began holds nothing.
  void there.generate(o);
  // What was left in the middle of a list is given back at its end.
  await there.score("Once");
  assert.is((await there.memory()).blocks.free, before);
});

test("thirty streams that nobody reads on hold up neither a reader nor a job", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  await using there = await apart(folder);
  const o = (seed: number) => ({ prompt: "Once", maxTokens: 60, temperature: 1, seed });
  const unread = Array.from({ length: 30 }, (_, i) => there.generate(o(i)));
  const first = await Promise.all(unread.map((s) => s.next()));
  const learned = (await there.finetune({ name: "j", data: [{ text: "Once upon a time" }], steps: 3 })).done;
  assert.equal(await all(there.generate(o(100))), await all(alone.generate(o(100))));
  await learned;
  // They are whole when somebody reads them after all.
  for (const i of [3, 29]) {
    const want = (await all(alone.generate(o(i)))).map((p) => ({ ...p, cached: 0 }));
    const got = [first[i]!.value as Piece, ...(await all(unread[i]!))].map((p) => ({ ...p, cached: 0 }));
    assert.equal(got, want);
  }
});

test("no more pieces are on their way than were asked for", async () => {
  const folder = await storyBundle();
  // The thread's side alone: what it says is counted.
  let hear: (message: unknown) => void = () => {};
  const said: (readonly [number, string, unknown])[] = [];
  let wake = (): void => {};
  const port: Port = {
    post: (m) => {
      said.push(m as never);
      wake();
    },
    hear: (f) => {
      hear = f;
    },
  };
  const until = async (kind: string, n: number): Promise<void> => {
    while (said.filter((m) => m[1] === kind).length < n) await new Promise<void>((r) => (wake = r));
  };
  serve(port);
  hear([1, "open", { location: folder, here: null, options: wasm, hears: { progress: false, step: false } }]);
  await until("opened", 1);
  const pieces = (id: number): number => said.filter((m) => m[0] === id && m[1] === "piece").length;
  hear([2, "generate", { options: { prompt: "Once", maxTokens: 60, temperature: 1, seed: 1 }, credit: 4 }]);
  hear([3, "generate", { options: { prompt: "Once", maxTokens: 40, temperature: 1, seed: 1 }, credit: 100 }]);
  await until("end", 1);
  assert.is(pieces(2), 4);
  assert.is(pieces(3), 40);
  hear([2, "credit", 5]);
  await until("piece", 49);
  hear([4, "call", { name: "encode", args: ["Once"], abortable: false }]);
  await until("answer", 1);
  assert.is(pieces(2), 9);
  hear([2, "leave", null]);
  await until("end", 2);
  hear([5, "dispose", null]);
  await until("answer", 2);
});

test("a worker that is ended in the middle: answers go on with the same tokens, a job with the same bits", async () => {
  const folder = await storyBundle();
  await using alone = await load(folder, wasm);
  const workers: Worker[] = [];
  const events: string[] = [];
  await using there = await apart(folder, {
    worker: () => {
      workers.push(fromSources());
      return workers.at(-1)!;
    },
    recover: { losses: 100, checkpoint: 0.001 },
    onRecover: (e) => events.push(e.type),
  });
  const data = [{ text: "Once upon a time there was" }, { text: "a cat" }];
  const o = { name: "j", data, steps: 12, batchSize: 2, rank: 4 };
  const learned = (await alone.finetune(o)).done;
  const want = await Promise.all(ways.map((w) => all(alone.generate(w))));
  const job = await there.finetune(o);
  const got = await Promise.all(
    ways.map(async (w, i) => {
      const out: Piece[] = [];
      for await (const p of there.generate(w)) {
        out.push(p);
        if (i === 1 && [4, 22].includes(out.length)) void workers.at(-1)!.terminate();
      }
      return out;
    }),
  );
  const plain = (list: readonly Piece[]) => list.map((p) => ({ ...p, cached: 0 }));
  assert.equal(got.map(plain), want.map(plain));
  assert.equal(await job.done, await learned);
  assert.is(workers.length, 3);
  assert.is(events.filter((e) => e === "recovered").length, workers.length - 1);
  const files = await (await there.adapters.get("j")).toBlobs();
  const mine = await alone.adapters.get("j").toBlobs();
  for (const [name, file] of mine)
    assert.equal(
      new Uint8Array(await files.get(name)!.arrayBuffer()),
      new Uint8Array(await file.arrayBuffer()),
    );
  assert.ok(contentBits(alone, "j"));
});

test("disposed: what runs, waits and comes is rejected, the thread is gone; callbacks that throw are reports", async () => {
  const folder = await storyBundle();
  const phases = new Set<string>();
  const threads: Worker[] = [];
  const there = await apart(folder, {
    worker: () => {
      threads.push(fromSources());
      return threads[0]!;
    },
    onProgress: (p) => phases.add(p.phase),
    onStep: () => {
      throw new Error("mine");
    },
  });
  assert.ok(phases.has("upload") && phases.has("ready"));
  const gone = new Promise((resolve) => threads[0]!.once("exit", resolve));
  const stream = there.generate({ prompt: "Once", maxTokens: 100 });
  await stream.next();
  assert.match(there.reports[0]!.message, /onStep.*mine/);
  const job = await there.finetune({ name: "j", data: [{ text: "Once upon" }], steps: 1000 });
  const asked = [all(stream), job.done, there.score("Once"), job.publish()].map((p) =>
    p.catch((e) => e.code),
  );
  await there.dispose();
  await gone;
  assert.equal(new Set(await Promise.all(asked)), new Set(["WEFT_DISPOSED"]));
  assert.is((await there.closed).code, "WEFT_DISPOSED");
  await code("WEFT_DISPOSED", () => there.encode("Once"));
  await there.dispose();
  const controller = new AbortController();
  const loading = apart(folder, { signal: controller.signal, onProgress: () => controller.abort("late") });
  assert.is(await loading.catch((e) => e), "late");
});
test.run();
