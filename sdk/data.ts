/**
 * Training data: JSONL rows {text}, {prompt, completion}, {messages} or {input_ids, labels} → ids and labels.
 */
import * as v from "valibot";
import { IGNORE, WeftError } from "../runtime/bundle.ts";
import { check, foreign, numbers, record, show, tokenIds } from "../runtime/schema.ts";
import type { Row } from "../runtime/trainer.ts";
import type { Message, TemplateArguments, Text } from "./text.ts";

export type DataRow =
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  /** All assistant turns are learned, but those with `weight: 0`. */
  | {
      readonly messages: readonly Message[];
      /** What the chat template is told beside them. */
      readonly tools?: readonly unknown[] | null;
      readonly chat_template_kwargs?: TemplateArguments | null;
    }
  | { readonly input_ids: readonly number[]; readonly labels?: readonly number[] };
const RowSchema = foreign({
  text: v.nullish(v.string()),
  prompt: v.nullish(v.string()),
  completion: v.nullish(v.string()),
  messages: v.nullish(v.custom<readonly Message[]>(Array.isArray, "a list of messages")),
  /** What the chat template is told beside the messages. */
  tools: v.nullish(v.custom<readonly unknown[]>(Array.isArray, "a list of tools")),
  chat_template_kwargs: v.nullish(record(v.unknown())),
  input_ids: v.nullish(tokenIds),
  labels: v.nullish(numbers("a token id, or -100", (x) => Number.isInteger(x) && x >= IGNORE && x < 2 ** 31)),
});
const shapes = "{text}, {prompt, completion}, {messages} or {input_ids, labels}";

/** Most bytes of a row, whatever the file has; far more than any context. */
const LONGEST_LINE = 64 * 2 ** 20;
/** A file line by line: as one text it may be longer than JavaScript's can be. */
function* linesOf(file: Uint8Array, where: string): Generator<string> {
  const decoder = new TextDecoder();
  for (let from = 0, n = 1; from < file.length; n++) {
    const end = file.indexOf(10, from);
    const to = end < 0 ? file.length : end;
    if (to - from > LONGEST_LINE)
      throw new WeftError({
        code: "WEFT_DATA",
        where: `${where}, line ${n}`,
        expected: `at most ${LONGEST_LINE} bytes`,
        found: `${to - from} bytes`,
      });
    yield decoder.decode(file.subarray(from, to));
    from = to + 1;
  }
}
/** Rows of a JSONL file; an error names the line. */
export function parseJsonl(source: string | Uint8Array, where: string): DataRow[] {
  const rows: DataRow[] = [];
  let i = -1;
  for (const line of typeof source === "string" ? source.split("\n") : linesOf(source, where)) {
    i++;
    if (!line.trim()) continue;
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch (cause) {
      throw new WeftError({
        code: "WEFT_DATA",
        where: `${where}, line ${i + 1}`,
        expected: "a JSON object",
        found: line.length > 60 ? `${line.slice(0, 60)}…` : line,
        cause,
      });
    }
    if (typeof row !== "object" || row === null || Array.isArray(row))
      throw new WeftError({
        code: "WEFT_DATA",
        where: `${where}, line ${i + 1}`,
        expected: shapes,
        found: show(row),
      });
    rows.push(row as DataRow);
  }
  if (!rows.length)
    throw new WeftError({ code: "WEFT_DATA", where, expected: "at least one row", found: "none" });
  return rows;
}

/**
 * Ids and labels of a row: the completion and the end mark are learned; of messages, the assistant's turns
 * with their end marks; of text, everything. `ends`: ids that end an answer, the first being the end mark.
 * Throws WEFT_DATA that names the row, and the turn.
 */
export function encodeRow(row: DataRow, text: Text | null, ends: readonly number[], where: string): Row {
  const bad = (found: string): never => {
    throw new WeftError({ code: "WEFT_DATA", where, expected: shapes, found });
  };
  const r = check(RowSchema, row, { code: "WEFT_DATA", where });
  if (r.input_ids) return { input_ids: r.input_ids, labels: r.labels ?? r.input_ids };
  if (!text)
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where,
      expected: "rows of {input_ids, labels}: this bundle has no tokenizer",
      found: Object.keys(r).join(", "),
    });
  const ended = (ids: number[]): number[] =>
    ends.length && !ends.includes(ids.at(-1)!) ? [...ids, ends[0]!] : ids;
  if (typeof r.text === "string") {
    const ids = ended(text.encode(r.text));
    return { input_ids: ids, labels: ids };
  }
  if (typeof r.prompt === "string" && typeof r.completion === "string") {
    // Tokenised apart, so that the prompt's ids are those it has when served.
    const prompt = text.encode(r.prompt);
    const completion = ended(text.encode(r.completion, false));
    return { input_ids: [...prompt, ...completion], labels: [...prompt.map(() => IGNORE), ...completion] };
  }
  if (r.messages) {
    const given = { ...r.chat_template_kwargs, ...(r.tools && { tools: r.tools }) };
    return encodeChat(r.messages, given, text, ends, where);
  }
  return bad(`keys ${Object.keys(r).join(", ") || "none"}`);
}

type Span = readonly [number, number];
/**
 * What is trained on is what the template says of the whole conversation; what is learned of it, the
 * assistant's turns.
 */
function encodeChat(
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
