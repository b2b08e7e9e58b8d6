/** A real browser, headless, on pages that a test serves: a page ends by posting its result. */
import { spawn } from "node:child_process";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Readable, Writable } from "node:stream";
import { ZEROED_IN_A_LOOP } from "../../runtime/dawn.ts";
import { scratch } from "./tiny.ts";

export interface Served {
  readonly type: string;
  readonly body: string | Uint8Array;
}
/** What lies at a path, or null; `answered` where the response was written by itself. */
export type Serve = (
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
) => Served | null | "answered";
interface Options {
  /** Pages may share memory. */
  readonly isolated?: boolean;
  /** The name under which pages find the server; of localhost alone a browser thinks that it is secure. */
  readonly host?: string;
  /** How long a page may say nothing: milliseconds. */
  readonly patience?: number;
  /**
   * WebGPU as browsers have it. Without, nothing is read out of bounds, and kernels compile three times as
   * fast.
   */
  readonly shipped?: boolean;
}
export interface Browser {
  readonly origin: string;
  /**
   * Open a path in a tab of its own; resolves with what it posts to /result, as JSON. The tab is closed then.
   */
  readonly open: <T>(path: string) => Promise<T>;
  /**
   * A command of the DevTools protocol to a tab of its own; what it overrides, is so for all of the origin.
   */
  readonly send: (method: string, params?: object) => Promise<Record<string, unknown>>;
  /** What the threads of pages do while `f` runs: events of Chromium's own tracing. */
  readonly trace: <T>(
    f: () => Promise<T>,
  ) => Promise<{ readonly got: T; readonly events: readonly TraceEvent[] }>;
  readonly close: () => void;
}
/**
 * An event of the Trace Event Format: times in microseconds, `tdur` those that its thread had a processor.
 */
export interface TraceEvent {
  readonly name: string;
  readonly ph: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur?: number;
  readonly tdur?: number;
  readonly args?: { readonly name?: string };
}
/** Tasks of the thread that made two marks of `performance.mark`, between them: ms, and ms of a processor. */
export function tasksBetween(
  events: readonly TraceEvent[],
  from: string,
  to: string,
): { ms: number; cpu: number }[] {
  const [first, last] = [from, to].map((name) => events.find((e) => e.name === name)!);
  const own = (e: TraceEvent): boolean => e.pid === first!.pid && e.tid === first!.tid && e.ph === "X";
  return events
    .filter(
      (e) => own(e) && e.name === "ThreadControllerImpl::RunTask" && e.ts >= first!.ts && e.ts <= last!.ts,
    )
    .map((e) => ({ ms: e.dur! / 1000, cpu: (e.tdur ?? Number.NaN) / 1000 }));
}
/**
 * The DevTools protocol over two pipes: JSON, each message ended by a zero byte. `hear` is told of events.
 */
function protocol(
  to: Writable,
  from: Readable,
  hear: (method: string, params: Record<string, unknown>) => void,
): (method: string, params?: object, sessionId?: string) => Promise<Record<string, unknown>> {
  const waiting = new Map<
    number,
    { resolve: (r: Record<string, unknown>) => void; reject: (e: Error) => void }
  >();
  let rest = "";
  let next = 1;
  from.setEncoding("utf8").on("data", (data: string) => {
    const messages = (rest + data).split("\0");
    rest = messages.pop()!;
    for (const text of messages) {
      const { id, result, error, method, params } = JSON.parse(text) as {
        id?: number;
        method?: string;
        params?: Record<string, unknown>;
        result?: Record<string, unknown>;
        error?: { message: string };
      };
      if (method) hear(method, params ?? {});
      const asked = id === undefined ? undefined : waiting.get(id);
      if (id !== undefined) waiting.delete(id);
      if (error) asked?.reject(new Error(error.message));
      else asked?.resolve(result ?? {});
    }
  });
  // A browser that was killed hears nothing more.
  to.on("error", () => {});
  return (method, params = {}, sessionId) =>
    new Promise((resolve, reject) => {
      waiting.set(next, { resolve, reject });
      to.write(`${JSON.stringify({ id: next++, method, params, sessionId })}\0`);
    });
}

