/** Log-probabilities of an answer's tokens, in the two shapes of OpenAI's API. */
import type { Engine, Piece } from "../index.ts";

interface TokenLogprob {
  /** The token's text, U+FFFD where it is not whole characters. */
  readonly token: string;
  readonly logprob: number;
  /** Its bytes in UTF-8, which of several tokens join to whole characters. */
  readonly bytes: number[] | null;
}
/** Is the token part of what was said? The model's end mark is not. */
export const isText = (engine: Engine, { finish, id }: Piece): boolean =>
  !(finish === "stop" && engine.manifest.model.eos.includes(id));

const told = (engine: Engine, id: number, logprob: number): TokenLogprob => {
  const { text, bytes } = engine.text!.token(id);
  // JSON has no infinity: a probability of zero.
  return { token: text, logprob: Math.max(logprob, -9999), bytes: [...bytes] };
};
/** Of a chat's piece. */
export const chatLogprob = (
  engine: Engine,
  { id, logprob, top }: Piece,
): TokenLogprob & { top_logprobs: TokenLogprob[] } => ({
  ...told(engine, id, logprob),
  top_logprobs: top.map((t) => told(engine, t.id, t.logprob)),
});

/** Of a completion, gathered token by token. */
export class CompletionLogprobs {
  private offset = 0;
  constructor(private readonly engine: Engine) {}
  /** Of some pieces more; null where none of them is text. */
  of(pieces: readonly Piece[]): {
    tokens: string[];
    token_logprobs: number[];
    top_logprobs: Record<string, number>[];
    text_offset: number[];
  } {
    const list = pieces.map((p) => chatLogprob(this.engine, p));
    return {
      tokens: list.map((t) => t.token),
      token_logprobs: list.map((t) => t.logprob),
      top_logprobs: list.map((t) => Object.fromEntries(t.top_logprobs.map((x) => [x.token, x.logprob]))),
      text_offset: list.map((t) => {
        const at = this.offset;
        this.offset += t.token.length;
        return at;
      }),
    };
  }
}
