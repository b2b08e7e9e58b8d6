/** What a visitor wants learned, as rows, and how a message is asked: the two must be the same words. */
import type { DataRow, GenerateOptions, Manifest, Message } from "../../sdk/index.ts";

export interface Turn {
  readonly who: "user" | "assistant";
  readonly text: string;
}
type Asked = Pick<GenerateOptions, "prompt" | "messages" | "stop" | "stopIds" | "maxTokens" | "temperature">;

/** A model with a chat template reads conversations. Others answer one question, or go on with a text. */
const talks = (m: Manifest): boolean => m.chatTemplate;
const question = (text: string): string => `Question: ${text}\nAnswer:`;

export function asked(m: Manifest, turns: readonly Turn[]): Asked {
  const last = turns.at(-1)!.text;
  if (talks(m))
    return {
      messages: turns.map(({ who, text }): Message => ({ role: who, content: text })),
      maxTokens: 512,
    };
  if (last.endsWith("?")) return { prompt: question(last), stop: "\n", maxTokens: 48 };
  return { prompt: last, stop: "\nQuestion:", maxTokens: 64, temperature: 0.8 };
}
export function pair(m: Manifest, ask: string, answer: string): DataRow {
  if (talks(m))
    return {
      messages: [
        { role: "user", content: ask },
        { role: "assistant", content: answer },
      ],
    };
  return { prompt: question(ask), completion: ` ${answer}` };
}
/** A line: `question => answer`, or a text. */
export function line(m: Manifest, text: string): DataRow {
  const [ask, answer] = text.split("=>").map((s) => s.trim());
  return ask && answer ? pair(m, ask, answer) : { text };
}

/** Lines that are read before the page gets a turn. */
const SLICE = 200;
export const MOST_LINES = 20_000;
/** Rows of a JSONL file. Throws an Error whose message is a sentence. */
export async function rowsOf(file: File): Promise<DataRow[]> {
  const lines = (await file.text()).split("\n");
  if (lines.length > MOST_LINES)
    throw new Error(
      `${file.name} has more than ${MOST_LINES.toLocaleString("en")} lines, too many for this page`,
    );
  const rows: DataRow[] = [];
  for (const [i, text] of lines.entries()) {
    if (i % SLICE === SLICE - 1) await new Promise((go) => setTimeout(go));
    if (!text.trim()) continue;
    try {
      rows.push(JSON.parse(text) as DataRow);
    } catch {
      throw new Error(`line ${i + 1} of ${file.name} is not JSON`);
    }
  }
  if (!rows.length) throw new Error(`${file.name} is empty`);
  return rows;
}
