/** A browser, and a server of pages and of one bundle: scripts that run in new tabs. */
import { readFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { doors, forPages } from "../../scripts/build.ts";
import { type Browser, openChromium, type Serve } from "./chromium.ts";
import { batchOf, bundle, configs, idsOf } from "./engines.ts";

export const prompt = idsOf("page", 10, 128);
export const rows = batchOf(128);
export const job = { name: "j", batchSize: 5, rank: 4, shuffle: false } as const;
export const shard = "weights/model-00000.safetensors";

/** The SDK as the package ships it for pages, and what tests run beside it. */
let scripts: Promise<ReadonlyMap<string, string>> | undefined;
const built = async (): Promise<ReadonlyMap<string, string>> => {
  const { outputFiles } = await forPages({
    entryPoints: { sdk: doors.index, support: "tests/support/page.ts" },
    ...{ outdir: "/", write: false },
  });
  return new Map(outputFiles!.map((f) => [f.path, f.text]));
};
interface Asked {
  readonly path: string;
  readonly query: string;
  readonly headers: IncomingMessage["headers"];
}
/** A browser, and a server of pages and of one bundle. */
export class Site {
  readonly asked: Asked[] = [];
  sent = 0;
  /** Nothing of the bundle is answered. */
  down = false;
  /** The next answer for weights breaks off behind so many bytes, when a page asks for `/more`. */
  cut: number | null = null;
  /** The next answer for weights stops half way, until a page asks for `/more`. */
  pause = false;
  private goOn: (() => void) | null = null;
  /** A file whose bytes are others. */
  spoilt: string | null = null;
  private script = "";
  private constructor(
    readonly browser: Browser,
    readonly folder: string,
  ) {}
  static async run(f: (site: Site) => Promise<void>, o: { host?: string } = {}): Promise<void> {
    const all = await (scripts ??= built());
    const folder = await bundle(configs.even);
    let site: Site;
    const serve: Serve = (path, request, response) => {
      if (path.startsWith("/page"))
        return { type: "text/html", body: '<!doctype html><script type="module" src="/script.js"></script>' };
      if (path === "/script.js") return { type: "text/javascript", body: site.script };
      if (path === "/more") {
        site.goOn?.();
        return { type: "text/plain", body: "" };
      }
      if (path.startsWith("/model.weft/")) return site.bundle(path, request, response);
      const body = all.get(path);
      return body === undefined ? null : { type: "text/javascript", body };
    };
    const browser = await openChromium(serve, o);
    site = new Site(browser, folder);
    try {
      await f(site);
    } finally {
      browser.close();
    }
  }
  private bundle(path: string, request: IncomingMessage, response: Parameters<Serve>[2]): "answered" {
    if (this.down) {
      request.socket.destroy();
      return "answered";
    }
    const name = path.slice("/model.weft/".length);
    const query = new URL(request.url!, "http://x").search;
    this.asked.push({ path: name, query, headers: request.headers });
    let body: Buffer;
    try {
      body = readFileSync(join(this.folder, name));
    } catch {
      response.writeHead(404).end();
      return "answered";
    }
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const range = { "content-range": `bytes ${from}-${body.length - 1}/${body.length}` };
    if (name === this.spoilt) body[body.length - 1]! ^= 1;
    body = body.subarray(from);
    response.writeHead(from ? 206 : 200, { "content-length": body.length, ...(from && range) });
    if (this.cut !== null && name === shard) {
      body = body.subarray(0, this.cut);
      this.cut = null;
      this.goOn = () => response.destroy();
      response.write(body);
    } else if (this.pause && name === shard) {
      this.pause = false;
      const half = body.length >> 1;
      this.goOn = () => response.end(body.subarray(half));
      response.write(body.subarray(0, half));
    } else response.end(body);
    this.sent += body.length;
    return "answered";
  }
  reset(): void {
    this.asked.length = 0;
    this.sent = 0;
  }
  /**
   * Run a script in a new tab: a function's body, to which `weft` is the SDK, `support` what tests add, and
   * `said(f)` the WeftError that f throws. `openInPart` asks for more when it has heard of a part. Resolves
   * with what it returns.
   */
  async visit<T>(body: string, path = "/page"): Promise<T> {
    this.script = `
import * as weft from "/sdk.js";
import * as support from "/support.js";
const [prompt, rows, job] = ${JSON.stringify([prompt, rows, job])};
const said = (f) => f().then(() => "nothing", (e) => e instanceof weft.WeftError
  ? { code: e.code, message: e.message, retryable: e.retryable } : String(e && e.stack || e));
const open = (o = {}) => weft.load("model.weft", { device: "wasm", ...o });
const openInPart = (o = {}) => {
  let told = false;
  return open({ ...o, onProgress: (p) => {
    o.onProgress?.(p);
    if (p.phase !== "fetch" || !p.done || p.done === p.total || told) return;
    told = true;
    fetch("/more");
  } });
};
const answer = async (engine) => (await engine.complete({ prompt, maxTokens: 5 })).ids;
const bits = async (blobs) => {
  let out = "";
  for (const [name, blob] of blobs) out += name + [...new Uint8Array(await blob.arrayBuffer())].join();
  return out;
};
let result;
try {
  result = { value: await (async () => { ${body} })() };
} catch (e) {
  result = { error: String(e && e.stack || e) };
}
await fetch("/result", { method: "POST", body: JSON.stringify(result), referrer: location.href });`;
    const { value, error } = await this.browser.open<{ value: T; error?: string }>(path);
    assert.is(error, undefined, error);
    return value;
  }
}