export async function openChromium(serve: Serve, o: Options = {}): Promise<Browser> {
  const { default: chromium } = (await import("@sparticuz/chromium")) as unknown as {
    default: { executablePath: () => Promise<string> };
  };
  const { isolated = false, host = "localhost", patience = 120_000, shipped = false } = o;
  const results = new Map<string, (r: unknown) => void>();
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
        results.get(String(req.headers.referer))?.(JSON.parse(body));
      });
      return;
    }
    const served = serve(path, req, res);
    if (served === "answered") return;
    if (served) res.writeHead(200, { "content-type": served.type }).end(served.body);
    else res.writeHead(404).end();
  });
  await new Promise<void>((r) => server.listen(0, "127.0.0.1", r));
  const { port } = server.address() as { port: number };
  const origin = `http://${host}:${port}`;
  const child = spawn(
    await chromium.executablePath(),
    [
      "--headless",
      // Of a machine without a locale a browser makes a language that is none.
      "--lang=en-US",
      "--accept-lang=en-US",
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      "--disable-gpu-sandbox",
      ...(shipped
        ? []
        : ["--enable-dawn-features=disable_robustness", `--disable-dawn-features=${ZEROED_IN_A_LOOP}`]),
      `--host-resolver-rules=MAP ${host} 127.0.0.1`,
      `--user-data-dir=${scratch("weft-chromium-")}`,
      "--remote-debugging-pipe",
      "about:blank",
    ],
    { stdio: ["ignore", "ignore", "pipe", "pipe", "pipe"] },
  );
  let stderr = "";
  child.stderr!.on("data", (d) => (stderr += d));
  let traced: TraceEvent[] = [];
  let complete = (): void => {};
  const send = protocol(child.stdio[3] as Writable, child.stdio[4] as Readable, (method, params) => {
    if (method === "Tracing.dataCollected") traced.push(...(params.value as TraceEvent[]));
    if (method === "Tracing.tracingComplete") complete();
  });
  let session: Promise<string> | undefined;
  const attach = async (): Promise<string> => {
    const { targetId } = await send("Target.createTarget", { url: "about:blank" });
    return String((await send("Target.attachToTarget", { targetId, flatten: true })).sessionId);
  };
  let tabs = 0;
  return {
    origin,
    send: async (method, params) => send(method, params, await (session ??= attach())),
    open: async <T>(path: string): Promise<T> => {
      // Which tab a result is of: pages say where they are.
      const url = `${origin}${path}${path.includes("?") ? "&" : "?"}tab=${tabs++}`;
      const result = new Promise<T>((resolve) => results.set(url, resolve as (r: unknown) => void));
      let timer: NodeJS.Timeout | undefined;
      const timeout = new Promise<T>((_, reject) => {
        const said = (): Error =>
          new Error(`the page said nothing for ${patience / 1000} s\n${stderr.slice(-2000)}`);
        timer = setTimeout(() => reject(said()), patience);
      });
      const { targetId } = await send("Target.createTarget", { url });
      try {
        return await Promise.race([result, timeout]);
      } finally {
        clearTimeout(timer);
        results.delete(url);
        await send("Target.closeTarget", { targetId });
      }
    },
    trace: async (f) => {
      traced = [];
      const over = new Promise<void>((resolve) => (complete = resolve));
      const includedCategories = ["toplevel", "blink.user_timing"];
      await send("Tracing.start", { traceConfig: { includedCategories }, transferMode: "ReportEvents" });
      const got = await f();
      await send("Tracing.end");
      await over;
      return { got, events: traced };
    },
    close: () => {
      child.kill("SIGKILL");
      server.close();
      server.closeAllConnections();
    },
  };
}
/** One page, `/`, in a browser of its own. */
export async function inChromium<T>(serve: Serve, o: Options = {}): Promise<T> {
  const browser = await openChromium(serve, o);
  try {
    return await browser.open<T>("/");
  } finally {
    browser.close();
  }
}
