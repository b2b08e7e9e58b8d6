/** Training data: JSONL rows {text}, {prompt, completion}, {messages} or {input_ids, labels} → ids and labels. */
import { WeftError } from "../runtime/bundle.ts";
import type { Row } from "../runtime/trainer.ts";
import type { Message, Text } from "./text.ts";

export type DataRow =
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | { readonly messages: readonly Message[] }
  | { readonly input_ids: readonly number[]; readonly labels?: readonly number[] };
const IGNORE = -100;
const shapes = "{text}, {prompt, completion}, {messages} or {input_ids, labels}";

/** Lines of a JSONL file; an error names the line. */
export function parseJsonl(source: string, where: string): DataRow[] {
  const rows: DataRow[] = [];
  source.split("\n").forEach((line, i) => {
    if (!line.trim()) return;
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
        found: JSON.stringify(row).slice(0, 60),
      });
    rows.push(row as DataRow);
  });
  if (!rows.length)
    throw new WeftError({ code: "WEFT_DATA", where, expected: "at least one row", found: "none" });
  return rows;
}

/** Ids and labels of a row: the completion and the end mark are learned; of messages, all assistant turns with their end marks; of text, everything. */
export function encodeRow(row: DataRow, text: Text | null, eos: number | null, where: string): Row {
  const bad = (found: string): never => {
    throw new WeftError({ code: "WEFT_DATA", where, expected: shapes, found });
  };
  const r = row as Record<string, unknown>;
  if (Array.isArray(r.input_ids))
    return {
      input_ids: r.input_ids as number[],
      labels: (r.labels as number[] | undefined) ?? (r.input_ids as number[]),
    };
  if (!text)
    throw new WeftError({
      code: "WEFT_TOKENIZER",
      where,
      expected: "rows of {input_ids, labels}: this bundle has no tokenizer",
      found: Object.keys(r).join(", "),
    });
  const end = eos === null ? [] : [eos];
  if (typeof r.text === "string") {
    const ids = [...text.encode(r.text), ...end];
    return { input_ids: ids, labels: ids };
  }
  if (typeof r.prompt === "string" && typeof r.completion === "string") {
    // Tokenised apart, so that the prompt's ids are those it has when served.
    const prompt = text.encode(r.prompt);
    const completion = [...text.encode(r.completion, false), ...end];
    return { input_ids: [...prompt, ...completion], labels: [...prompt.map(() => IGNORE), ...completion] };
  }
  if (Array.isArray(r.messages)) {
    const messages = r.messages as Message[];
    const ids: number[] = [];
    const labels: number[] = [];
    let rendered = "";
    messages.forEach((m, i) => {
      if (typeof m?.role !== "string" || typeof m.content !== "string")
        bad(`messages[${i}] without role and content`);
      const learn = m.role === "assistant";
      // What the template adds for this turn; before an assistant turn its opening is part of the prompt.
      const open = learn ? text.chat(messages.slice(0, i), true) : rendered;
      const whole = text.chat(messages.slice(0, i + 1), false);
      for (const [piece, on] of [
        [open.slice(rendered.length), false],
        [whole.slice(open.length), learn],
      ] as const) {
        if (!piece) continue;
        const part = text.encode(piece, false);
        ids.push(...part);
        labels.push(...part.map((id) => (on ? id : IGNORE)));
      }
      rendered = whole;
    });
    return { input_ids: ids, labels };
  }
  return bad(`keys ${Object.keys(r).join(", ") || "none"}`);
}
