/** POST /v1/chat/completions. */
import { type Message, WeftError } from "../index.ts";
import { answered, type Spoken } from "./answer.ts";
import type { Api } from "./api.ts";
import { Calls, forTemplate } from "./calls.ts";
import { chatLogprob, isText } from "./logprobs.ts";
import { bodyAs, ChatBody } from "./request.ts";

export async function chat(api: Api, request: Request, body: unknown): Promise<Response> {
  const b = bodyAs(ChatBody, body);
  const { engine } = api;
  const messages = forTemplate(b.messages as readonly Message[]);
  const tools = b.tool_choice !== "none" && b.tools?.length ? b.tools : null;
  const asked = { messages, templateArguments: b.chat_template_kwargs ?? {} };
  const prompt = engine.promptIds({ ...asked, ...(tools && { tools }) });
  if (tools && `${prompt}` === `${engine.promptIds(asked)}`)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "tools",
      expected: "none: the model's chat template does not tell it of tools",
      found: `${tools.length}`,
    });
  const logprobs = ({ pieces }: Spoken) =>
    b.logprobs
      ? {
          content: pieces.filter((p) => isText(engine, p)).map((p) => chatLogprob(engine, p)),
          refusal: null,
        }
      : null;
  // Of each choice, what it says of tools; null where none were given.
  const names = new Set(tools?.map((t) => (t as { function?: { name?: string } }).function?.name ?? ""));
  const heard = new Map<number, Calls>();
  const callsOf = (index: number): Calls | null => {
    if (!tools) return null;
    const calls = heard.get(index) ?? new Calls(names);
    heard.set(index, calls);
    return calls;
  };
  const called = (calls: Calls | null) => (calls?.made.length ? { finish_reason: "tool_calls" } : {});
  return answered(api, request, b, {
    id: "chatcmpl",
    prompts: [prompt],
    ...(tools && { marks: true as const }),
    maxTokens: b.max_completion_tokens ?? b.max_tokens ?? api.maxTokens,
    logprobs: b.logprobs ? (b.top_logprobs ?? 0) : null,
    object: { whole: "chat.completion", part: "chat.completion.chunk" },
    first: { delta: { role: "assistant", content: "", refusal: null }, logprobs: null },
    whole: (s) => {
      const calls = callsOf(s.index);
      const content = calls ? calls.take(s.text) + calls.end() : s.text;
      const made = calls?.made.length ? { tool_calls: calls.made } : {};
      return {
        message: {
          role: "assistant",
          content: content || !calls?.made.length ? content : null,
          refusal: null,
          ...made,
        },
        logprobs: logprobs(s),
        ...called(calls),
      };
    },
    part: (s) => {
      const calls = callsOf(s.index);
      const before = calls?.made.length ?? 0;
      const { finish } = s.pieces[0]!;
      const content = calls ? calls.take(s.text) + (finish ? calls.end() : "") : s.text;
      const made = (calls?.made ?? []).slice(before).map((call, i) => ({ index: before + i, ...call }));
      return {
        delta: {
          ...((content || b.logprobs) && { content }),
          ...(made.length && { tool_calls: made }),
        },
        logprobs: logprobs(s),
        ...(finish && called(calls)),
      };
    },
  });
}
