/**
 * Tokens as pieces of text: what became complete with each, and texts that end an answer without being part
 * of it.
 */
import type { Finish, TokenEvent } from "../runtime/engine.ts";
import type { Text } from "./text.ts";

export interface Piece extends TokenEvent {
  /** Text that became complete with this token; empty for bundles without a tokenizer. */
  readonly text: string;
}

/**
 * Turns the tokens of one answer into pieces, one a token; the first with a `finish` is the last. `said` are
 * its tokens before those; `marks`: special tokens are spelled, too.
 */
export function pieces(
  decoder: Text | null,
  stops: readonly string[],
  o: { readonly said?: readonly number[] | undefined; readonly marks?: boolean | undefined } = {},
): (e: TokenEvent) => Piece {
  const { said = [], marks = false } = o;
  const stream = decoder?.stream(marks);
  const longest = Math.max(0, ...stops.map((s) => s.length - 1));
  let held = ""; // text that may be the start of a stop
  const change = (e: TokenEvent): Piece => {
    const isStop = e.finish === "stop";
    let text = held + (isStop || !stream ? "" : stream.push(e.id));
    if (e.finish && !isStop && stream) text += stream.flush();
    const hits = stops.map((s) => text.indexOf(s)).filter((i) => i >= 0);
    if (hits.length) return { ...e, text: text.slice(0, Math.min(...hits)), finish: "stop" };
    held = "";
    if (!e.finish)
      for (let n = Math.min(text.length, longest); n > 0; n--)
        if (stops.some((s) => s.startsWith(text.slice(text.length - n)))) {
          held = text.slice(text.length - n);
          text = text.slice(0, text.length - n);
          break;
        }
    return { ...e, text };
  };
  for (const id of said) change({ ...silent, id });
  return change;
}
const silent: Omit<TokenEvent, "id"> = {
  ...{ logprob: 0, top: [], adapter: "base", seed: null, cached: 0, finish: null },
};

/** An answer as a whole. */
export interface Completion {
  readonly text: string;
  readonly ids: number[];
  /**
   * `stop`: at a stop id or text; `length`: at `maxTokens`; `context`: the context had no room for as many.
   */
  readonly finish: Finish;
  readonly adapter: string;
  /** Give it to get the same answer again; null where nothing was drawn. */
  readonly seed: number | null;
  /** Tokens of the prompt that were not computed: an earlier request had the same prefix. */
  readonly cached: number;
}
/** The whole answer of a stream. */
export async function gather(stream: AsyncIterable<Piece>): Promise<Completion> {
  const ids: number[] = [];
  let text = "";
  let last: Piece | null = null;
  for await (const p of stream) {
    text += p.text;
    ids.push(p.id);
    last = p;
  }
  // No token: none was asked for.
  const { finish, adapter, seed, cached } = last ?? { ...silent, finish: null };
  return { text, ids, finish: finish ?? "length", adapter, seed, cached };
}
