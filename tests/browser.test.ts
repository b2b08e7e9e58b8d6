/**
 * The same bundle in a real browser, on its own WebGPU (software) and on Wasm: without the compiler, over
 * HTTP, the same answers as in Node.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { doors, forPages, workerEntry } from "../scripts/build.ts";
import { load } from "../sdk/index.ts";
import { openChromium, type Serve, type Served, tasksBetween } from "./support/chromium.ts";
import { batchOf, bundle, collect, configs, idsOf } from "./support/engines.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";

const test = suite("browser");
interface Result {
  readonly device: string;
  readonly invariance: string;
  readonly ids: number[];
  readonly losses: number[];
  readonly logits: number[];
  readonly ticks: number;
  readonly error?: string;
}
const prompt = idsOf("browser", 12, 128);
const page = (device: string, isolated: boolean): string => `
import { load } from "/sdk.js";
const send = (r) => fetch("/result", { method: "POST", body: JSON.stringify(r) });
try {
  const engine = await load("/model.weft", { device: ${JSON.stringify(device)}, ${isolated ? "threads: 2" : ""} });
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  const ids = [];
  for await (const p of engine.generate({ prompt: ${JSON.stringify(prompt)}, maxTokens: 6 })) ids.push(p.id);
  const job = await engine.finetune({ name: "j", data: ${JSON.stringify(batchOf(128))}, steps: 2, batchSize: 5, shuffle: false, rank: 4 });
  const { losses } = await job.done;
  const { logits } = await engine.score(${JSON.stringify(prompt)}, { adapter: "j", logits: true });
  clearInterval(timer);
  await send({ device: engine.device.target + " " + engine.device.name, ticks, invariance: engine.core.invariance, ids, losses, logits: [...logits.at(-1)] });
  await engine.dispose();
} catch (e) {
  await send({ error: String(e && e.stack || e) });
}`;

/** The SDK as the package ships it for pages. */
let sdk: Promise<ReadonlyMap<string, string>> | undefined;
const built = async (): Promise<ReadonlyMap<string, string>> => {
  const to = { outdir: "/", write: false };
  const made = await Promise.all([
    forPages({ entryPoints: { sdk: doors.index, worker: doors.worker }, ...to }),
    forPages({ ...workerEntry, ...to }),
  ]);
  return new Map(made.flatMap(({ outputFiles }) => outputFiles!.map((f) => [f.path, f.text])));
};
async function inBrowser<T = Result>(folder: string, page: string, isolated: boolean): Promise<T> {
  const browser = await openChromium(await serving(folder, page), { isolated, shipped: !isolated });
  try {
    return await browser.open<T>("/");
  } finally {
    browser.close();
  }
}
async function serving(folder: string, page: string): Promise<Serve> {
  const scripts = await (sdk ??= built());
  const script = (body: string): Served => ({ type: "text/javascript", body });
  return (path) => {
    if (path === "/")
      return { type: "text/html", body: '<!doctype html><script type="module" src="/page.js"></script>' };
    if (path === "/page.js") return script(page);
    if (path === "/mortal.js") return script(mortal);
    if (path.startsWith("/model.weft/"))
      return {
        type: "application/octet-stream",
        body: readFileSync(join(folder, path.slice("/model.weft/".length))),
      };
    const body = scripts.get(path);
    return body === undefined ? null : script(body);
  };
}

