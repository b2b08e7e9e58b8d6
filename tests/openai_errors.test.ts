/** What the API refuses, as OpenAI's own client hears of it. */
import OpenAI, { toFile } from "openai";
import * as assert from "uvu/assert";
import { load } from "../sdk/index.ts";
import { handler } from "../sdk/openai/index.ts";
import { ask, atRest, caught, clientOf, closeEngine, open } from "./support/openai.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";

const test = suite("openai errors");
test.after(closeEngine);

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
  assert.match((await caught(chat({ model: "gpt" }))).message, /'gpt' does not exist: there are story/);
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
