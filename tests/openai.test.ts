/** The API as OpenAI's own client uses it, over an engine in this process. */
import { writeFileSync } from "node:fs";
import type OpenAI from "openai";
import { toFile } from "openai";
import * as assert from "uvu/assert";
import { chatTemplate } from "../examples/model/language.ts";
import { compile, load } from "../sdk/index.ts";
import { handler } from "../sdk/openai/index.ts";
import { small } from "./support/engines.ts";
import { ask, atRest, caught, clientOf, closeEngine, open } from "./support/openai.ts";
import { facts, storyModel } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("openai");
test.after(closeEngine);

test("chat: the engine's answer, usage and why it ended; as a stream the same in parts", async () => {
  const { engine, client } = await open();
  const want = await engine.complete({ messages: ask.messages, maxTokens: 12 });
  const o = { ...ask, temperature: 0, max_completion_tokens: 12 };
  const whole = await client.chat.completions.create(o);
  assert.is(whole.object, "chat.completion");
  assert.is(whole.model, "story");
  assert.is(whole.choices[0]!.message.content, want.text);
  assert.is(whole.choices[0]!.finish_reason, want.finish === "stop" ? "stop" : "length");
  const prompt = engine.promptIds({ messages: ask.messages }).length;
  assert.equal(whole.usage, {
    prompt_tokens: prompt,
    completion_tokens: want.ids.length,
    total_tokens: prompt + want.ids.length,
    // The engine was asked the same just now.
    prompt_tokens_details: { cached_tokens: Math.floor((prompt - 1) / 32) * 32 },
  });
  const salted = await client.chat.completions.create({ ...o, cache_salt: "tenant" } as typeof o);
  assert.is(salted.usage!.prompt_tokens_details!.cached_tokens, 0);
  assert.is(salted.choices[0]!.message.content, want.text);
  const stream = await client.chat.completions.create({
    ...o,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  const chunks: OpenAI.ChatCompletionChunk[] = [];
  for await (const chunk of stream) {
    chunks.push(chunk);
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.is(text, want.text);
  assert.is(chunks[0]!.choices[0]!.delta.role, "assistant");
  assert.is(chunks.at(-2)!.choices[0]!.finish_reason, whole.choices[0]!.finish_reason);
  assert.equal([chunks.at(-1)!.choices, chunks.at(-1)!.usage], [[], whole.usage]);
  assert.ok(chunks.slice(0, -1).every((c) => c.usage === null && c.id === chunks[0]!.id));
  await atRest(engine);
});

test("n answers, seeds that repeat, stops, biases and penalties: as the engine has them", async () => {
  const { engine, client } = await open();
  const o = { ...ask, temperature: 1, seed: 5, n: 3, max_tokens: 8 };
  const [a, b] = [await client.chat.completions.create(o), await client.chat.completions.create(o)];
  const said = a.choices.map((c) => c.message.content);
  assert.equal(
    said,
    b.choices.map((c) => c.message.content),
  );
  for (const [i, text] of said.entries())
    assert.is(
      text,
      (await engine.complete({ messages: ask.messages, temperature: 1, seed: 5 + i, maxTokens: 8 })).text,
    );
  assert.equal(
    a.choices.map((c) => c.index),
    [0, 1, 2],
  );
  const streamed = ["", "", ""];
  for await (const { choices } of await client.chat.completions.create({ ...o, stream: true }))
    for (const c of choices) streamed[c.index] += c.delta.content ?? "";
  assert.equal(streamed, said);
  const stop = await client.chat.completions.create({ ...ask, temperature: 0, stop: ["."] });
  assert.equal(
    [stop.choices[0]!.finish_reason, /\./.test(stop.choices[0]!.message.content!)],
    ["stop", false],
  );
  const bar = engine.encode(" frog").at(-1)!;
  const biased = { ...ask, temperature: 0, max_tokens: 6, logit_bias: { [bar]: 100 } };
  const { text } = await engine.complete({
    ...{ messages: ask.messages, maxTokens: 6 },
    logitBias: { [bar]: 100 },
  });
  assert.is((await client.chat.completions.create(biased)).choices[0]!.message.content, text);
  const penalised = await client.chat.completions.create({
    ...biased,
    frequency_penalty: 2,
    presence_penalty: 2,
  });
  assert.is(
    penalised.choices[0]!.message.content,
    (
      await engine.complete({
        ...{ messages: ask.messages, maxTokens: 6, logitBias: { [bar]: 100 } },
        ...{ frequencyPenalty: 2, presencePenalty: 2 },
      })
    ).text,
  );
});

test("completions: text, ids and lists of either; log-probabilities in both shapes", async () => {
  const { engine, client } = await open();
  const prompt = "Tom has a pet frog. 🧵";
  const ids = engine.encode(prompt);
  const o = { model: "base", temperature: 0, max_tokens: 7 };
  const one = await client.completions.create({ ...o, prompt, logprobs: 3 });
  const pieces = [];
  for await (const p of engine.generate({ prompt, maxTokens: 7, logprobs: 3 })) pieces.push(p);
  assert.is(one.object, "text_completion");
  assert.is(one.choices[0]!.text, pieces.map((p) => p.text).join(""));
  const { tokens, token_logprobs, top_logprobs, text_offset } = one.choices[0]!.logprobs!;
  assert.equal(
    token_logprobs,
    pieces.map((p) => p.logprob),
  );
  assert.is(tokens!.join(""), one.choices[0]!.text);
  assert.equal(text_offset!.slice(0, 2), [0, tokens![0]!.length]);
  assert.ok(top_logprobs!.every((t) => Object.keys(t).length <= 3));
  const two = await client.completions.create({ ...o, prompt: [prompt, "Once"], n: 2 });
  assert.is(two.choices.length, 4);
  assert.is(two.choices[1]!.text, one.choices[0]!.text);
  assert.is(two.usage!.prompt_tokens, ids.length + engine.encode("Once").length);
  for (const same of [ids, [ids]])
    assert.is(
      (await client.completions.create({ ...o, prompt: same })).choices[0]!.text,
      one.choices[0]!.text,
    );
  let streamed = "";
  for await (const c of await client.completions.create({ ...o, prompt, stream: true, logprobs: 0 })) {
    streamed += c.choices[0]!.text;
    assert.ok(c.choices[0]!.logprobs);
  }
  assert.is(streamed, one.choices[0]!.text);
  // A character of several tokens: each has its own bytes.
  const chat = await client.chat.completions.create({
    ...ask,
    ...{ temperature: 0, logprobs: true, top_logprobs: 2, max_tokens: 4 },
    logit_bias: { [engine.encode("🧵").at(-1)!]: 100 },
  });
  const content = chat.choices[0]!.logprobs!.content!;
  assert.is(content.length, 4);
  assert.ok(content.every((t) => t.top_logprobs.length === 2 && t.logprob <= 0));
  const whole = engine
    .encode("🧵")
    .slice(-4)
    .flatMap((id) => [...engine.text!.token(id).bytes]);
  assert.is(Buffer.from(whole).toString().at(-1), "🧵".at(-1));
});

test("a client that goes away, before or in an answer, whole or streamed, frees its cache", async () => {
  const { engine, client } = await open();
  const long = { ...ask, temperature: 0, max_tokens: 150, logit_bias: { 1: -100 } };
  const stream = await client.chat.completions.create({ ...long, n: 3, stream: true });
  for await (const _ of stream) break;
  stream.controller.abort();
  const controller = new AbortController();
  const whole = client.chat.completions.create(long, { signal: controller.signal });
  whole.catch(() => {});
  while (engine.memory().blocks.free === engine.memory().blocks.total)
    await new Promise((resolve) => setImmediate(resolve));
  controller.abort();
  assert.is(await whole.catch((e: Error) => e.constructor.name), "APIUserAbortError");
  // The list on its way is the last that may hold it.
  await engine.complete({ prompt: [5], maxTokens: 2 });
  await atRest(engine);
  assert.not(engine.core.busy);
});

test("a job to its end: a file, rows checked, events, a model of its name, chat with it", async () => {
  const saved: string[] = [];
  const { engine, client } = await open({ onAdapter: (name) => saved.push(name) });
  const rows = facts().map((r) => {
    const [, question] = /Question: (.*)\nAnswer:/.exec(r.prompt)!;
    return {
      messages: [
        { role: "user", content: question },
        { role: "assistant", content: r.completion.trim() },
      ],
    };
  });
  const text = rows.map((r) => JSON.stringify(r)).join("\n");
  const file = await client.files.create({
    file: await toFile(Buffer.from(text), "facts.jsonl"),
    purpose: "fine-tune",
  });
  assert.equal(
    [file.filename, file.bytes, file.status],
    ["facts.jsonl", Buffer.byteLength(text), "processed"],
  );
  assert.is(await (await client.files.content(file.id)).text(), text);
  assert.equal(
    (await client.files.list()).data.map((f) => f.id),
    [file.id],
  );
  const made = await client.fineTuning.jobs.create({
    ...{ model: "story", training_file: file.id, validation_file: file.id, suffix: "notes", seed: 3 },
    method: {
      type: "supervised",
      supervised: { hyperparameters: { n_epochs: 25, batch_size: 8, learning_rate_multiplier: 2 } },
    },
    metadata: { who: "test" },
    weft: { publishEvery: 20, evalEvery: 25 },
  } as never);
  assert.is(made.status, "running");
  // Two more find no place, and one is given up.
  const next = await client.fineTuning.jobs.create({
    ...{ model: "story", training_file: file.id, suffix: "more", hyperparameters: { n_epochs: 1 } },
  });
  const dropped = await client.fineTuning.jobs.create({ model: "story", training_file: file.id });
  assert.equal([next.status, dropped.status], ["queued", "queued"]);
  assert.is((await client.fineTuning.jobs.cancel(dropped.id)).status, "cancelled");
  const taken = await caught(
    client.fineTuning.jobs.create({ model: "story", training_file: file.id, suffix: "notes" }),
  );
  assert.equal([taken.status, taken.param], [409, "suffix"]);
  const served = await client.chat.completions.create({ ...ask, temperature: 0, max_tokens: 4 });
  assert.is(served.model, "story");
  const until = async (id: string) => {
    for (;;) {
      const job = await client.fineTuning.jobs.retrieve(id);
      if (job.finished_at) return job;
      await client.chat.completions.create({ ...ask, max_tokens: 2 });
    }
  };
  const job = await until(made.id);
  assert.is(job.status, "succeeded", JSON.stringify(job.error));
  assert.match(job.fine_tuned_model!, /^story:notes@\d+$/);
  assert.equal([job.seed, job.hyperparameters.n_epochs, job.metadata], [3, 25, { who: "test" }]);
  assert.ok(job.trained_tokens! > 1000);
  assert.is((await until(next.id)).status, "succeeded");
  assert.equal(saved, ["notes", "more"]);
  const events = [];
  for await (const e of client.fineTuning.jobs.listEvents(made.id, { limit: 20 })) events.push(e);
  assert.is(new Set(events.map((e) => e.id)).size, events.length, "pages join");
  assert.match(events[0]!.message, /Succeeded as story:notes@/);
  const losses = events.flatMap((e) => (e.data as { train_loss?: number }).train_loss ?? []);
  assert.is(losses.length, 50);
  assert.ok(losses[0]! < losses.at(-1)! / 4, "it learned");
  assert.ok(events.some((e) => typeof (e.data as { valid_loss?: number }).valid_loss === "number"));
  const checkpoints = await client.fineTuning.jobs.checkpoints.list(made.id);
  assert.equal(
    checkpoints.data.map((c) => c.step_number),
    [50, 40, 20],
  );
  assert.equal(
    (await client.fineTuning.jobs.list()).data.map((j) => j.id),
    [dropped.id, next.id, made.id],
  );
  // What was learned is replaced only where that is said, or gone on from.
  const again = { training_file: file.id, suffix: "more", hyperparameters: { n_epochs: 1 } };
  const refused = await caught(client.fineTuning.jobs.create({ ...again, model: "story" }));
  assert.equal([refused.status, refused.param], [409, "suffix"]);
  assert.match(refused.message, /model 'story:more'.*replace: true/);
  const { fine_tuned_model: latest } = await client.fineTuning.jobs.retrieve(next.id);
  assert.match(latest!, /@1$/);
  const anew = { model: "story", weft: { replace: true } };
  const few = { model: "story", weft: { replace: true, steps: 2 }, hyperparameters: {} };
  for (const asked of [{ model: latest! }, anew, few]) {
    const { id } = await client.fineTuning.jobs.create({ ...again, ...asked });
    assert.is((await until(id)).status, "succeeded");
  }

  const right = await Promise.all(
    rows.map(async ({ messages }) => {
      const { choices, model } = await client.chat.completions.create({
        ...{ model: "story:notes", temperature: 0, max_tokens: 24 },
        messages: [messages[0] as { role: "user"; content: string }],
      });
      assert.is(model, job.fine_tuned_model);
      return choices[0]!.message.content!.trim() === messages[1]!.content ? 1 : 0;
    }),
  );
  const known = right.reduce((a: number, b) => a + b, 0);
  assert.ok(known >= rows.length - 2, `${known} of ${rows.length} facts`);
  const names = (await client.models.list()).data.map((m) => m.id);
  assert.equal(names, ["story", "story:notes", "story:more"]);
  assert.is((await client.models.retrieve(job.fine_tuned_model!)).id, job.fine_tuned_model);
  // On from what was learned.
  const on = await client.fineTuning.jobs.create({
    ...{ model: "story:notes", training_file: file.id, suffix: "on", hyperparameters: { n_epochs: 2 } },
  });
  const first = await until(on.id).then(() => client.fineTuning.jobs.listEvents(on.id));
  const loss = (first.data.findLast((e) => e.type === "metrics")!.data as { train_loss: number }).train_loss;
  assert.ok(loss < losses.at(-1)! / 4, `it goes on from ${loss}`);
  assert.is((await client.models.delete("story:more")).deleted, true);
  assert.is((await caught(client.models.retrieve("story:more"))).status, 404);
  assert.is((await client.files.delete(file.id)).deleted, true);
  await atRest(engine);
});

test("tools: a template that knows them tells the model; no mark that it says of them is lost", async () => {
  const folder = storyModel();
  const spelled = "{% for t in tools or [] %}Once {{ t.function.name }} {% endfor %}";
  writeFileSync(`${folder}/chat_template.jinja`, spelled + chatTemplate);
  const out = `${scratch()}/tools.weft`;
  const options = { targets: ["wasm" as const], quick: true, capacities: { ...small, context: 192 } };
  const { base } = await compile(folder, out, options);
  assert.ok(base);
  await using engine = await load(out, { device: "wasm" });
  const client = clientOf(handler(engine, { model: "story" }));
  const tools = [{ type: "function" as const, function: { name: "upon", parameters: {} } }];
  const tokens = async (o: object): Promise<number> => {
    const said = await client.chat.completions.create({ ...ask, ...o } as typeof ask);
    return said.usage!.prompt_tokens;
  };
  const plain = await tokens({});
  const told = engine.promptIds({ messages: ask.messages, tools }).length;
  assert.ok(told > plain);
  assert.is(await tokens({ tools }), told);
  assert.is(await tokens({ tools, tool_choice: "auto" }), told);
  assert.is(await tokens({ tools, tool_choice: "none" }), plain);
  assert.is(await tokens({ tools: [] }), plain);
  // A special token that does not end the answer, said by force.
  const special = 0;
  assert.is(engine.text!.token(special).text, "<s>");
  const forced = { logit_bias: { [special]: 100 }, temperature: 0, max_tokens: 2 };
  const heard = async (o: object): Promise<string | null> => {
    const said = await client.chat.completions.create({ ...ask, ...forced, ...o } as typeof ask);
    return said.choices[0]!.message.content;
  };
  assert.is(await heard({}), "");
  assert.is(await heard({ tools }), "<s><s>");
});

test.run();
