/**
 * `weft chat` and `weft generate` on a model with turns: what is said, saved, stopped, and why nothing is.
 */
import { readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { load } from "../sdk/index.ts";
import { type Said, weftReading } from "./support/console.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("talk");
const weft = (input: string, ...args: string[]): Promise<Said> =>
  weftReading(input, ...args, "--device", "wasm");
const questions = ["What pet does Tom have?", "Where does Mia live?"];

test("chat: turns with their history, adapters by name, a saved row, words that are none", async () => {
  const bundle = await storyBundle();
  const dir = scratch();
  await using engine = await load(bundle, { device: "wasm" });
  const job = await engine.finetune({
    name: "blue",
    data: [
      {
        messages: [
          { role: "user", content: questions[0]! },
          { role: "assistant", content: "fox." },
        ],
      },
    ],
    steps: 20,
    rank: 4,
  });
  await job.done;
  await engine.adapters.get("blue").save(`${dir}/blue`);
  const messages: { role: string; content: string }[] = [];
  const answers: string[] = [];
  for (const q of questions) {
    messages.push({ role: "user", content: q });
    const { text } = await engine.complete({ messages, maxTokens: 20 });
    messages.push({ role: "assistant", content: text });
    answers.push(text);
  }
  const taught = await engine.complete({
    ...{ messages: [{ role: "user", content: questions[0]! }], adapter: "blue", maxTokens: 20 },
  });
  assert.is.not(taught.text, answers[0]);
  const lines = [
    ...["/adapter base", ...questions, `/save ${dir}/talk.jsonl`, "/rest", "/reset", "/adapter blu"],
    ...["/adapter sky", questions[0], "/quit", "never said"],
  ];
  const { code, out, err } = await weft(
    `${lines.join("\n")}\n`,
    ...["chat", bundle, "--adapter", `sky=${dir}/blue`, "--max-tokens", "20"],
  );
  assert.is(code, 0, err);
  assert.is(out, `${[...answers, taught.text].join("\n")}\n`);
  assert.match(err, /\[base\] sky/);
  assert.match(err, /did you mean \/reset\?/);
  assert.match(err, /WEFT_NOT_FOUND.*blu/);
  assert.equal(JSON.parse(readFileSync(`${dir}/talk.jsonl`, "utf8")), { messages });
});

test("a long conversation forgets its first turns, and says so", async () => {
  const { code, out, err } = await weft(
    `${Array(12).fill(questions[0]).join("\n")}\n`,
    ...["chat", await storyBundle(), "--max-tokens", "12", "--system", "Mia has a dog."],
  );
  assert.is(code, 0, err);
  assert.ok(out.trim().split("\n").length >= 12, out);
  assert.match(err, /no longer fit/);
});

test("generate: a model's template, --raw without it, stdin, why an answer is empty", async () => {
  const bundle = await storyBundle();
  await using engine = await load(bundle, { device: "wasm" });
  const asked = await engine.complete({ messages: [{ role: "user", content: questions[0]! }], maxTokens: 9 });
  const raw = await engine.complete({ prompt: questions[0]!, maxTokens: 9 });
  assert.is.not(asked.text, raw.text);
  const g = ["generate", bundle, "--max-tokens", "9"];
  assert.is((await weft("", ...g, "--prompt", questions[0]!)).out, `${asked.text}\n`);
  assert.is((await weft(questions[0]!, ...g)).out, `${asked.text}\n`);
  assert.is((await weft(questions[0]!, ...g, "--raw")).out, `${raw.text}\n`);
  const none = await weft("", ...g);
  assert.is(none.code, 1);
  assert.match(none.err, /--prompt: expected a text, or one on stdin/);
  // Behind its end mark the model has nothing to say.
  const prompt = "Tom has a pet frog. Tom was very happy.\nQuestion: What pet does Tom have?\nAnswer: frog.";
  const empty = await weft("", ...g, "--raw", "--prompt", prompt);
  assert.is(empty.code, 0);
  assert.is(empty.out.trim(), "");
  assert.match(empty.err, /no answer: the model ended it at once, with <\/s>; without --raw/);
  const stopped = await weft("", ...g, "--raw", "--prompt", "Once", "--stop", " ");
  assert.match(stopped.err, /no answer: it begins with a --stop/);
  // What is learned as it stands is not what the template asks.
  const dir = scratch();
  for (const [prompt, says] of [
    [questions[0]!, /rows\.jsonl, line 2: the prompt is learned as it stands.*--raw.*"messages"/],
    [`Question: ${questions[0]!}\nAnswer:`, /^(?:(?!as it stands)[\s\S])*$/],
  ] as const) {
    const rows = [
      {
        messages: [
          { role: "user", content: "Who?" },
          { role: "assistant", content: "Tom." },
        ],
      },
      { prompt, completion: " fox." },
    ];
    writeFileSync(`${dir}/rows.jsonl`, rows.map((r) => JSON.stringify(r)).join("\n"));
    const learn = ["finetune", bundle, "--data", `${dir}/rows.jsonl`, "--name", "n", "--out", `${dir}/n`];
    const learned = await weft("", ...learn, "--steps", "0", "--checkpoint", "none", "--replace");
    assert.is(learned.code, 0, learned.err);
    assert.match(learned.err, says);
  }
  const plain = await weft("hello\n", "chat", await storyBundle(false));
  assert.is(plain.code, 1);
  assert.match(plain.err, /expected a model with a chat template, found one without/);
});
test.run();
