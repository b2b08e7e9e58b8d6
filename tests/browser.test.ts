/**
 * The same bundle in a real browser, on its own WebGPU (software) and on Wasm: without the compiler, over
 * HTTP, the same answers as in Node.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import { load } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

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
  const engine = await load(new URL("/model.weft", location.href), { device: ${JSON.stringify(device)}, ${isolated ? "threads: 2" : ""} });
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

async function inBrowser(folder: string, device: string, isolated: boolean): Promise<Result> {
  const { build } = await import("esbuild");
  const sdk = await build({
    entryPoints: [fileURLToPath(new URL("../sdk/index.ts", import.meta.url))],
    bundle: true,
    format: "esm",
    platform: "browser",
    write: false,
    external: ["*/compiler/compile.ts", "node:*"],
    logLevel: "error",
  });
  const code = sdk.outputFiles[0]!.text;
  assert.is(
    /compileAssembly|binaryen|emitLaunch/.test(code),
    false,
    "a page that plays a bundle ships no compiler",
  );
  const { default: chromium } = (await import("@sparticuz/chromium")) as unknown as {
    default: { executablePath: () => Promise<string> };
  };
  let resolve: (r: Result) => void = () => {};
  const result = new Promise<Result>((r) => (resolve = r));
  const server = createServer((req, res) => {
    if (isolated) {
      res.setHeader("cross-origin-opener-policy", "same-origin");
      res.setHeader("cross-origin-embedder-policy", "require-corp");
    }
    const url = req.url ?? "/";
    if (url === "/result") {
      let body = "";
      req.on("data", (d) => (body += d));
      req.on("end", () => {
        res.end();
        resolve(JSON.parse(body) as Result);
      });
    } else if (url.startsWith("/model.weft/"))
      res.end(readFileSync(join(folder, url.slice("/model.weft/".length))));
    else if (url === "/sdk.js" || url === "/page.js")
      res
        .writeHead(200, { "content-type": "text/javascript" })
        .end(url === "/sdk.js" ? code : page(device, isolated));
    else
      res
        .writeHead(200, { "content-type": "text/html" })
        .end('<!doctype html><script type="module" src="/page.js"></script>');
  });
  await new Promise<void>((r) => server.listen(0, "localhost", r));
  const { port } = server.address() as { port: number };
  const child = spawn(
    await chromium.executablePath(),
    [
      "--headless",
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      "--disable-gpu-sandbox",
      `--user-data-dir=${scratch("weft-chromium-")}`,
      `http://localhost:${port}/`,
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  let stderr = "";
  child.stderr.on("data", (d) => (stderr += d));
  const timeout = new Promise<Result>((_, reject) =>
    setTimeout(
      () => reject(new Error(`the page said nothing for two minutes\n${stderr.slice(-2000)}`)),
      120_000,
    ).unref(),
  );
  try {
    return await Promise.race([result, timeout]);
  } finally {
    child.kill("SIGKILL");
    server.close();
    server.closeAllConnections();
  }
}

for (const [device, isolated] of [
  ["wasm", true],
  ["wasm", false],
  ["software", false],
] as const)
  test(`a page ${isolated ? "with shared memory " : ""}on ${device} answers and learns as Node does, and stays awake`, async () => {
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
