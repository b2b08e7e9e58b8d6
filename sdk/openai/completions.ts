/** POST /v1/completions. */
import { answered, type Spoken } from "./answer.ts";
import type { Api } from "./api.ts";
import { CompletionLogprobs, isText } from "./logprobs.ts";
import { bodyAs, CompletionBody } from "./request.ts";

/** Tokens of a completion where the client does not say, as OpenAI has it. */
const MAX_TOKENS = 16;

export async function completions(api: Api, request: Request, body: unknown): Promise<Response> {
  const b = bodyAs(CompletionBody, body);
  const { engine } = api;
  const several = Array.isArray(b.prompt) && b.prompt.length > 0 && typeof b.prompt[0] !== "number";
  const prompts = (several ? b.prompt : [b.prompt]) as readonly (string | readonly number[])[];
  const gathered = new Map<number, CompletionLogprobs>();
  const logprobs = ({ index, pieces }: Spoken) => {
    if (typeof b.logprobs !== "number") return null;
    const of = gathered.get(index) ?? new CompletionLogprobs(engine);
    gathered.set(index, of);
    return of.of(pieces.filter((p) => isText(engine, p)));
  };
  const choice = (s: Spoken): Record<string, unknown> => ({ text: s.text, logprobs: logprobs(s) });
  return answered(api, request, b, {
    id: "cmpl",
    prompts: prompts.map((prompt) => engine.promptIds({ prompt })),
    maxTokens: b.max_tokens ?? MAX_TOKENS,
    logprobs: b.logprobs ?? null,
    object: { whole: "text_completion", part: "text_completion" },
    first: null,
    whole: choice,
    part: choice,
  });
}