for (const [device, isolated] of [
  ["wasm", true],
  ["wasm", false],
  ["software", false],
] as const)
  test(`${isolated ? "with shared memory, " : ""}on ${device}: answers and learns as Node, awake`, async () => {
    const folder = await bundle(configs.even, { targets: ["wasm", "webgpu"] });
    const there = await inBrowser(folder, page(device, isolated), isolated);
    assert.is(there.error, undefined, there.error);
    assert.is(there.invariance, "verified");
    if (device === "wasm") assert.match(there.device, isolated ? /2 threads/ : /1 thread/);
    assert.ok(there.ticks > 0, "timers of the page run while it computes");
    await using engine = await load(folder, { device });
    const { ids } = await collect(engine, { prompt, maxTokens: 6 });
    const job = await engine.finetune({
      name: "j",
      data: batchOf(128),
      steps: 2,
      batchSize: 5,
      shuffle: false,
      rank: 4,
    });
    const { losses } = await job.done;
    const { logits } = await engine.score(prompt, { adapter: "j", logits: true });
    assert.equal(there.ids, ids);
    if (device === "wasm") {
      assert.equal(there.losses, [...losses], "Wasm is the same bits everywhere");
      assert.equal(there.logits, [...logits!.at(-1)!]);
    } else {
      losses.forEach((x, i) => assert.ok(Math.abs(x - there.losses[i]!) < 1e-5));
      logits!.at(-1)!.forEach((x, i) => assert.ok(Math.abs(x - there.logits[i]!) < 1e-3));
    }
  });

/** The package's worker, whose device goes when a page says so. */
const mortal = `
import "/worker-entry.js";
if (globalThis.GPUAdapter) {
  const { requestDevice } = GPUAdapter.prototype;
  let device;
  GPUAdapter.prototype.requestDevice = async function (d) { return (device = await requestDevice.call(this, d)); };
  new BroadcastChannel("destroy").onmessage = () => device.destroy();
}`;
interface Apart {
  readonly ids: readonly number[][];
  readonly unread: string[];
  readonly losses: number[];
  readonly adapted: number[];
  readonly lost: number;
  readonly files: string[];
  readonly delay: number;
  readonly error?: string;
}
const steps = 4;
/**
 * Loads, streams and trains at once while its own thread is watched; leaves streams unread; then the worker,
 * and on WebGPU the device again and again, is ended under it.
 */
const apart = (device: string, isolated: boolean): string => `
import { createWorkerEngine } from "/worker.js";
const send = (r) => fetch("/result", { method: "POST", body: JSON.stringify(r) });
try {
  // How long a key or click would wait: as a message to oneself does.
  const delays = [];
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => void delays.push(performance.now() - data);
  const watch = setInterval(() => port2.postMessage(performance.now()), 20);
  performance.mark("weft begins");
  const workers = [];
  const worker = () => {
    const w = new Worker("/mortal.js", { type: "module" });
    workers.push(w);
    return w;
  };
  let lost = 0, heard = () => {};
  /** Ends what computes, and waits until that is noticed. */
  const ended = (how) => new Promise((resolve) => {
    heard = resolve;
    how();
  });
  const destroy = new BroadcastChannel("destroy");
  const engine = await createWorkerEngine("model.weft", {
    device: ${JSON.stringify(device)}, ${isolated ? "threads: 2," : ""} worker, heartbeat: 250, cache: false,
    recover: { checkpoint: 0.001, losses: 1000 }, onRecover: (e) => {
      if (e.type !== "lost") return;
      lost++;
      heard();
    },
  });
  const options = ${JSON.stringify(sampled)};
  const read = async (o) => {
    const ids = [];
    for await (const p of engine.generate(o)) ids.push(p.id);
    return ids;
  };
  const job = await engine.finetune(${JSON.stringify({ name: "j", data: batchOf(128), steps, batchSize: 5, shuffle: false, rank: 4 })});
  const ids = await Promise.all(options.map(read));
  await job.done;
  // Thirty that nobody reads on hold up nobody.
  const left = Array.from({ length: 30 }, () => engine.generate(${JSON.stringify(unread)}));
  const begun = await Promise.all(left.map((s) => s.next()));
  if ((await engine.complete(options[0])).ids.join() !== ids[0].join()) throw new Error("another answer beside them");
  const unread = new Set(await Promise.all(left.map(async (s, i) => {
    const rest = [begun[i].value.id];
    for await (const p of s) rest.push(p.id);
    return rest.join();
  })));
  performance.mark("weft ends");
  clearInterval(watch);
  // Once more, and now its worker ends in the middle.
  const again = await engine.finetune(${JSON.stringify({ name: "k", data: batchOf(128), steps, batchSize: 5, shuffle: false, rank: 4 })});
  let n = 0;
  for await (const p of engine.generate(options[1])) {
    if (p.id !== ids[1][n]) throw new Error("another token at " + n);
    if (++n === 5) await ended(() => workers.at(-1).terminate());
    if (${JSON.stringify(destroyed[device] ?? [])}.includes(n)) await ended(() => destroy.postMessage(0));
  }
  const { losses } = await again.done;
  const { ids: adapted } = await engine.complete({ ...options[0], adapter: "k" });
  const files = [...(await (await engine.adapters.get("k")).toBlobs()).keys()];
  await engine.dispose();
  await send({ ids, unread: [...unread], losses, adapted, lost, files, delay: Math.max(...delays) });
} catch (e) {
  await send({ error: String(e && e.stack || e) });
}`;
/** Tokens behind which a device goes. */
const destroyed: Readonly<Record<string, readonly number[]>> = {
  // Behind the fifth its worker ends.
  software: long ? Array.from({ length: 20 }, (_, i) => (i < 3 ? 2 : 3) + i) : [2, 10],
};
const unread = { prompt, maxTokens: 40 };
const sampled = [
  { prompt, maxTokens: 12 },
  { prompt, maxTokens: 24, temperature: 1, seed: 9, presencePenalty: 1 },
];

