/** weft generate: one answer. */
import { loadFlags, openBundle } from "./bundle.ts";
import {
  type Command,
  fail,
  given,
  needed,
  number,
  optional,
  string,
  strings,
  text,
  tokenIds,
} from "./command.ts";

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

export const generate: Command = {
  summary: "one answer to a prompt",
  synopsis: "BUNDLE --prompt TEXT | --ids 1,2,3",
  flags: {
    prompt: text("TEXT", "what to answer"),
    ids: text("LIST", "the prompt as token ids instead"),
    adapter: text("DIR", "an adapter to answer with"),
    ...samplingFlags,
    ...loadFlags,
  },
  run: async (positional, f, json) => {
    if (f.ids !== undefined && f.prompt !== undefined) fail("--ids", "--prompt or --ids", "both");
    const prompt = typeof f.ids === "string" ? tokenIds(f.ids) : string(f, "prompt");
    await using engine = await openBundle("generate", needed(positional, "generate", "a bundle"), f);
    const adapter = optional(f, "adapter");
    if (adapter !== undefined) await engine.adapters.load("adapter", adapter);
    let out = "";
    const ids: number[] = [];
    for await (const p of engine.generate({
      prompt,
      ...given({ adapter: adapter === undefined ? undefined : "adapter" }),
      ...samplingOf(f),
    })) {
      out += p.text;
      ids.push(p.id);
      if (!json) process.stdout.write(engine.text ? p.text : `${p.id} `);
    }
    console.log(json ? JSON.stringify({ text: out, ids, device: engine.device }) : "");
  },
};
