/** Conversations as training rows: which ids a chat template makes of one, and which of them are learned. */
import { IGNORE, WeftError } from "../runtime/bundle.ts";
import type { Row } from "../runtime/trainer.ts";
import type { Message, TemplateArguments, Text } from "./text.ts";

type Span = readonly [number, number];
/**
 * What is trained on is what the template says of the whole conversation; what is learned of it, the
 * assistant's turns.
 */
export function encodeChat(
  list: readonly Message[],
  given: TemplateArguments,
  text: Text,
  ends: readonly number[],
  where: string,
): Row {
  // A mistake in a message, or the template's complaint, told with the row that it is in.
  const inRow = <T>(turn: string, f: () => T): T => {
    try {
      return f();
    } catch (cause) {
      if (!(cause instanceof WeftError)) throw cause;
      const { where: at, expected, found, hint } = cause;
      const code = at === "messages" && cause.code === "WEFT_TOKENIZER" ? "WEFT_TOKENIZER" : "WEFT_DATA";
      throw new WeftError({
        code,
        where: `${where}${turn}: ${at}`,
        expected,
        found,
        ...(hint && { hint }),
        cause,
      });
    }
  };
  const messages = list.map((m) => {
    // Not the template's: the OpenAI API's way to leave a turn out of what is learned.
    const { weight: _, ...rest } = m ?? {};
    return m ? (rest as unknown as Message) : m;
  });
  const turns = inRow("", () => turnsOf(list));
  const { text: whole, spans } = inRow("", () =>
    text.marksTurns
      ? text.chatMarked(messages, given)
      : { text: text.chat(messages, false, given), spans: null },
  );
  const learned = spans
    ? markedTurns(spans, turns, where)
    : turns
        .filter((t) => t.learned)
        .map(({ at }): Span => prefixTurn(messages, given, at, whole, text, where, inRow));
  const { ids, bounds } = encodeSpans(whole, learned, text);
  const labels = ids.map(() => IGNORE);
  for (const [from, to] of bounds) {
    for (let i = from; i < to; i++) labels[i] = ids[i]!;
    // A template may close a turn behind its generation block.
    if (to < ids.length && ends.includes(ids[to]!) && !ends.includes(ids[to - 1] ?? -1))
      labels[to] = ids[to]!;
  }
  return { input_ids: ids, labels };
}
interface Turn {
  readonly at: number;
  readonly learned: boolean;
}
function turnsOf(messages: readonly Message[]): Turn[] {
  return messages.flatMap((m, at) => {
    if (m?.role !== "assistant") return [];
    if (m.weight !== undefined && m.weight !== 0 && m.weight !== 1)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: `messages[${at}].weight`,
        expected: "0 or 1",
        found: String(m.weight),
      });
    return [{ at, learned: m.weight !== 0 }];
  });
}
/** Spans that the template marks, one a turn. */
function markedTurns(spans: readonly Span[], turns: readonly Turn[], where: string): Span[] {
  if (spans.length !== turns.length)
    throw new WeftError({
      code: "WEFT_DATA",
      where: `${where}: messages`,
      expected: `a generation block for each of ${turns.length} assistant turns`,
      found: `${spans.length} in what the chat template makes of them`,
    });
  return spans.filter((_, i) => turns[i]!.learned);
}
/**
 * A turn is what its conversation has beyond the prompt that it answers: both must be beginnings of the
 * whole.
 */
function prefixTurn(
  messages: readonly Message[],
  given: TemplateArguments,
  at: number,
  whole: string,
  text: Text,
  where: string,
  inRow: <T>(turn: string, f: () => T) => T,
): Span {
  const turn = `messages[${at}]`;
  const length = (before: readonly Message[], prompt: boolean): number => {
    const part = inRow(`, ${turn}`, () => text.chat(before, prompt, given));
    if (whole.startsWith(part)) return part.length;
    let i = 0;
    while (i < part.length && part[i] === whole[i]) i++;
    const show = (s: string): string => JSON.stringify(s.slice(Math.max(0, i - 10), i + 30));
    throw new WeftError({
      code: "WEFT_DATA",
      where: `${where}: ${turn}`,
      expected: prompt
        ? "a conversation that goes on as the prompt for this turn does"
        : "a turn that the whole conversation keeps as it was said",
      found: `a chat template that rewrites earlier turns: ${show(part)} becomes ${show(whole)}`,
      hint: 'a row for each turn, with "weight": 0 in the assistant turns before it',
    });
  };
  return [length(messages.slice(0, at), true), length(messages.slice(0, at + 1), false)];
}
/**
 * Ids of a text and where the spans are in them. The ids are those of the whole text wherever its tokens end
 * where a span does, as they do at special tokens. Where a token would reach over such a place the text is
 * cut there: the ids before a turn are then those of the prompt that is served, and the turn's are those that
 * the model says.
 */
function encodeSpans(whole: string, spans: readonly Span[], text: Text): { ids: number[]; bounds: Span[] } {
  const edges = [...new Set(spans.flat())].filter((e) => e > 0 && e < whole.length).sort((a, b) => a - b);
  const places = new Map([[0, 0]]);
  const same = (a: readonly number[], b: readonly number[]): boolean => a.every((id, i) => id === b[i]);
  const full = text.encode(whole, false);
  // Mostly pieces and the whole agree.
  const pieces = [...edges, whole.length].map((e, i) =>
    text.encode(whole.slice(edges[i - 1] ?? 0, e), false),
  );
  let ids = pieces.flat();
  if (ids.length === full.length && same(ids, full)) {
    let at = 0;
    edges.forEach((e, i) => places.set(e, (at += pieces[i]!.length)));
  } else {
    ids = [];
    let start = 0;
    let rest = full;
    for (const e of edges) {
      const before = text.encode(whole.slice(start, e), false);
      places.set(e, ids.length + before.length);
      if (before.length <= rest.length && same(before, rest)) continue;
      ids.push(...before);
      start = e;
      rest = text.encode(whole.slice(e), false);
    }
    ids.push(...rest);
  }
  places.set(whole.length, ids.length);
  return { ids, bounds: spans.map(([a, b]): Span => [places.get(a)!, places.get(b)!]) };
}
