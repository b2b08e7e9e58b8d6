/**
 * An engine as OpenAI's API: models, chat and text completions, files, fine-tuning jobs.
 *
 *   const answer = handler(engine); // (request: Request) => Promise<Response>
 */
import type { Engine } from "../index.ts";
import { Api } from "./api.ts";
import type { HandlerOptions } from "./options.ts";

export type { HandlerOptions };
/**
 * A function that answers requests as fetch handlers do: in Node, Deno, Bun, a service worker. Paths begin
 * with `/v1`; `/health` needs no key. It never rejects: every error is a response in OpenAI's shape. When the
 * request's signal aborts, or its stream is cancelled, the answer ends and its cache is free at once. Throws
 * WEFT_OPTION for options that are none.
 */
export function handler(
  engine: Engine,
  options: HandlerOptions = {},
): (request: Request) => Promise<Response> {
  const api = new Api(engine, options);
  // Opened now, and not while the first request waits.
  void engine.text;
  return (request) => api.respond(request);
}
