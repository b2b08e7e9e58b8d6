/**
 * Calls of tools in what a model says, as the templates of common families have it spelled: `<tool_call>`,
 * JSON, `</tool_call>` (Hermes, Qwen), or an answer that is JSON and nothing else, behind `<|python_tag|>` or
 * not (Llama 3). A call is JSON with the name of a tool that was given and an object of arguments. Whatever
 * is less than that is text, as it was said.
 */
import type { Message } from "../index.ts";

export interface Call {
  readonly id: string;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: string };
}
const OPEN = "<tool_call>";
const CLOSE = "</tool_call>";
const PYTHON = "<|python_tag|>";

/** The answer of one choice, as its text comes. */
export class Calls {
  /** What may be part of a call. */
  private held = "";
  /** Nothing but blanks was told yet: all of it may be one call. */
  private blank = true;
  /** A call was the last: blanks behind it are nobody's. */
  private gap = false;
  readonly made: Call[] = [];
  constructor(
    private readonly names: ReadonlySet<string>,
    private readonly id: () => string = () => `call_${crypto.randomUUID().replaceAll("-", "")}`,
  ) {}

  /** With `text` more: what of it is content. Calls that are complete are in `made`. */
  take(text: string): string {
    this.held += text;
    if (this.gap) this.held = this.held.trimStart();
    let content = "";
    for (let rest: string | null = ""; rest !== null; content += rest ?? "") rest = this.next();
    return content;
  }
  /** Nothing more comes: what is left of the content. */
  end(): string {
    const all = this.held;
    this.held = "";
    const [, json] = /^\s*(?:<\|python_tag\|>)?\s*(\{[\s\S]*\})\s*$/.exec(all) ?? [];
    // Several are one behind another, a semicolon between them.
    const calls = this.blank && json !== undefined ? listOf(json).map((c) => this.callOf(c)) : [];
    if (!calls.length || calls.includes(null)) return all;
    this.made.push(...(calls as Call[]));
    return "";
  }
  /** Content that is known to be some; null where more has to come. */
  private next(): string | null {
    const { held } = this;
    if (this.blank && /^\s*(\{|$)/.test(held.replace(PYTHON, ""))) return null;
    const at = held.indexOf(OPEN);
    if (at !== 0) {
      // What may be the beginning of a mark waits, and so do blanks between calls.
      const marks = this.blank ? [OPEN, PYTHON] : [OPEN];
      const told = at > 0 ? at : held.length - Math.max(...marks.map((m) => overlap(held, m)));
      return told > 0 ? this.say(held.slice(0, told)) : null;
    }
    const end = held.indexOf(CLOSE);
    if (end < 0) return null;
    const call = this.callOf(held.slice(OPEN.length, end));
    const whole = held.slice(0, end + CLOSE.length);
    if (!call) return this.say(whole);
    this.made.push(call);
    this.blank = false;
    this.gap = true;
    this.held = held.slice(whole.length).trimStart();
    return "";
  }
  private say(text: string): string {
    this.held = this.held.slice(text.length);
    this.blank &&= !text.trim();
    this.gap = false;
    return text;
  }
  private callOf(json: string): Call | null {
    const said = parsed(json) as Readonly<Record<string, unknown>> | null;
    const given = said?.arguments ?? said?.parameters;
    const { name } = said ?? {};
    if (typeof name !== "string" || !this.names.has(name) || !isObject(given)) return null;
    return { id: this.id(), type: "function", function: { name, arguments: JSON.stringify(given) } };
  }
}
const isObject = (x: unknown): x is object => typeof x === "object" && x !== null && !Array.isArray(x);
function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}
/** Objects of JSON one behind another: each ends at the first place where it is whole. */
function listOf(text: string): string[] {
  const out: string[] = [];
  let from = 0;
  for (let to = text.indexOf("}"); to >= 0; to = text.indexOf("}", to + 1)) {
    const one = text.slice(from, to + 1);
    if (!isObject(parsed(one))) continue;
    out.push(one);
    from = to + 1 + /^[\s;]*/.exec(text.slice(to + 1))![0].length;
    if (from === text.length) return out;
  }
  // Something is left that is no call.
  return [];
}
/** How much of the end of `text` is the beginning of `mark`. */
function overlap(text: string, mark: string): number {
  let n = Math.min(text.length, mark.length - 1);
  while (n > 0 && !text.endsWith(mark.slice(0, n))) n--;
  return n;
}

/** Earlier calls as templates read them: arguments are objects there, and JSON in OpenAI's API. */
export function forTemplate(messages: readonly Message[]): Message[] {
  const callOf = (c: { function?: { arguments?: unknown } }): unknown => {
    const given = typeof c.function?.arguments === "string" ? parsed(c.function.arguments) : null;
    return isObject(given) ? { ...c, function: { ...c.function, arguments: given } } : c;
  };
  return messages.map((m) => {
    const calls = (m as { tool_calls?: unknown } | null)?.tool_calls;
    return Array.isArray(calls) ? { ...m, tool_calls: calls.map(callOf) } : m;
  });
}
