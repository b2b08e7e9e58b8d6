/** The API as OpenAI's own client uses it, over an engine in this process. */
import { writeFileSync } from "node:fs";
import OpenAI, { APIError, toFile } from "openai";
import * as assert from "uvu/assert";
import { compile, type Engine, load } from "../sdk/index.ts";
import { type HandlerOptions, handler } from "../sdk/openai/index.ts";
import { small } from "./support/engines.ts";
import { facts, storyBundle, storyModel, template } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("openai");
let shared: Engine | null = null;
const engineOf = async (): Promise<Engine> =>
  (shared ??= await load(await storyBundle(), { device: "wasm", maxQueued: 20 }));
test.after(async () => shared?.dispose());

type Answer = (request: Request) => Promise<Response>;
const clientOf = (answer: Answer, apiKey = "none"): OpenAI =>
  new OpenAI({
    apiKey,
    baseURL: "http://weft.test/v1",
    maxRetries: 0,
    fetch: async (url, init) => {
      const response = answer(
        new Request(url as string, { ...init, duplex: "half" } as unknown as RequestInit),
      );
      const gone = new Promise<never>((_, reject) =>
        init?.signal?.addEventListener("abort", () => reject(init.signal!.reason)),
      );
      return Promise.race([response, gone]);
    },
  });
async function open(o: HandlerOptions = {}) {
  const engine = await engineOf();
  const answer = handler(engine, { model: "story", ...o });
  return { engine, answer, client: clientOf(answer) };
}
const caught = async (f: Promise<unknown>): Promise<APIError & { error: Record<string, never> }> =>
  f.then(
    () => assert.unreachable("no error") as never,
    (e) => {
      if (!(e instanceof APIError)) throw e;
      return e as never;
    },
  );
const ask = { model: "story", messages: [{ role: "user" as const, content: "What pet does Tom have?" }] };
/** Everything that requests held is free again. */
const atRest = async (engine: Engine): Promise<void> => {
  const { total, free } = engine.memory().blocks;
  assert.is(free, total);
};

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
  writeFileSync(`${folder}/chat_template.jinja`, spelled + template);
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

test("errors in OpenAI's shape: class, status, the parameter's name; never half a stream", async () => {
  const { engine, client, answer } = await open();
  const chat = (o: object) => client.chat.completions.create({ ...ask, ...o } as never);
  const text = (o: object) => client.completions.create({ model: "story", prompt: "x", ...o } as never);
  for (const [call, status, param, code] of [
    [() => chat({ model: "gpt" }), 404, "model", "model_not_found"],
    [() => chat({ model: "story:nobody" }), 404, "model", "model_not_found"],
    [() => chat({ messages: [] }), 400, "messages", "invalid_value"],
    [
      () => chat({ messages: [{ role: "user", content: [{ type: "image_url" }] }] }),
      400,
      "messages[0].content[0].type",
    ],
    [() => chat({ temperature: 3 }), 400, "temperature", "invalid_value"],
    [() => chat({ temprature: 1 }), 400, "temprature", "invalid_value"],
    [() => chat({ tools: [{ type: "function", function: { name: "f" } }] }), 400, "tools", "invalid_value"],
    [() => chat({ tools: [{ type: "other" }] }), 400, "tools[0]", "invalid_value"],
    [() => chat({ tools: [], tool_choice: "required" }), 400, "tool_choice", "invalid_value"],
    [
      () => chat({ response_format: { type: "json_schema", json_schema: { name: "x" } } }),
      400,
      "response_format",
      "invalid_value",
    ],
    [() => chat({ response_format: { type: "json_object" } }), 400, "response_format", "invalid_value"],
    [() => chat({ logit_bias: { 9999: 1 } }), 400, "logit_bias", "invalid_value"],
    [() => chat({ max_tokens: 0 }), 400, "max_tokens", "invalid_value"],
    [() => text({ prompt: Array(300).fill(5) }), 400, "prompt", "context_length_exceeded"],
    [() => text({ prompt: Array(300).fill(5), stream: true }), 400, "prompt", "context_length_exceeded"],
    [() => text({ prompt: [] }), 400, "prompt", "invalid_value"],
    [() => text({ prompt: [5, -1] }), 400, undefined, "invalid_value"],
    [() => text({ echo: true }), 400, "echo", "invalid_value"],
    [() => client.fineTuning.jobs.retrieve("ftjob-1"), 404, null, "not_found"],
    [
      () => client.fineTuning.jobs.create({ model: "story", training_file: "file-1" }),
      404,
      "training_file",
      "not_found",
    ],
    [() => client.files.retrieve("file-1"), 404, null, "not_found"],
    [() => client.models.delete("story"), 400, "model", "invalid_value"],
    [() => client.embeddings.create({ model: "story", input: "x" }), 404, null, "unknown_url"],
  ] as [() => Promise<unknown>, number, string | null | undefined, string?][]) {
    const e = await caught(call());
    assert.is(e.status, status, e.message);
    if (param !== undefined) assert.is(e.param, param, e.message);
    if (code) assert.is(e.code, code, e.message);
  }
  assert.match((await caught(chat({ temprature: 1 }))).message, /did you mean "temperature"/);
  const bad = await caught(
    client.files.create({
      file: await toFile(Buffer.from('{"text":"a"}\n{oh'), "x.jsonl"),
      purpose: "fine-tune",
    }),
  );
  assert.equal([bad.status, bad.code], [400, "invalid_training_data"]);
  assert.match(bad.message, /x\.jsonl, line 2/);
  const short = await client.files.create({
    file: await toFile(Buffer.from(`{"input_ids":[${Array(400).fill(5)}]}`), "x.jsonl"),
    purpose: "fine-tune",
  });
  const failed = await caught(client.fineTuning.jobs.create({ model: "story", training_file: short.id }));
  assert.is(failed.status, 400);
  const full = await caught(
    client.fineTuning.jobs.create({
      model: "story",
      training_file: short.id,
      weft: { method: "full" },
    } as never),
  );
  assert.equal([full.status, full.param], [400, "weft.method"]);
  assert.is((await client.fineTuning.jobs.list()).data.length, 0, "what never ran is no job");
  // What is no request of a client's.
  const raw = (path: string, init: RequestInit) => answer(new Request(`http://weft.test${path}`, init));
  const json = { "content-type": "application/json" };
  for (const [path, init, status] of [
    ["/v1/chat/completions", { method: "POST", body: "{", headers: json }, 400],
    ["/v1/chat/completions", { method: "POST", body: "[1]", headers: json }, 400],
    ["/v1/chat/completions", { method: "POST", body: "\xff", headers: json }, 400],
    ["/v1/chat/completions", { method: "POST", body: "{}" }, 415],
    ["/v1/chat/completions", { method: "POST", body: "[".repeat(1e5), headers: json }, 400],
    ["/v1/chat/completions", { method: "GET" }, 405],
    ["/v1/files", { method: "POST", body: "x", headers: json }, 415],
    [
      "/v1/files",
      { method: "POST", body: "x", headers: { "content-type": "multipart/form-data; boundary=a" } },
      400,
    ],
    ["/v1/models/%E0%A4%A", { method: "GET" }, 400],
    ["/v1/fine_tuning/jobs?limit=none", { method: "GET" }, 400],
    ["/v1/fine_tuning/jobs?after=nobody", { method: "GET" }, 404],
    ["/", { method: "GET" }, 404],
  ] as const) {
    const response = await raw(path, init);
    assert.is(response.status, status, path);
    const { error } = (await response.json()) as { error: Record<string, unknown> };
    assert.equal(Object.keys(error).slice(0, 4), ["message", "type", "param", "code"]);
  }
  const { answer: small } = await open({ maxBodyBytes: 100, maxFileBytes: 50 });
  const post = (path: string, body: BodyInit, headers = {}) =>
    small(new Request(`http://weft.test${path}`, { method: "POST", body, headers }));
  assert.is((await post("/v1/completions", JSON.stringify({ prompt: "x".repeat(200) }), json)).status, 413);
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new Blob([`{"text":"${"x".repeat(100)}"}`]), "x.jsonl");
  assert.is((await post("/v1/files", form)).status, 413);
  // An endless body is not read to its end.
  const endless = new ReadableStream({ pull: (c) => c.enqueue(new Uint8Array(64)) });
  const init = { method: "POST", body: endless, headers: json, duplex: "half" } as RequestInit;
  assert.is((await small(new Request("http://weft.test/v1/completions", init))).status, 413);
  await atRest(engine);
});

