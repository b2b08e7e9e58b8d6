/** POST /v1/chat/completions. */
import { type Message, WeftError } from "../index.ts";
import { answered, type Spoken } from "./answer.ts";
import type { Api } from "./api.ts";
import { chatLogprob, isText } from "./logprobs.ts";
import { bodyAs, ChatBody } from "./request.ts";

export async function chat(api: Api, request: Request, body: unknown): Promise<Response> {
  const b = bodyAs(ChatBody, body);
  const { engine } = api;
  const messages = b.messages as readonly Message[];
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
  return answered(api, request, b, {
    id: "chatcmpl",
    prompts: [prompt],
    ...(tools && { marks: true as const }),
    maxTokens: b.max_completion_tokens ?? b.max_tokens ?? api.maxTokens,
    logprobs: b.logprobs ? (b.top_logprobs ?? 0) : null,
    object: { whole: "chat.completion", part: "chat.completion.chunk" },
    first: { delta: { role: "assistant", content: "", refusal: null }, logprobs: null },
    whole: (s) => ({
      message: { role: "assistant", content: s.text, refusal: null },
      logprobs: logprobs(s),
    }),
    part: (s) => ({ delta: s.text || b.logprobs ? { content: s.text } : {}, logprobs: logprobs(s) }),
  });
}
