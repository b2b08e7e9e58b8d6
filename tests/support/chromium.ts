/** A real browser, headless, on a page that a test serves: the page ends by posting its result. */
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { scratch } from "./tiny.ts";

export interface Served {
  readonly type: string;
  readonly body: string | Uint8Array;
}
const patience = 120_000;

/**
 * Open `/` and resolve with what the page posts to /result, as JSON. `serve` gives what lies at a path, or
 * null. With `isolated` the page may share memory.
 */
export async function inChromium<T>(
  serve: (path: string) => Served | null,
  { isolated = false }: { readonly isolated?: boolean } = {},
): Promise<T> {
  const { default: chromium } = (await import("@sparticuz/chromium")) as unknown as {
    default: { executablePath: () => Promise<string> };
  };
  let resolve: (r: T) => void = () => {};
  const result = new Promise<T>((r) => (resolve = r));
  const server = createServer((req, res) => {
    if (isolated) {
      res.setHeader("cross-origin-opener-policy", "same-origin");
      res.setHeader("cross-origin-embedder-policy", "require-corp");
    }
    const path = decodeURI((req.url ?? "/").replace(/\?.*/, ""));
    if (path === "/result") {
      let body = "";
      req.on("data", (d) => (body += d));
      req.on("end", () => {
        res.end();
        resolve(JSON.parse(body) as T);
      });
      return;
    }
    const served = serve(path);
    if (served) res.writeHead(200, { "content-type": served.type }).end(served.body);
    else res.writeHead(404).end();
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
  const timeout = new Promise<T>((_, reject) =>
    setTimeout(
      () => reject(new Error(`the page said nothing for two minutes\n${stderr.slice(-2000)}`)),
      patience,
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
