/** How engines end: nothing that was asked of one stays unsettled, and what it had is given back. */
import { execFile } from "node:child_process";
import * as assert from "uvu/assert";
import type { Device } from "../runtime/device.ts";
import { Engine as Core } from "../runtime/engine.ts";
import { readManifest } from "../runtime/load.ts";
import { openReader } from "../runtime/reader.ts";
import { startJob } from "../runtime/trainer.ts";
import { openWasm } from "../runtime/wasm.ts";
import { type Engine, type LoadProgress, load } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { batchOf, bundle, configs, engineOf, idsOf } from "./support/engines.ts";
import { program } from "./support/program.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { withWorkers } from "./support/threads.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("endings");
const vocab = 128;
const prompt = idsOf("endings", 6, vocab);
const data = batchOf(vocab);

/** Everything that can be asked of an engine, and of a job on it. */
const everything = (engine: Engine): (() => Promise<unknown>)[] => [
  () => engine.finetune({ name: "new", data }),
  () => engine.complete({ prompt, maxTokens: 4 }),
  () => engine.core.generate({ prompt }).next(),
  () => engine.score(prompt),
  () => engine.merge(null),
  () => engine.saveModel(`${scratch()}/model`),
];

test("after dispose calls reject at once, a second dispose resolves, closed says why", async () => {
  const engine = await engineOf(configs.even, { load: { threads: 2 } });
  const job = await engine.finetune({ name: "j", data, steps: 1000 });
  const pending = [job.done, job.publish(), job.checkpoint(`${scratch()}/c`)];
  const first = engine.generate({ prompt, maxTokens: 100 });
  await first.next();
  const more = Array.from({ length: 30 }, () => engine.complete({ prompt, maxTokens: 100 }));
  const ends = Promise.allSettled([...pending, ...more, engine.score(prompt), engine.merge(null)]);
  const disposed = [engine.dispose(), engine.dispose()];
  for (const r of await ends) assert.is(r.status, "rejected");
  await Promise.all(disposed);
  await engine.dispose();
  const why = await engine.closed;
  assert.is(why.code, "WEFT_DISPOSED");
  for (const f of everything(engine)) assert.is(await code("WEFT_DISPOSED", f), why);
  for (const f of [() => job.publish(), () => job.checkpoint(`${scratch()}/c`)])
    await code("WEFT_DISPOSED", f);
});

test("a thread that dies ends the engine with one error: idle, and in the middle of a list", async () => {
  for (const when of ["idle", "mid-list"])
    await withWorkers(async (started, gone) => {
      const engine = await engineOf(configs.even, { load: { threads: 2 } });
      const pending: Promise<unknown>[] = [];
      if (when === "mid-list") {
        const job = await engine.finetune({ name: "j", data, steps: 1000 });
        await engine.complete({ prompt, maxTokens: 2 });
        pending.push(job.done);
        // Some may be over before the thread is: the job is not.
        for (let i = 0; i < 40; i++) pending.push(engine.score(idsOf(`${i}`, 100, vocab)));
      }
      const ends = Promise.allSettled(pending);
      void started.at(-1)!.terminate();
      const why = await engine.closed;
      assert.is(why.code, "WEFT_DEVICE", when);
      assert.match(why.message, /thread/);
      for (const [i, r] of (await ends).entries())
        if (i === 0 || r.status === "rejected") assert.is(r.status === "rejected" && r.reason, why);
      for (const f of everything(engine)) assert.is(await code("WEFT_DEVICE", f), why);
      await Promise.all(gone);
      await engine.dispose();
    });
});

