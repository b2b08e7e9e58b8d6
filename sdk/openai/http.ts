/** Bodies in, within bounds; JSON and server-sent events out. */
import { showBytes, WeftError } from "../../runtime/bundle.ts";
import { ApiError } from "./errors.ts";

export const json = (body: unknown, status = 200, headers: Record<string, string> = {}): Response =>
  new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } });

/** All of a request's body. Throws 413 as soon as it is longer than `limit` bytes. */
export async function bodyOf(request: Request, limit: number): Promise<Uint8Array<ArrayBuffer>> {
  const tooLarge = (): ApiError =>
    new ApiError(413, `The body is larger than ${showBytes(limit)}`, "request_too_large");
  if (Number(request.headers.get("content-length") ?? 0) > limit) throw tooLarge();
  const pieces: Uint8Array[] = [];
  let length = 0;
  const reader = request.body?.getReader();
  for (;;) {
    const got = await reader?.read();
    if (!got || got.done) break;
    length += got.value.length;
    if (length > limit) {
      await reader!.cancel().catch(() => {});
      throw tooLarge();
    }
    pieces.push(got.value);
  }
  const all = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
/** A JSON object. Throws 415 for what says that it is something else, 400 for what is none. */
export async function jsonOf(request: Request, limit: number): Promise<Record<string, unknown>> {
  const type = request.headers.get("content-type") ?? "";
  // A page of another site can send text without asking, and JSON only where it is allowed to.
  if (!/^application\/json\b/i.test(type))
    throw new ApiError(415, `The body must be application/json, found ${type || "no content-type"}`);
  const bytes = await bodyOf(request, limit);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (e) {
    throw new ApiError(400, `The body is not JSON: ${(e as Error).message}`, "invalid_json");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new ApiError(400, "The body must be a JSON object", "invalid_json");
  return value as Record<string, unknown>;
}

/**
 * Server-sent events: what `next` gives, one event each, until it gives null; then `[DONE]`. An error ends
 * the stream with an event that says it. `close` is called once, whoever ends it.
 */
export function events(
  next: () => Promise<unknown>,
  { close, failed }: { readonly close: () => void; readonly failed: (e: unknown) => unknown },
): Response {
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const send = (data: string): void => controller.enqueue(encoder.encode(`data: ${data}\n\n`));
        try {
          const value = await next();
          if (value !== null) return send(JSON.stringify(value));
          send("[DONE]");
        } catch (e) {
          send(JSON.stringify(failed(e)));
        }
        close();
        controller.close();
      },
      cancel: close,
    },
    { highWaterMark: 0 },
  );
  return new Response(body, {
    headers: { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" },
  });
}

/** `page` of a list, in the shape of OpenAI's: those after `after`, at most `limit`. */
export function page<T extends { readonly id: string }>(
  all: readonly T[],
  url: URL,
  most = 100,
): { object: "list"; data: T[]; first_id: string | null; last_id: string | null; has_more: boolean } {
  const said = url.searchParams.get("limit");
  const limit = said === null ? 20 : Number(said);
  if (!Number.isInteger(limit) || limit < 1)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "limit",
      expected: "a positive integer",
      found: String(said),
    });
  const after = url.searchParams.get("after");
  const start = after === null ? 0 : all.findIndex((x) => x.id === after) + 1;
  if (after !== null && start === 0) throw new ApiError(404, `There is no ${after}`, "not_found", "after");
  const data = all.slice(start, start + Math.min(limit, most));
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: start + data.length < all.length,
  };
}
