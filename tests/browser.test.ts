/**
 * The same bundle in a real browser, on its own WebGPU (software) and on Wasm: without the compiler, over
 * HTTP, the same answers as in Node.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { doors, forPages } from "../scripts/build.ts";
import { load } from "../sdk/index.ts";
import { inChromium, type Served } from "./support/chromium.ts";
import { batchOf, bundle, collect, configs, idsOf } from "./support/engines.ts";
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
  const { outputFiles } = await forPages({ entryPoints: { sdk: doors.index }, outdir: "/", write: false });
  return new Map(outputFiles!.map((f) => [f.path, f.text]));
};
async function inBrowser(folder: string, device: string, isolated: boolean): Promise<Result> {
  const scripts = await (sdk ??= built());
  const script = (body: string): Served => ({ type: "text/javascript", body });
  return inChromium<Result>(
    (path) => {
      if (path === "/")
        return { type: "text/html", body: '<!doctype html><script type="module" src="/page.js"></script>' };
      if (path === "/page.js") return script(page(device, isolated));
      if (path.startsWith("/model.weft/"))
        return {
          type: "application/octet-stream",
          body: readFileSync(join(folder, path.slice("/model.weft/".length))),
        };
      const body = scripts.get(path);
      return body === undefined ? null : script(body);
    },
    { isolated },
  );
}

for (const [device, isolated] of [
  ["wasm", true],
  ["wasm", false],
  ["software", false],
] as const)
  test(`${isolated ? "with shared memory, " : ""}on ${device}: answers and learns as Node, awake`, async () => {
    const folder = await bundle(configs.even, { targets: ["wasm", "webgpu"] });
    const there = await inBrowser(folder, device, isolated);
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
test.run();
