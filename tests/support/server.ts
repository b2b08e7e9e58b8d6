/** A server of a bundle's folder, which can break off and change, and an empty cache beside it. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { bundle, configs } from "./engines.ts";
import { scratch } from "./tiny.ts";

interface Asked {
  readonly path: string;
  readonly query: string;
  readonly range: string | undefined;
  readonly headers: IncomingMessage["headers"];
}
/** A server of a folder: with ranges and ETags, or without. */
export class Server {
  readonly asked: Asked[] = [];
  /** Bytes of bodies that were sent. */
  sent = 0;
  /** Hold the next answer for a file of `weights/` behind so many bytes, until `breakOff`. */
  cut: number | null = null;
  breakOff = (): void => {};
  ranges = true;
  down = false;
  private constructor(
    public folder: string,
    private readonly port: number,
    readonly close: () => void,
  ) {}
  get url(): string {
    return `http://localhost:${this.port}/model.weft`;
  }
  static async of(folder: string): Promise<Server> {
    const server = createServer((request, response) => {
      const { pathname, search } = new URL(request.url!, "http://localhost");
      if (s.down) return void request.socket.destroy();
      const { range } = request.headers;
      s.asked.push({ path: pathname, query: search, range, headers: request.headers });
      const path = join(s.folder, pathname.replace(/^\/[^/]+\//, ""));
      if (!existsSync(path)) return void response.writeHead(404).end();
      let body: Buffer = readFileSync(path);
      const etag = `"${statSync(path).mtimeMs}-${body.length}"`;
      if (request.headers["if-none-match"] === etag) return void response.writeHead(304).end();
      const from = s.ranges ? Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0) : 0;
      const headers: Record<string, string> = { etag };
      if (from) headers["content-range"] = `bytes ${from}-${body.length - 1}/${body.length}`;
      body = body.subarray(from);
      response.writeHead(from ? 206 : 200, { ...headers, "content-length": body.length });
      if (s.cut !== null && path.includes("weights")) {
        const some = body.subarray(0, s.cut);
        s.cut = null;
        s.sent += some.length;
        s.breakOff = () => void response.destroy();
        return void response.write(some);
      }
      s.sent += body.length;
      response.end(body);
    });
    await new Promise<void>((go) => server.listen(0, "localhost", go));
    const s = new Server(folder, (server.address() as AddressInfo).port, () => {
      server.closeAllConnections();
      server.close();
    });
    return s;
  }
  reset(): void {
    this.asked.length = 0;
    this.sent = 0;
  }
}
/** Run `f` with a server of a tiny bundle and an empty cache. */
export async function served(
  f: (server: Server, kept: string) => Promise<void>,
  folder?: string,
): Promise<void> {
  const before = process.env.WEFT_CACHE;
  const kept = scratch();
  process.env.WEFT_CACHE = kept;
  const server = await Server.of(folder ?? (await bundle(configs.even)));
  try {
    await f(server, kept);
  } finally {
    server.close();
    if (before === undefined) delete process.env.WEFT_CACHE;
    else process.env.WEFT_CACHE = before;
  }
}
