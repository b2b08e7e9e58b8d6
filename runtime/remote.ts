/** Files at an address: what is asked of the server, and what is taken of its answer. */
import { WeftError } from "./errors.ts";
import { isNode } from "./node.ts";

/** How a server is asked. */
export interface Remote {
  /** Instead of the global `fetch`. */
  readonly fetch?: typeof fetch | undefined;
  /** Sent with every request. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Ends what is on its way. */
  readonly signal?: AbortSignal | undefined;
}
/** Hears of bytes as they come. */
export type Heard = (bytes: number) => void;

/** A folder's address, with a slash at its end. */
export function folderUrl(location: string | URL): URL {
  const base = new URL(location);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}
/** A file in it: the query (a token, say) goes with every file. */
export function fileUrl(base: URL, name: string): URL {
  const url = new URL(name, base);
  url.search = base.search;
  return url;
}
/** What errors call an address: without its query, which may be a secret. */
export const shown = (url: URL): string => url.origin + url.pathname;

const broken = (where: string, cause: unknown): WeftError => {
  const found = cause instanceof Error ? cause.message : String(cause);
  return new WeftError({ code: "WEFT_IO", where, expected: "a response", found, retryable: true, cause });
};
/**
 * The answer to a request. `ok`: statuses that are one. Throws WEFT_IO: retryable where there was no answer,
 * or the server failed.
 */
export async function ask(
  url: URL,
  o: Remote,
  more: { readonly headers?: Readonly<Record<string, string>>; readonly cache?: RequestCache } = {},
  ok: (status: number) => boolean = (status) => status === 200,
): Promise<Response> {
  const where = shown(url);
  const init: RequestInit = { headers: { ...o.headers, ...more.headers } };
  if (o.signal) init.signal = o.signal;
  if (more.cache && !isNode) init.cache = more.cache;
  const response = await (o.fetch ?? fetch)(url, init).catch((cause: unknown) => {
    if (o.signal?.aborted) throw cause;
    throw broken(where, cause);
  });
  if (ok(response.status)) return response;
  const { status } = response;
  await response.body?.cancel().catch(() => {});
  throw new WeftError({
    code: "WEFT_IO",
    where,
    expected: "200",
    found: String(status),
    retryable: status >= 500 || status === 429,
    cause: { status },
  });
}
/** The status that an error of `ask` is about, if a server said one. */
export const statusOf = (e: unknown): number | undefined =>
  e instanceof WeftError ? (e.cause.cause as { status?: number } | undefined)?.status : undefined;

/** The body of a response, as it comes. Throws WEFT_IO (retryable) where it breaks off. */
export async function* bodyOf(response: Response, url: URL, o: Remote): AsyncGenerator<Uint8Array, void> {
  const body = response.body?.getReader();
  try {
    for (;;) {
      const piece = await body?.read();
      if (!piece || piece.done) return;
      yield piece.value;
    }
  } catch (cause) {
    if (o.signal?.aborted) throw cause;
    throw broken(shown(url), cause);
  } finally {
    // Where the caller had enough; nobody waits for the rest.
    void body?.cancel().catch(() => {});
  }
}
/** A whole file, of at most `limit` bytes. Throws WEFT_IO, and WEFT_BUNDLE for more. */
export async function readUrl(url: URL, limit: number, o: Remote, heard?: Heard): Promise<Uint8Array> {
  return readBody(await ask(url, o), url, limit, o, heard);
}
export async function readBody(
  response: Response,
  url: URL,
  limit: number,
  o: Remote,
  heard?: Heard,
): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of bodyOf(response, url, o)) {
    bytes += piece.length;
    if (bytes > limit) {
      const expected = `at most ${limit} bytes`;
      throw new WeftError({ code: "WEFT_BUNDLE", where: shown(url), expected, found: "more" });
    }
    pieces.push(piece);
    heard?.(piece.length);
  }
  const out = new Uint8Array(bytes);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}