test("load does not wait for threads that die, or never get ready; nor beyond an abort", async () => {
  const dir = await bundle(configs.even);
  const start = (o: { stepTimeout?: number; signal?: AbortSignal }) =>
    load(dir, { device: "wasm", threads: 2, ...o });
  const dies = `require("node:worker_threads").parentPort.once("message", () => process.exit(3))`;
  const sleeps = `require("node:worker_threads").parentPort.on("message", () => {})`;
  await withWorkers(async (_, gone) => {
    await code("WEFT_DEVICE", () => start({}), /code 3/);
    await Promise.all(gone);
  }, dies);
  await withWorkers(async (_, gone) => {
    await code("WEFT_DEVICE", () => start({ stepTimeout: 50 }), /0 of 2 threads ready/);
    await Promise.all(gone);
  }, sleeps);
  await withWorkers(async (started, gone) => {
    const c = new AbortController();
    const loading = start({ stepTimeout: 0, signal: c.signal }).then(
      () => "loaded",
      (e: Error) => e.message,
    );
    while (!started.length) await new Promise((r) => setImmediate(r));
    c.abort(new Error("enough"));
    assert.is(await loading, "enough");
    while (gone.length < 2) await new Promise((r) => setImmediate(r));
    await Promise.all(gone);
  }, sleeps);
  // Aborted by the time that its threads are started: they are not waited for either.
  await withWorkers(async (started, gone) => {
    const reader = await openReader(dir);
    const manifest = await readManifest(reader);
    const signal = AbortSignal.abort(new Error("before"));
    const opening = openWasm(manifest, await reader.read("kernels.wasm"), {
      threads: 2,
      stepTimeout: 0,
      signal,
    }).then(
      () => "opened",
      (e: Error) => e.message,
    );
    while (started.length < 2) await new Promise((r) => setImmediate(r));
    // The first reason stays: whoever waited for them would be told of these.
    for (const w of started) void w.terminate();
    assert.is(await opening, "before");
    await Promise.all(gone);
  }, sleeps);
});

test("load is aborted in every phase, and waits for no reader", async () => {
  const dir = await bundle(configs.even);
  const phases = ["fetch", "plan", "upload", "check", "ready"] as const;
  for (const phase of phases)
    await withWorkers(async (_, gone) => {
      const c = new AbortController();
      const reason = new Error(phase);
      const onProgress = (p: LoadProgress): void => {
        if (p.phase === phase) c.abort(reason);
      };
      const said = await load(dir, { device: "wasm", threads: 2, signal: c.signal, onProgress }).then(
        () => null,
        (e: unknown) => e,
      );
      assert.is(said, reason, phase);
      await Promise.all(gone);
    });
  const c = new AbortController();
  const never = { where: "nowhere", read: () => new Promise<never>(() => {}) };
  const opening = Core.open(never, () => new Promise<never>(() => {}), { signal: c.signal });
  c.abort(new Error("gone"));
  assert.is(await opening.catch((e: Error) => e.message), "gone");
});

/** An engine of ids whose device stops answering when told to. */
async function hanging(stepTimeout: number): Promise<{ core: Core; hang: () => void; freed: () => number }> {
  const reader = await openReader(await bundle(configs.even));
  let hangs = false;
  let freed = 0;
  const core = await Core.open(
    reader,
    async (m, file): Promise<Device> => {
      const device = await openWasm(m, await file("kernels.wasm"), { threads: 1 });
      return {
        ...device,
        run: (...a) => (hangs ? new Promise<never>(() => {}) : device.run(...a)),
        dispose: async () => {
          freed++;
          await device.dispose();
        },
      };
    },
    { stepTimeout },
  );
  return {
    core,
    hang: () => {
      hangs = true;
    },
    freed: () => freed,
  };
}
test("a step past its deadline ends the engine; dispose does not wait for one that hangs", async () => {
  for (const how of ["deadline", "dispose"]) {
    const { core, hang, freed } = await hanging(how === "deadline" ? 100 : 0);
    const job = startJob(core, { name: "j", method: "lora", rows: data, steps: 1000 }, []);
    await core.generate({ prompt, maxTokens: 2 }).next();
    hang();
    const ends = Promise.allSettled([
      job.done,
      job.publish(),
      job.checkpoint(),
      core.generate({ prompt }).next(),
      core.score(prompt),
    ]);
    const want = how === "deadline" ? "WEFT_DEVICE_LOST" : "WEFT_DISPOSED";
    if (how === "dispose") await core.dispose();
    const why = await core.closed;
    assert.is(why.code, want);
    for (const r of await ends) assert.is(r.status === "rejected" && r.reason, why);
    await core.dispose();
    assert.is(freed(), 1);
  }
});

test("disposed engines give memory and threads back, also while held; dropped ones too", async () => {
  const dir = await bundle(configs.even);
  const n = rounds(8, 100);
  const said = await new Promise<string>((resolve, reject) => {
    const args = ["--expose-gc", ...program("tests/support/released.ts"), dir, String(n)];
    execFile(process.execPath, args, (e, stdout, stderr) =>
      e ? reject(new Error(stderr)) : resolve(stdout),
    );
  });
  assert.equal(JSON.parse(/released (\{.*\})/.exec(said)![1]!), {
    reachable: 0,
    threads: 0,
    running: 0,
    dropped: true,
    held: n + 1,
  });
});
test.run();
