/** A fetch handler on node:http. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { Readable } from "node:stream";
import type { ReadableStream as WebStream } from "node:stream/web";
import { WeftError } from "../../runtime/bundle.ts";

export interface Server {
  /** Where it listens: `http://127.0.0.1:8080`. */
  readonly url: string;
  /** Accept nothing more; resolves when what runs has ended. */
  close(): Promise<void>;
}
/** Does a host, with a port or without, mean this machine alone? */
export const isLoopback = (host: string): boolean =>
  [host, host.replace(/:\d+$/, "")].some((h) => /^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/i.test(h));

const said = (res: ServerResponse, status: number, message: string): void => {
  res.writeHead(status, { "content-type": "application/json", connection: "close" });
  res.end(JSON.stringify({ error: { message, type: "invalid_request_error", param: null, code: null } }));
};
async function play(
  answer: (request: Request) => Promise<Response>,
  req: IncomingMessage,
  res: ServerResponse,
): Promise<void> {
  const controller = new AbortController();
  // Also after a whole answer, where nobody hears it any more.
  res.on("close", () => controller.abort());
  const headers = new Headers();
  for (let i = 0; i < req.rawHeaders.length; i += 2)
    headers.append(req.rawHeaders[i]!, req.rawHeaders[i + 1]!);
  const { method = "GET" } = req;
  const body = method === "GET" || method === "HEAD" ? null : (Readable.toWeb(req) as WebStream<Uint8Array>);
  const request = new Request(new URL(req.url ?? "/", "http://localhost"), {
    ...{ method, headers, signal: controller.signal },
    ...(body && { body: body as unknown as BodyInit, duplex: "half" }),
  } as RequestInit);
  const response = await answer(request);
  res.writeHead(response.status, Object.fromEntries(response.headers));
  const reader = response.body?.getReader();
  res.on("close", () => void reader?.cancel().catch(() => {}));
  for (;;) {
    const got = await reader?.read();
    if (!got || got.done || res.destroyed) break;
    if (!res.write(got.value))
      await new Promise<void>((resolve) => {
        const on = (): void => {
          res.off("drain", on);
          res.off("close", on);
          resolve();
        };
        res.on("drain", on);
        res.on("close", on);
      });
  }
  res.end();
}
/**
 * Answer requests at a port, 0 for any that is free. Who listens on a loopback address answers to its names
 * alone, so that a page whose name was pointed here is refused. Throws WEFT_IO where it cannot listen.
 */
export async function listen(
  answer: (request: Request) => Promise<Response>,
  {
    port,
    host,
    onError,
  }: { readonly port: number; readonly host: string; readonly onError: (e: unknown) => void },
): Promise<Server> {
  let closing = false;
  const server = createServer((req, res) => {
    if (closing) res.setHeader("connection", "close");
    res.on("close", () => closing && server.closeIdleConnections());
    if (isLoopback(host) && !isLoopback(req.headers.host ?? "localhost"))
      return said(res, 403, "This server answers to the names of its own machine");
    play(answer, req, res).catch((e: unknown) => {
      // Who has left is told nothing, and is no error of anybody's.
      if (!res.destroyed) onError(e);
      if (res.headersSent) res.destroy();
      else said(res, 400, "The request cannot be read");
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) =>
      reject(
        new WeftError({
          code: "WEFT_IO",
          where: `${host}:${port}`,
          expected: "an address to listen on",
          found: cause.message,
          hint: "--port 0 takes any that is free",
          cause,
        }),
      ),
    );
    server.listen(port, host, resolve);
  });
  const at = server.address();
  const bound = typeof at === "object" && at ? at.port : port;
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${bound}`,
    close: () => {
      closing = true;
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeIdleConnections();
      });
    },
  };
}