test("too many at once: 429 and when to try again; those that run go on", async () => {
  const { engine, client } = await open();
  const o = { ...ask, temperature: 0, max_tokens: 150, logit_bias: { 1: -100 } };
  const running = await client.chat.completions.create({ ...o, n: 6, stream: true });
  const waiting = client.chat.completions.create({ ...o, max_tokens: 3, n: 15 });
  const refused = await caught(client.chat.completions.create({ ...o, n: 128 }).asResponse());
  assert.equal([refused.status, refused.code], [429, "rate_limit_exceeded"]);
  assert.is(refused.headers!.get("retry-after"), "1");
  assert.ok(refused instanceof OpenAI.RateLimitError);
  assert.is((await waiting).choices.length, 15);
  const said = new Set<number>();
  for await (const { choices } of running) for (const c of choices) if (c.finish_reason) said.add(c.index);
  assert.is(said.size, 6);
  await atRest(engine);
});

test("a key: without it nothing but /health; an engine that has ended: 503", async () => {
  const engine = await load(await storyBundle(), { device: "wasm" });
  const errors: unknown[] = [];
  const answer = handler(engine, { apiKey: "secret", onError: (e) => errors.push(e) });
  for (const key of ["wrong", "secre", "secrets"]) {
    const e = await caught(clientOf(answer, key).models.list());
    assert.ok(e instanceof OpenAI.AuthenticationError);
    assert.is(e.code, "invalid_api_key");
  }
  assert.equal(
    (await clientOf(answer, "secret").models.list()).data.map((m) => m.id),
    ["base"],
  );
  const health = () => answer(new Request("http://weft.test/health"));
  assert.is((await health()).status, 200);
  await engine.dispose();
  assert.is((await health()).status, 503);
  const e = await caught(clientOf(answer, "secret").chat.completions.create({ ...ask, model: "base" }));
  assert.equal([e.status, e.headers!.get("retry-after"), errors.length], [503, "1", 1]);
  for (const wrong of [{ model: "" }, { apiKey: 3 }, { port: 1 }])
    assert.throws(() => handler(engine, wrong as never), /WEFT_OPTION/);
});
test.run();
