/** weft chat: a conversation, line by line. */
import { createInterface } from "node:readline";
import { WeftError } from "../../runtime/bundle.ts";
import { onDisk } from "../../runtime/disk.ts";
import { node } from "../../runtime/node.ts";
import { nearest } from "../../runtime/schema.ts";
import type { Engine, GenerateOptions, Message } from "../index.ts";
import { loadNamed } from "./adapters.ts";
import { loadFlags, openBundle } from "./bundle.ts";
import { type Command, fail, needed, optional, strings, text } from "./command.ts";
import { samplingFlags, samplingOf } from "./generate.ts";
import { say } from "./progress.ts";
import { Speed } from "./speed.ts";
import { whyEmpty } from "./why.ts";

/** Tokens of an answer where nobody says. */
const MAX_TOKENS = 512;

class Conversation {
  private turns: Message[] = [];
  private adapter: string | undefined;
  private controller: AbortController | null = null;
  constructor(
    private readonly engine: Engine,
    private readonly system: string | undefined,
    private readonly drawn: Partial<GenerateOptions>,
    adapter: string | undefined,
  ) {
    this.adapter = adapter;
  }
  /** What the model is given: the system's words, and as many of the latest turns as there is room for. */
  private messages(): Message[] {
    const system: Message[] = this.system === undefined ? [] : [{ role: "system", content: this.system }];
    const { context, blocks } = this.engine.manifest.capacities;
    const room = Math.min(context, blocks * 32) - Math.min(this.drawn.maxTokens ?? MAX_TOKENS, context / 2);
    let turns = this.turns;
    // An answer goes with its question.
    while (turns.length > 1 && this.engine.promptIds({ messages: [...system, ...turns] }).length > room)
      turns = turns.slice(2);
    if (turns.length < this.turns.length) {
      say(`(the first ${this.turns.length - turns.length} turns no longer fit, and are forgotten)`);
      this.turns = turns;
    }
    return [...system, ...turns];
  }
  /** Stop the answer that is being said; false where there is none. */
  stop(): boolean {
    this.controller?.abort();
    return this.controller !== null;
  }
  async answer(question: string): Promise<void> {
    this.turns.push({ role: "user", content: question });
    this.controller = new AbortController();
    const ids: number[] = [];
    const messages = this.messages();
    const speed = new Speed(this.engine.promptIds({ messages }).length);
    let [said, finish] = ["", null as GenerateFinish];
    try {
      for await (const p of this.engine.generate({
        maxTokens: MAX_TOKENS,
        ...this.drawn,
        messages,
        signal: this.controller.signal,
        ...(this.adapter !== undefined && { adapter: this.adapter }),
      })) {
        said += p.text;
        ids.push(p.id);
        speed.hear(p);
        finish = p.finish;
        process.stdout.write(p.text);
      }
    } catch (e) {
      if ((e as Error).name !== "AbortError") {
        this.turns.pop();
        throw e;
      }
    } finally {
      this.controller = null;
      process.stdout.write("\n");
    }
    if (ids.length && process.stderr.isTTY) say(speed.line());
    if (said.trim()) this.turns.push({ role: "assistant", content: said });
    else {
      this.turns.pop();
      if (ids.length) say(whyEmpty(this.engine, { finish, ids }, false));
    }
  }

  /** What lines with a slash do; null ends the conversation. */
  readonly words: Readonly<Record<string, readonly [help: string, run: (rest: string) => unknown]>> = {
    help: ["these words", () => this.help()],
    reset: ["begin anew", () => void (this.turns = [])],
    adapter: ["[NAME]  answer with an adapter, `base` without; alone: which there are", (n) => this.use(n)],
    save: ["FILE  add the conversation to a file, a row that `finetune` takes", (file) => this.save(file)],
    quit: ["end", () => null],
  };
  private help(): void {
    for (const [word, [help]] of Object.entries(this.words)) say(`  /${word} ${help}`);
  }
  private use(name: string): void {
    if (name) this.adapter = name === "base" ? undefined : this.engine.adapters.get(name).ref;
    const names = ["base", ...this.engine.adapters.list().map((a) => a.name)];
    say(names.map((n) => (n === (this.adapter ?? "base") ? `[${n}]` : n)).join(" "));
  }
  private async save(file: string): Promise<void> {
    if (!file) fail("/save", "a file", "nothing", "/save talk.jsonl");
    const { fs } = await node();
    const system: Message[] = this.system === undefined ? [] : [{ role: "system", content: this.system }];
    const row = { messages: [...system, ...this.turns] };
    await onDisk(file, "a file that can be written", () => fs.appendFile(file, `${JSON.stringify(row)}\n`));
    say(`${this.turns.length} turns added to ${file}`);
  }
  /** Take a line. False ends the conversation. */
  async take(line: string): Promise<boolean> {
    const [, word, rest] = /^\/(\w*)\s*(.*)$/.exec(line) ?? [];
    if (word === undefined) {
      if (line.trim()) await this.answer(line);
      return true;
    }
    const known = Object.keys(this.words);
    if (!Object.hasOwn(this.words, word)) {
      const near = nearest(word, known);
      fail(
        "the conversation",
        known.map((w) => `/${w}`).join(" "),
        `/${word}`,
        near ? `did you mean /${near}?` : "/help",
      );
    }
    return (await this.words[word]![1](rest!.trim())) !== null;
  }
}
type GenerateFinish = Parameters<typeof whyEmpty>[1]["finish"];

export const chat: Command = {
  summary: "a conversation with a model that has a chat template",
  synopsis: "BUNDLE [--adapter DIR …] [--system TEXT]",
  details:
    "A line is a turn. /help tells the words that begin with a slash. Ctrl-C stops an answer, and " +
    "ends the conversation where there is none; Ctrl-D ends it.",
  flags: {
    adapter: text("DIR", "an adapter folder, or NAME=DIR; may be given again; the first answers", {
      multiple: true,
    }),
    system: text("TEXT", "what the model is told first"),
    ...samplingFlags,
    "max-tokens": text("N", `most tokens of an answer; default ${MAX_TOKENS}`),
    ...loadFlags,
  },
  run: async (positional, f) => {
    await using engine = await openBundle("chat", needed(positional, "chat", "a bundle"), f);
    if (!engine.manifest.chatTemplate)
      fail("weft chat", "a model with a chat template", "one without", "weft generate goes on from any text");
    const { path } = await node();
    const names = await loadNamed(engine, strings(f, "adapter"));
    const talk = new Conversation(engine, optional(f, "system"), samplingOf(f), names[0]);
    const { stdin, stdout } = process;
    const tty = stdin.isTTY === true && stdout.isTTY === true;
    const lines = createInterface({ input: stdin, ...(tty && { output: stdout, prompt: "> " }) });
    lines.on("SIGINT", () => talk.stop() || lines.close());
    if (tty) say(`${path.basename(bundleName(positional))} on ${engine.device.name}; /help, Ctrl-D ends`);
    if (tty) lines.prompt();
    for await (const line of lines) {
      try {
        if (!(await talk.take(line))) break;
      } catch (e) {
        // The conversation goes on after a mistake; not without an engine.
        const error = WeftError.from(e);
        if (!error || engine.core.disposed) throw e;
        say(error.message);
      }
      if (tty) lines.prompt();
    }
    lines.close();
  },
};
const bundleName = ([bundle = ""]: readonly string[]): string => bundle.replace(/[\\/]+$/, "");
