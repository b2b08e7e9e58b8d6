/**
 * Tokens as pieces of text: what became complete with each, and texts that end an answer without being part
 * of it.
 */
import type { TokenEvent } from "../runtime/engine.ts";
import type { Text } from "./text.ts";

export interface Piece extends TokenEvent {
  /** Text that became complete with this token; empty for bundles without a tokenizer. */
  readonly text: string;
}

/** Turns the tokens of one answer into pieces, one a token; the first with a `finish` is the last. */
export function pieces(decoder: Text | null, stops: readonly string[]): (e: TokenEvent) => Piece {
  const stream = decoder?.stream();
  const longest = Math.max(0, ...stops.map((s) => s.length - 1));
  let held = ""; // text that may be the start of a stop
  return (e) => {
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
}
