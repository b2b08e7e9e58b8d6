/**
 * `npm run example:browser`: compiles the example model, builds the page, and serves both with the two
 * headers that let it share memory between threads.
 *
 *   npm run example:browser -- [--port 8008]
 */
import { createReadStream, readFileSync, statSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { forPages, workerEntry } from "../../scripts/build.ts";
import { compile, type Manifest } from "../../sdk/index.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const BUNDLE = "/story.weft/";

export interface Served {
  readonly type: string;
  readonly body: string | Uint8Array;
}
/** What lies at which path of the page. */
export async function buildPage(): Promise<ReadonlyMap<string, Served>> {
  const to = { outdir: "/", write: false } as const;
  const entryPoints = { main: "examples/browser/main.ts", style: "examples/browser/style.css" };
  const built = await Promise.all([
    forPages({ ...to, entryPoints, minify: true }),
    forPages({ ...to, ...workerEntry }),
  ]);
  const files = new Map<string, Served>();
  for (const { path, contents } of built.flatMap((b) => b.outputFiles!))
    files.set(path, { type: path.endsWith(".css") ? "text/css" : "text/javascript", body: contents });
  files.set("/", { type: "text/html", body: readFileSync(join(here, "index.html")) });
  return files;
}
/** Answers for the page and for the bundle in `folder`: of that, only what its manifest lists. */
export function serving(
  page: ReadonlyMap<string, Served>,
  folder: string,
): (request: IncomingMessage, response: ServerResponse) => void {
  const { files } = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8")) as Manifest;
  return (request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    const path = decodeURIComponent(pathname);
    // Memory can be shared in pages that no other site can reach into.
    response.setHeader("cross-origin-opener-policy", "same-origin");
    response.setHeader("cross-origin-embedder-policy", "require-corp");
    response.setHeader("cache-control", "no-cache");
    const served = page.get(path);
    const name = path.startsWith(BUNDLE) ? path.slice(BUNDLE.length) : null;
    if (served) response.writeHead(200, { "content-type": served.type }).end(served.body);
    else if (name === "manifest.json" || (name !== null && Object.hasOwn(files, name)))
      send(join(folder, name), request, response);
    else response.writeHead(404).end();
  };
}
/** A file, from where a download that broke off goes on. */
function send(path: string, { headers }: IncomingMessage, response: ServerResponse): void {
  const from = Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0);
  const { size } = statSync(path);
  response.writeHead(from ? 206 : 200, {
    ...{ "content-type": "application/octet-stream", "content-length": Math.max(0, size - from) },
    ...(from && { "content-range": `bytes ${from}-${size - 1}/${size}` }),
  });
  createReadStream(path, { start: from })
    .on("error", (e) => response.destroy(e))
    .pipe(response);
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { port: { type: "string", default: "8008" } } });
  const folder = fileURLToPath(new URL("../../.weft/browser/story.weft", import.meta.url));
  console.log("weft · compiling examples/model/story");
  const [page] = await Promise.all([
    buildPage(),
    compile(join(here, "../model/story"), folder, {
      targets: ["wasm", "webgpu"],
      train: ["lora"],
      capacities: {
        ...{ context: 192, tokens: 128, headRows: 16, savedRows: 1024, keptRows: 512, quantum: 32 },
        ...{ unitRows: 64, units: 16, slots: 6, jobs: 1, rank: 8, blocks: 128, sequences: 16 },
      },
    }),
  ]);
  const server = createServer(serving(page, folder));
  server.listen(Number(values.port), "localhost", () => {
    console.log(`weft · open http://localhost:${(server.address() as AddressInfo).port}`);
  });
}
if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
