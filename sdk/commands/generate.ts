/** weft generate: one answer. */
import { loadFlags, openBundle } from "./bundle.ts";
import {
  type Command,
  fail,
  given,
  needed,
  number,
  optional,
  strings,
  text,
  toggle,
  tokenIds,
} from "./command.ts";
import { say } from "./progress.ts";
import { Speed } from "./speed.ts";
import { whyEmpty } from "./why.ts";

/** How tokens are drawn: of `generate` and `chat`. */
export const samplingFlags = {
  "max-tokens": text("N", "most tokens of an answer; default 128"),
  temperature: text("X", "0 is greedy; default 0"),
  "top-k": text("N", "only the N likeliest tokens; default: all"),
  "top-p": text("X", "only the likeliest that reach this probability together; default 1"),
  "min-p": text("X", "only tokens of this part of the likeliest one's probability; default 0"),
  seed: text("N", "of what is drawn; default: another each time"),
  stop: text("TEXT", "ends an answer and is not part of it; may be given again", { multiple: true }),
} as const;
export const samplingOf = (f: Parameters<Command["run"]>[1]) =>
  given({
    maxTokens: number(f, "max-tokens"),
    temperature: number(f, "temperature"),
    topK: number(f, "top-k"),
    topP: number(f, "top-p"),
    minP: number(f, "min-p"),
    seed: number(f, "seed"),
    stop: strings(f, "stop").length ? strings(f, "stop") : undefined,
  });

/** Most characters of a prompt from stdin. */
const LONGEST = 64 * 2 ** 20;
/** All that stdin has. */
async function stdin(): Promise<string> {
  const { stdin } = process;
  if (stdin.isTTY) return fail("--prompt", "a text, or one on stdin", "nothing");
  let all = "";
  for await (const piece of stdin.setEncoding("utf8")) {
    all += piece;
    if (all.length > LONGEST) fail("stdin", `at most ${LONGEST} characters`, "more");
  }
  return all || fail("--prompt", "a text, or one on stdin", "nothing");
}

export const generate: Command = {
  summary: "one answer to a prompt",
  synopsis: "BUNDLE [--prompt TEXT | --ids 1,2,3]",
  details:
    "Without --prompt and --ids the prompt is read from stdin. For a model with a chat template the " +
    "prompt is what a user says; --raw gives it to the model as it is.",
  flags: {
    prompt: text("TEXT", "what to answer"),
    ids: text("LIST", "the prompt as token ids instead"),
    raw: toggle("no chat template: the model goes on from the prompt as it is"),
    adapter: text("DIR", "an adapter to answer with"),
    ...samplingFlags,
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    if (f.ids !== undefined && f.prompt !== undefined) fail("--ids", "--prompt or --ids", "both");
    const bundle = needed(positional, "generate", "a bundle");
    const prompt = typeof f.ids === "string" ? tokenIds(f.ids) : (optional(f, "prompt") ?? (await stdin()));
    await using engine = await openBundle("generate", bundle, f);
    const adapter = optional(f, "adapter");
    if (adapter !== undefined) await engine.adapters.load("adapter", adapter);
    const raw = f.raw === true || typeof prompt !== "string" || !engine.manifest.chatTemplate;
    const asked = raw ? { prompt } : { messages: [{ role: "user", content: prompt }] };
    let out = "";
    const ids: number[] = [];
    let finish = null;
    const speed = new Speed(engine.promptIds(asked).length);
    for await (const p of engine.generate({
      ...asked,
      ...given({ adapter: adapter === undefined ? undefined : "adapter" }),
      ...samplingOf(f),
    })) {
      out += p.text;
      ids.push(p.id);
      finish = p.finish;
      speed.hear(p);
      if (!json) process.stdout.write(engine.text ? p.text : `${p.id} `);
    }
    console.log(
      json ? JSON.stringify({ text: out, ids, finish, cached: speed.cached, device: engine.device }) : "",
    );
    if (!json && process.stderr.isTTY) say(speed.line());
    if (engine.text && !out.trim() && ids.length) say(whyEmpty(engine, { finish, ids }, raw));
  },
};
