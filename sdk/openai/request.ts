/**
 * Bodies of requests for answers: what OpenAI's API may be asked, described once, as options of the engine.
 */
import * as v from "valibot";
import { checked, requestEntries } from "../../runtime/options.ts";
import {
  boolean,
  count,
  integer,
  maybe,
  number,
  type Of,
  object,
  positive,
  record,
  text,
  tokenIds,
} from "../../runtime/schema.ts";
import type { Engine, GenerateOptions } from "../index.ts";

/** What would change the answer and is not there: refused, unless it asks for what is done anyhow. */
const only = (expected: string, ok: (x: unknown) => boolean) =>
  v.optional(v.custom<unknown>((x) => x === null || ok(x), expected));
const anything = v.optional(v.unknown());

const stops = v.union([text, v.array(text)], "texts, or one");
export const common = {
  model: text,
  max_tokens: maybe(positive),
  temperature: maybe(number("a number from 0 to 2", (x) => x >= 0 && x <= 2)),
  top_p: maybe(number("a number from 0 to 1", (x) => x >= 0 && x <= 1)),
  n: maybe(integer(1, 129)),
  stop: maybe(stops),
  stream: maybe(boolean),
  stream_options: maybe(object({ include_usage: maybe(boolean), include_obfuscation: anything })),
  seed: maybe(number("an integer", Number.isSafeInteger)),
  presence_penalty: maybe(number("a number from -2 to 2", (x) => Math.abs(x) <= 2)),
  frequency_penalty: maybe(number("a number from -2 to 2", (x) => Math.abs(x) <= 2)),
  logit_bias: maybe(record(number("a number from -100 to 100", (x) => Math.abs(x) <= 100))),
  // Not OpenAI's, and the same in other servers.
  top_k: maybe(count),
  min_p: maybe(number("a number from 0 to 1", (x) => x >= 0 && x <= 1)),
  repetition_penalty: maybe(number("a number above 0", (x) => x > 0)),
  cache_salt: maybe(requestEntries.salt.wrapped),
  // What changes no answer here.
  user: anything,
  metadata: anything,
  store: anything,
  service_tier: anything,
  safety_identifier: anything,
  prompt_cache_key: anything,
  prompt_cache_retention: anything,
};
/** Most alternatives a token, as OpenAI has it. */
const TOP_LOGPROBS = 20;
const tool = v.custom<object>(
  (x) => (x as { type?: unknown } | null)?.type === "function",
  'a tool, { type: "function", function }',
);
export const ChatBody = object({
  ...common,
  messages: v.array(v.unknown()),
  max_completion_tokens: maybe(positive),
  logprobs: maybe(boolean),
  top_logprobs: maybe(integer(0, TOP_LOGPROBS + 1)),
  parallel_tool_calls: anything,
  /** As other servers of this API have it: more that the chat template knows. */
  chat_template_kwargs: maybe(record(v.unknown())),
  /** The model's template spells them; `calls.ts` finds what the model says of them. */
  tools: maybe(v.array(tool)),
  tool_choice: only(
    '"auto" or "none": nothing makes a model call a tool',
    (x) => x === "auto" || x === "none",
  ),
  functions: only("no functions: pass tools", (x) => Array.isArray(x) && x.length === 0),
  response_format: only(
    '{ type: "text" }: others are not supported',
    (x) => (x as { type?: unknown }).type === "text",
  ),
  modalities: only('["text"]', (x) => JSON.stringify(x) === '["text"]'),
});
export type ChatBody = Of<typeof ChatBody>;
export const CompletionBody = object({
  ...common,
  prompt: v.union(
    [text, v.pipe(v.array(text), v.minLength(1)), tokenIds, v.pipe(v.array(tokenIds), v.minLength(1))],
    "a text, a list of texts, token ids or a list of lists of token ids",
  ),
  logprobs: maybe(integer(0, TOP_LOGPROBS + 1)),
  echo: only("false: echo is not supported", (x) => x === false),
  best_of: only("1: choosing among more is not supported", (x) => x === 1),
  suffix: only("none: it is not supported", () => false),
});
export type CompletionBody = Of<typeof CompletionBody>;
type CommonBody = Pick<ChatBody, keyof typeof common>;

export const bodyAs = <const S extends v.GenericSchema>(schema: S, body: unknown): v.InferOutput<S> =>
  checked(schema, body);

/** Of an object, what is neither undefined nor null. */
const said = <T extends object>(o: T): { [K in keyof T]?: NonNullable<T[K]> } =>
  Object.fromEntries(Object.entries(o).filter(([, x]) => x !== undefined && x !== null)) as never;
/**
 * How an answer is drawn, in the engine's words. What is not said is as the model's makers sample from it
 * (generation_config.json), and where they do not say, as OpenAI's API has it.
 */
export function drawnAs(
  { generationDefaults: theirs }: Engine,
  body: CommonBody,
): Omit<GenerateOptions, "prompt" | "messages" | "maxTokens"> {
  const temperature = body.temperature ?? theirs.temperature ?? 1;
  const list = typeof body.stop === "string" ? [body.stop] : (body.stop ?? []);
  return said({
    temperature,
    // 0 is OpenAI's for the likeliest token alone.
    topP: body.top_p === 0 ? Number.MIN_VALUE : (body.top_p ?? theirs.topP),
    topK: body.top_k ?? theirs.topK,
    minP: body.min_p ?? theirs.minP,
    repetitionPenalty: body.repetition_penalty ?? theirs.repetitionPenalty,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias,
    seed: body.seed,
    salt: body.cache_salt,
    stop: list.filter((s) => s !== ""),
  });
}
