/** Calls of tools in what a model says: taken out where they are whole, however the text comes; else text. */
import * as assert from "uvu/assert";
import { type Engine, load, type Message, type Piece } from "../sdk/index.ts";
import { Calls, forTemplate } from "../sdk/openai/calls.ts";
import { handler } from "../sdk/openai/index.ts";
import { generator } from "./support/random.ts";
import { storyBundle } from "./support/story.ts";
import { suite } from "./support/suite.ts";

const test = suite("calls");
const names = new Set(["weather", "time"]);
/** Content, and calls, of an answer that comes in these parts. */
function heard(parts: readonly string[]): [string, ...[name: string, json: string][]] {
  const calls = new Calls(names, () => "id");
  let content = "";
  for (const part of parts) content += calls.take(part);
  content += calls.end();
  return [content, ...calls.made.map(({ function: f }): [string, string] => [f.name, f.arguments])];
}
const paris = '{"name": "weather", "arguments": {"city": "Paris </tool_call"}}';
const whole: [said: string, want: ReturnType<typeof heard>][] = [
  ["Once upon a time", ["Once upon a time"]],
  [`<tool_call>\n${paris}\n</tool_call>`, ["", ["weather", '{"city":"Paris </tool_call"}']]],
  [
    `Let me see.\n<tool_call>${paris}</tool_call>\n<tool_call>{"name":"time","arguments":{}}</tool_call>`,
    ["Let me see.\n", ["weather", '{"city":"Paris </tool_call"}'], ["time", "{}"]],
  ],
  ['{"name": "time", "parameters": {"zone": {"of": "}"}}}', ["", ["time", '{"zone":{"of":"}"}}']]],
  ['<|python_tag|>{"name": "time", "parameters": {}}\n', ["", ["time", "{}"]]],
  [
    '{"name": "time", "parameters": {}}; {"name": "weather", "parameters": {"a": 1}}',
    ["", ["time", "{}"], ["weather", '{"a":1}']],
  ],
  // What is less than a call is text, all of it.
  ...[
    "<tool_call>not JSON</tool_call> and on",
    '<tool_call>{"name": "rain", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "time", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "time", "arguments": {}}',
    '{"name": "rain", "parameters": {}}',
    '{"name": "time", "parameters": {}} it is',
    '{"name": "time", "parameters": {}}; {"name": "rain", "parameters": {}}',
    'It is {"name": "time", "parameters": {}}',
    "{ once } <tool_ <tool_call < ",
    '{"name": "time"',
    "<|python_tag|>print(1)",
    "  ",
  ].map((text): [string, ReturnType<typeof heard>] => [text, [text]]),
];

test("whole, letter by letter, and cut anywhere: the same calls, the same text", () => {
  const next = generator("calls");
  for (const [said, want] of whole) {
    assert.equal(heard([said]), want, said);
    assert.equal(heard([...said]), want, said);
    for (let i = 0; i < 20; i++) {
      const parts: string[] = [];
      for (let at = 0; at < said.length; ) parts.push(said.slice(at, (at += 1 + (next() % 7))));
      assert.equal(heard(parts), want, parts.join("|"));
    }
  }
  // Text that cannot be of a call is told at once.
  const calls = new Calls(names);
  assert.equal(
    ["Once ", "<t", "a> upon <tool", "_call>"].map((t) => calls.take(t)),
    [...["Once ", "", "<ta> upon ", ""]],
  );
});

test("templates read the arguments of earlier calls as objects; what is no JSON stays", () => {
  const call = (given: unknown) => ({
    id: "a",
    type: "function",
    function: { name: "time", arguments: given },
  });
  const turn = (...given: unknown[]) =>
    ({ role: "assistant", content: null, tool_calls: given.map(call) }) as unknown as Message;
  const user: Message = { role: "user", content: "When?" };
  assert.equal(forTemplate([user, turn('{"zone": 1}', "soon", { a: 1 })]), [
    user,
    turn({ zone: 1 }, "soon", { a: 1 }),
  ]);
});

test("over the API: tool_calls and their finish, whole and as a stream; text as ever", async () => {
  await using story = await load(await storyBundle(), { device: "wasm", threads: 1 });
  let says: string[] = [];
  async function* generate(): AsyncGenerator<Piece, void, void> {
    for (const [i, text] of says.entries())
      yield {
        ...{ id: 5, text, logprob: -1, top: [], adapter: "base", seed: null, cached: 0 },
        finish: i === says.length - 1 ? "stop" : null,
      } as Piece;
  }
  const engine = new Proxy(story, {
    get: (of, key) =>
      key === "generate"
        ? generate
        : key === "promptIds"
          ? ({ tools }: { tools?: unknown }) => (tools ? [1, 2, 3] : [1, 2])
          : Reflect.get(of, key),
  }) as Engine;
  const api = handler(engine, { model: "story" });
  const tools = [...names].map((name) => ({ type: "function", function: { name, parameters: {} } }));
  const ask = async (more: object): Promise<Response> =>
    api(
      new Request("http://x/v1/chat/completions", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "story", messages: [{ role: "user", content: "?" }], tools, ...more }),
      }),
    );
  type Told = { index?: number; id: string; type: string; function: { name: string; arguments: string } };
  interface Choice {
    finish_reason: string | null;
    message: { content: string | null; tool_calls?: Told[] };
    delta: { content?: string; tool_calls?: Told[] };
  }
  const choiceOf = async (more: object): Promise<Choice> => {
    const response = await ask(more);
    assert.is(response.status, 200, await response.clone().text());
    return ((await response.json()) as { choices: Choice[] }).choices[0]!;
  };
  const streamed = async (): Promise<Choice[]> =>
    (await (await ask({ stream: true })).text())
      .split("\n\n")
      .filter((line) => line.startsWith("data: {"))
      .map((line) => (JSON.parse(line.slice(6)) as { choices: Choice[] }).choices[0]!);

  says = ["Let me see. <tool", "_call>", paris, "</tool_call>", ""];
  const called = await choiceOf({});
  assert.is(called.finish_reason, "tool_calls");
  assert.is(called.message.content, "Let me see. ");
  const [call] = called.message.tool_calls!;
  assert.match(call!.id, /^call_\w{32}$/);
  assert.equal(call!.function, { name: "weather", arguments: '{"city":"Paris </tool_call"}' });
  const parts = await streamed();
  assert.is(parts.map((p) => p.delta.content ?? "").join(""), "Let me see. ");
  const told = parts.flatMap((p) => p.delta.tool_calls ?? []);
  assert.equal(
    told.map((c) => [c.index, c.type, c.function]),
    [[0, "function", call!.function]],
  );
  assert.is(parts.at(-1)!.finish_reason, "tool_calls");

  says = ['{"name": "time", ', '"parameters": {}}'];
  const alone = await choiceOf({});
  assert.equal([alone.message.content, alone.finish_reason], [null, "tool_calls"]);
  // Who gave no tools, or wants none called, gets text.
  for (const more of [{ tools: [] }, { tool_choice: "none" }]) {
    const plain = await choiceOf(more);
    assert.equal([plain.message.content, plain.finish_reason], [says.join(""), "stop"]);
    assert.is(plain.message.tool_calls, undefined);
  }
});
test.run();
