/** The example model and the demo: text in and out, the training log replayed, `npm start` end to end. */
import { spawn } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import {
  capacities,
  encodeRows,
  makeInitial,
  recipe,
  training,
  trainingRows,
} from "../examples/model/train.ts";
import { encodeRow, parseJsonl } from "../sdk/data.ts";
import { compile, load, type Message } from "../sdk/index.ts";
import { openText } from "../sdk/text.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("example");
const root = fileURLToPath(new URL("..", import.meta.url));
const story = `${root}examples/model/story`;
const log = JSON.parse(readFileSync(`${root}examples/model/story-log.json`, "utf8")) as {
  losses: number[];
  ratio: number;
  entropy: number;
  heldOut: number;
};

test("the example model is small, and close to the entropy of its language", () => {
  assert.ok(statSync(`${story}/model.safetensors`).size <= 4 * 2 ** 20);
  assert.ok(log.ratio <= 1.15, `held-out loss is ${log.ratio} × the entropy rate`);
  assert.is(log.losses.length, recipe.steps);
});

const replayed = rounds(5, 20);
test(`its first ${replayed} steps of training replay to the log`, async () => {
  const dir = scratch();
  await makeInitial(`${dir}/init`);
  await compile(`${dir}/init`, `${dir}/b.weft`, { targets: ["wasm"], train: ["full"], capacities });
  await using engine = await load(`${dir}/b.weft`, { device: "wasm" });
  const data = encodeRows(
    trainingRows(recipe.steps * recipe.batch, recipe.seed + 2).texts.slice(0, replayed * recipe.batch),
    (s) => engine.encode(s),
  );
  const controller = new AbortController();
  const losses: number[] = [];
  const job = await engine.finetune({
    ...training,
    data,
    signal: controller.signal,
    onEvent: (e) => {
      if (e.type === "step" && losses.push(e.loss) === replayed) controller.abort();
    },
  });
  await job.done.catch((e: Error) => assert.is(e.name, "AbortError"));
  assert.ok(losses.length >= replayed, `${losses.length} steps`);
  losses.forEach((x, i) =>
    assert.ok(Math.abs(x - log.losses[i]!) < 1e-3, `step ${i + 1}: ${x}, the log says ${log.losses[i]}`),
  );
});

test("text: a story in, a story out; streamed pieces join to the decoded ids; stops end it", async () => {
  const out = `${scratch()}/story.weft`;
  await compile(story, out, {
    targets: ["wasm"],
    capacities: {
      context: 192,
      tokens: 64,
      blocks: 64,
      savedRows: 64,
      keptRows: 64,
      quantum: 32,
      unitRows: 64,
      slots: 2,
      jobs: 1,
      rank: 4,
    },
  });
  await using engine = await load(out);
  const prompt = "Tom has a pet frog. Tom was very happy.\nQuestion: What pet does Tom have?\nAnswer:";
  let text = "";
  const ids: number[] = [];
  for await (const p of engine.generate({ prompt, maxTokens: 24 })) {
    text += p.text;
    if (!(p.finish === "stop")) ids.push(p.id);
  }
  assert.match(text, /^ frog\./);
  assert.is(text, engine.decode(ids));
  assert.is((await engine.complete({ prompt, maxTokens: 24, stop: ["."] })).text, " frog");
  assert.is((await engine.complete({ prompt, maxTokens: 24, stop: "." })).text, " frog");
  assert.is(engine.decode(engine.encode("Héllo, 猫! 🧵")), "Héllo, 猫! 🧵");
  const stream = engine.text!.stream();
  assert.is(
    engine
      .encode("a 🧵🧵 b")
      .map((id) => stream.push(id))
      .join("") + stream.flush(),
    "a 🧵🧵 b",
  );
  assert.is(engine.core.invariance, "verified");
});

test("data: text, prompt and completion, messages, ids; labels are what should be learned", async () => {
  const tokenizer = JSON.parse(readFileSync(`${story}/tokenizer.json`, "utf8")) as object;
  const config = JSON.parse(readFileSync(`${story}/tokenizer_config.json`, "utf8")) as Record<
    string,
    unknown
  >;
  const template =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}{% if " +
    "add_generation_prompt %}<assistant>{% endif %}";
  const text = await openText(tokenizer, config, template);
  const learned = (r: { input_ids: readonly number[]; labels: readonly number[] }): string =>
    text.decode(r.labels.filter((x) => x !== -100));
  const rows = parseJsonl(
    '{"text":"Tom ran."}\n\n{"prompt":"Where?","completion":" Home."}\n{"input_ids":[5,6,7]}\n',
    "rows.jsonl",
  ).map((r) => encodeRow(r, { text }, [1], "row"));
  assert.is(learned(rows[0]!), "Tom ran.");
  assert.is(rows[0]!.input_ids[0], 0, "the start mark");
  assert.is(rows[0]!.input_ids.at(-1), 1, "the end mark");
  assert.is(learned(rows[1]!), " Home.");
  assert.equal(rows[1]!.labels.at(-1), 1);
  assert.equal(rows[2]!.labels, [5, 6, 7]);
  const messages: Message[] = [
    { role: "user", content: "Hi" },
    { role: "assistant", content: "Hello Mia" },
    { role: "user", content: "Bye" },
    { role: "assistant", content: "So long" },
  ];
  const chat = encodeRow({ messages }, { text }, [1], "row");
  assert.is(learned(chat), "Hello Mia</assistant>\nSo long</assistant>\n");
  assert.is(text.decode(chat.input_ids), text.chat(messages, false));
});

test("npm start: at least 7 of 8 facts per adapter, base unchanged, curves equal, and it exits", async () => {
  const started = performance.now();
  const output = await new Promise<string>((resolve, reject) => {
    const child = spawn(process.execPath, ["scripts/setup.mjs", "examples/coserve.ts", "--json"], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let text = "";
    child.stdout.on("data", (d) => (text += d));
    child.stderr.on("data", (d) => (text += d));
    child.on("close", (code) => (code === 0 ? resolve(text) : reject(new Error(`exit ${code}\n${text}`))));
  });
  const result = JSON.parse(output.trim().split("\n").at(-1)!) as {
    ok: boolean;
    after: { blue: number; green: number };
    same: boolean;
  };
  assert.is(result.ok, true);
  assert.ok(result.after.blue >= 7 && result.after.green >= 7 && result.same);
  console.log(`    npm start took ${((performance.now() - started) / 1000).toFixed(0)} s`);
});
test.run();
