/**
 * Training data: JSONL rows {text}, {prompt, completion}, {messages} or {input_ids, labels} → ids and labels.
 */
import * as v from "valibot";
import { IGNORE, showBytes, WeftError } from "../runtime/bundle.ts";
import { check, foreign, maybe, numbers, record, show, text, tokenIds } from "../runtime/schema.ts";
import type { Row } from "../runtime/trainer.ts";
import { readFileOr } from "./files.ts";
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
  text: maybe(text),
  prompt: maybe(text),
  completion: maybe(text),
  messages: maybe(v.custom<readonly Message[]>(Array.isArray, "a list of messages")),
  /** What the chat template is told beside the messages. */
  tools: maybe(v.custom<readonly unknown[]>(Array.isArray, "a list of tools")),
  chat_template_kwargs: maybe(record(v.unknown())),
  input_ids: maybe(tokenIds),
  labels: maybe(numbers("a token id, or -100", (x) => Number.isInteger(x) && x >= IGNORE && x < 2 ** 31)),
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
        expected: `at most ${showBytes(LONGEST_LINE, Math.floor)}`,
        found: showBytes(to - from, Math.ceil),
      });
    yield decoder.decode(file.subarray(from, to));
    from = to + 1;
  }
}
/** What a file is whose line is no row: each of these has been taken for JSONL. */
const mistaken = (line: string, why: string): string =>
  line.trimStart().startsWith("[")
    ? "a row a line, with no list around them"
    : line.trimStart().startsWith("<")
      ? "the server sent a page: is the address right?"
      : why;
/** Rows of a JSONL file, each with its place in it. Throws WEFT_DATA that names the line. */
export function* numbered(
  source: string | Uint8Array,
  where: string,
): Generator<{ readonly row: DataRow; readonly at: string }> {
  let [n, rows] = [0, 0];
  for (const line of typeof source === "string" ? source.split("\n") : linesOf(source, where)) {
    const at = `${where}, line ${++n}`;
    if (!line.trim()) continue;
    const refuse = (expected: string, found: string, why: string, cause?: unknown): never => {
      const hint = mistaken(line, why);
      throw new WeftError({ code: "WEFT_DATA", where: at, expected, found, ...(hint && { hint }), cause });
    };
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch (cause) {
      const found = line.length > 60 ? `${line.slice(0, 60)}…` : line;
      refuse("a JSON object", found, (cause as Error).message.replace(/ \(line .*/, ""), cause);
    }
    if (typeof row !== "object" || row === null || Array.isArray(row)) refuse(shapes, show(row), "");
    rows++;
    yield { row: row as DataRow, at };
  }
  if (!rows) throw new WeftError({ code: "WEFT_DATA", where, expected: "at least one row", found: "none" });
}
/** Rows of a JSONL file; an error names the line. */
export const parseJsonl = (source: string | Uint8Array, where: string): DataRow[] =>
  Array.from(numbered(source, where), ({ row }) => row);

/** Who has a tokenizer, or none; rows of ids do not ask for it. */
interface Speaker {
  readonly text: Text | null;
}
/**
 * Ids and labels of a row: the completion and the end mark are learned; of messages, the assistant's turns
 * with their end marks; of text, everything. `ends`: ids that end an answer, the first being the end mark.
 * Throws WEFT_DATA that names the row, and the turn.
 */
export function encodeRow(row: DataRow, by: Speaker, ends: readonly number[], where: string): Row {
  const bad = (found: string): never => {
    throw new WeftError({ code: "WEFT_DATA", where, expected: shapes, found });
  };
  const r = check(RowSchema, row, { code: "WEFT_DATA", where });
  if (r.input_ids) return { input_ids: r.input_ids, labels: r.labels ?? r.input_ids };
  const { text } = by;
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
    return text.learned(r.messages, given, ends, where);
  }
  return bad(`keys ${Object.keys(r).join(", ") || "none"}`);
}

/**
 * Rows of a file or a list as ids and labels. `what` names a list in errors; `ends` as for `encodeRow`.
 * Throws WEFT_DATA.
 */
export async function rowsOf(
  data: string | Blob | readonly DataRow[],
  what: string,
  by: Speaker,
  ends: readonly number[],
): Promise<Row[]> {
  const list =
    data instanceof Blob
      ? numbered(new Uint8Array(await data.arrayBuffer()), what)
      : typeof data === "string"
        ? numbered(await readFileOr(data, "WEFT_DATA"), data)
        : data.map((row, i) => ({ row, at: `${what}, row ${i + 1}` }));
  const rows = Array.from(list, ({ row, at }) => ({ ...encodeRow(row, by, ends, at), at }));
  if (!rows.length)
    throw new WeftError({ code: "WEFT_DATA", where: what, expected: "at least one row", found: "none" });
  return rows;
}