for (const [device, isolated] of [
  ["wasm", true],
  ["wasm", false],
  ["software", false],
] as const)
  test(`a page whose engine is in a worker ${isolated ? "with shared memory " : ""}on ${device}: the same, also when the worker or the device ends`, async () => {
    const folder = await bundle(configs.even, { targets: ["wasm", "webgpu"] });
    const browser = await openChromium(await serving(folder, apart(device, isolated)), { isolated });
    const { got: there, events } = await browser.trace(() => browser.open<Apart>("/")).finally(browser.close);
    assert.is(there.error, undefined, there.error);
    // On a busy machine a worker that answers late is lost too.
    assert.ok(there.lost >= 1 + (destroyed[device]?.length ?? 0), `${there.lost} losses`);
    assert.equal(there.files, ["adapter_model.safetensors", "adapter_config.json"]);
    // A machine that others use stretches a task: what is our doing is its time on a processor.
    const tasks = tasksBetween(events, "weft begins", "weft ends");
    assert.ok(tasks.length > 10, "the page's own thread was watched");
    const [most, cpu] = [tasks.map((t) => t.ms), tasks.map((t) => t.cpu)].map((l) =>
      Math.max(...l).toFixed(1),
    );
    console.log(
      `    engine on ${device}${isolated ? ", shared memory" : ""}: the page's longest task ${most} ms, ` +
        `${cpu} of a processor; longest wait for a message ${there.delay.toFixed(1)} ms`,
    );
    await using engine = await load(folder, { device });
    assert.equal(there.unread, [(await collect(engine, unread)).ids.join()]);
    for (const [i, o] of sampled.entries()) assert.equal(there.ids[i], (await collect(engine, o)).ids);
    const job = await engine.finetune({
      ...{ name: "k", data: batchOf(128), steps, batchSize: 5, shuffle: false, rank: 4 },
    });
    const { losses } = await job.done;
    if (device === "wasm") {
      assert.equal(there.losses, [...losses], "Wasm is the same bits everywhere");
      assert.equal(there.adapted, (await collect(engine, { ...sampled[0]!, adapter: "k" })).ids);
    } else losses.forEach((x, i) => assert.ok(Math.abs(x - there.losses[i]!) < 1e-5));
  });
test.run();
