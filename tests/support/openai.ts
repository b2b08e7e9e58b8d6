/** OpenAI's own client on a handler of an engine in this process. */
import OpenAI, { APIError } from "openai";
import * as assert from "uvu/assert";
import { type Engine, load } from "../../sdk/index.ts";
import { type HandlerOptions, handler } from "../../sdk/openai/index.ts";
import { storyBundle } from "./story.ts";

let shared: Engine | null = null;
const engineOf = async (): Promise<Engine> =>
  (shared ??= await load(await storyBundle(), { device: "wasm", maxQueued: 20 }));
/** For `test.after`: another file of this process opens its own. */
export const closeEngine = async (): Promise<void> => {
  const engine = shared;
  shared = null;
  await engine?.dispose();
};

type Answer = (request: Request) => Promise<Response>;
export const clientOf = (answer: Answer, apiKey = "none"): OpenAI =>
  new OpenAI({
    apiKey,
    baseURL: "http://weft.test/v1",
    maxRetries: 0,
    fetch: async (url, init) => {
      const response = answer(
        new Request(url as string, { ...init, duplex: "half" } as unknown as RequestInit),
      );
      const gone = new Promise<never>((_, reject) =>
        init?.signal?.addEventListener("abort", () => reject(init.signal!.reason)),
      );
      return Promise.race([response, gone]);
    },
  });
export async function open(o: HandlerOptions = {}) {
  const engine = await engineOf();
  const answer = handler(engine, { model: "story", ...o });
  return { engine, answer, client: clientOf(answer) };
}
export const caught = async (f: Promise<unknown>): Promise<APIError & { error: Record<string, never> }> =>
  f.then(
    () => assert.unreachable("no error") as never,
    (e) => {
      if (!(e instanceof APIError)) throw e;
      return e as never;
    },
  );
export const ask = {
  model: "story",
  messages: [{ role: "user" as const, content: "What pet does Tom have?" }],
};
/** Everything that requests held is free again. */
export const atRest = async (engine: Engine): Promise<void> => {
  const { total, free } = engine.memory().blocks;
  assert.is(free, total);
};
