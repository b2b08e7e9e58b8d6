/** `weft serve` as a process: over a socket, with a key, told to stop while it works. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { request } from "node:http";
import OpenAI, { toFile } from "openai";
import * as assert from "uvu/assert";
import { root, weft } from "./support/program.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("serve");
interface Serving {
  readonly url: string;
  readonly models: string[];
  readonly client: OpenAI;
  readonly kill: () => void;
  readonly ended: Promise<{ code: number | null; err: string }>;
}
async function serve(...args: string[]): Promise<Serving> {
  const child = spawn(
    process.execPath,
    [...weft(), "serve", await storyBundle(), "--port", "0", "--device", "wasm", ...args],
    { cwd: root, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, WEFT_API_KEY: "secret" } },
  );
  let [out, err] = ["", ""];
  child.stderr.on("data", (d) => (err += d));
  const ended = new Promise<{ code: number | null; err: string }>((resolve) =>
    child.on("close", (code) => resolve({ code, err })),
  );
  const [, url, models] = await new Promise<RegExpExecArray>((resolve, reject) => {
    child.stdout.on("data", (d) => {
      out += d;
      const found = /^(http:\S+): (.*), on /m.exec(out);
      if (found) resolve(found);
    });
    void ended.then(() => reject(new Error(err)));
  });
  return {
    url: url!,
    models: models!.split(", "),
    client: new OpenAI({ apiKey: "secret", baseURL: url!, maxRetries: 0 }),
    kill: () => void child.kill("SIGTERM"),
    ended,
  };
}

test("chat, a job that is there after a restart, a stream given up, names, SIGTERM", async () => {
  const dir = scratch();
  const adapters = `${dir}/adapters`;
  const first = await serve("--adapters", adapters);
  assert.match(first.url, /^http:\/\/127\.0\.0\.1:\d+\/v1$/);
  assert.equal(first.models, ["story"]);
  const health = await fetch(first.url.replace("/v1", "/health"));
  assert.is(((await health.json()) as { status: string }).status, "ok");
  const wrong = new OpenAI({ apiKey: "wrong", baseURL: first.url, maxRetries: 0 });
  assert.is(await wrong.models.list().catch((e: { status: number }) => e.status), 401);
  const ask = { model: "story", messages: [{ role: "user" as const, content: "Where does Mia live?" }] };
  const said = await first.client.chat.completions.create({ ...ask, temperature: 0 });
  assert.ok(said.choices[0]!.message.content);
  // A page whose name was pointed at this machine.
  const status = await new Promise((resolve, reject) =>
    request(first.url.replace("/v1", "/health"), { headers: { host: "evil.test" } }, (r) => {
      r.resume();
      resolve(r.statusCode);
    })
      .on("error", reject)
      .end(),
  );
  assert.is(status, 403);
  const long = { ...ask, max_tokens: 150, logit_bias: { 1: -100 }, stream: true as const };
  for await (const _ of await first.client.chat.completions.create(long)) break;
  const rows = '{"prompt":"Question: Where does Mia live?\\nAnswer:","completion":" bridge."}\n'.repeat(8);
  const upload = async (client: OpenAI) =>
    client.files.create({ file: await toFile(Buffer.from(rows), "r.jsonl"), purpose: "fine-tune" });
  const file = await upload(first.client);
  const made = await first.client.fineTuning.jobs.create({
    ...{ model: "story", training_file: file.id, suffix: "notes", hyperparameters: { n_epochs: 3 } },
  });
  while (!(await first.client.fineTuning.jobs.retrieve(made.id)).finished_at)
    await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(existsSync(`${adapters}/notes/adapter_model.safetensors`));
  first.kill();
  const ended = await first.ended;
  assert.is(ended.code, 0, ended.err);
  assert.not.match(ended.err, /Abort/, ended.err);
  assert.match(ended.err, /no adapter in .*adapters yet: jobs save theirs there/);

  const second = await serve("--adapters", adapters, "--checkpoints", `${dir}/kept`);
  assert.equal(second.models, ["story", "story:notes"]);
  const answer = { ...ask, model: "story:notes", temperature: 0 };
  assert.match((await second.client.chat.completions.create(answer)).model, /^story:notes@1$/);
  const { id } = await upload(second.client);
  await second.client.fineTuning.jobs.create({
    ...{ model: "story", training_file: id, suffix: "more", hyperparameters: { n_epochs: 10000 } },
  });
  let text = "";
  let parts = 0;
  // It is told to stop in the middle of an answer, which is told to its end.
  for await (const { choices } of await second.client.chat.completions.create(long)) {
    if (parts++ === 2) second.kill();
    text += choices[0]?.delta.content ?? "";
  }
  assert.ok(text.length > 100, text);
  const { code, err } = await second.ended;
  assert.is(code, 0, err);
  assert.match(err, /the job more is kept in .*kept\/more, at step \d+/);
  assert.ok(readdirSync(`${dir}/kept/more`).includes("CURRENT"));
});
test.run();
