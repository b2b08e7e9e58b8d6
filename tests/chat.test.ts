/**
 * Conversations: templates say what transformers says, rows learn the assistant's turns of exactly that, and
 * a hostile template ends soon. One file: what is said in turns, and what rows make of it, is one law.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as assert from "uvu/assert";
import type { WeftError } from "../runtime/bundle.ts";
import { encodeRow, parseJsonl, rowsOf } from "../sdk/data.ts";
import { ChatTemplate } from "../sdk/template.ts";
import { type Message, Text } from "../sdk/text.ts";
import { fixtures } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("chat");
const story = fileURLToPath(new URL("../examples/model/story/", import.meta.url));
const json = (path: string): never => JSON.parse(readFileSync(path, "utf8")) as never;
const [tokenizer, config] = [json(`${story}tokenizer.json`), json(`${story}tokenizer_config.json`)] as [
  object,
  Record<string, unknown>,
];
interface Said {
  readonly text: string;
  readonly prompt: string;
  readonly ids: readonly number[];
  readonly mask?: readonly number[];
  readonly refused?: string;
}
/** What make_chat.py wrote. */
const theirs = json(`${fixtures}chat.json`) as {
  conversations: Record<string, Message[]>;
  templates: Record<string, Record<string, Said>>;
  given: { template: string; title: string; given: Record<string, unknown>; text: string }[];
  encoded: Record<string, { processor: object | null; config: object; ids: number[] }>;
};
const sourceOf = (name: string): string =>
  name === "example"
    ? (config.chat_template as string)
    : readFileSync(`${fixtures}chat_templates/${name}.jinja`, "utf8");
const textOf = (template: string): Text => new Text(tokenizer, config, () => new ChatTemplate(template));
const caught = (f: () => unknown): WeftError => {
  try {
    f();
  } catch (e) {
    return e as WeftError;
  }
  throw new Error("no error");
};
const END = 1; // </s>
const row = (text: Text, messages: readonly Message[]) =>
  encodeRow({ messages }, { text }, [END], "d.jsonl, row 3");
/** What is learned, turn by turn. */
const learned = (text: Text, r: ReturnType<typeof row>): string[] => {
  const turns: number[][] = [];
  r.labels.forEach((id, i) => {
    if (id < 0) return;
    assert.is(id, r.input_ids[i]);
    if (i === 0 || r.labels[i - 1]! < 0) turns.push([]);
    turns.at(-1)!.push(id);
  });
  // With special tokens, which `decode` leaves out.
  return turns.map((ids) => ids.map((id) => (id === END ? "</s>" : text.decode([id]))).join(""));
};

test("templates say what transformers says, with and without an answer's prompt, in ids", () => {
  let said = 0;
  for (const [name, results] of Object.entries(theirs.templates))
    for (const [title, want] of Object.entries(results)) {
      const text = textOf(sourceOf(name));
      const messages = theirs.conversations[title]!;
      // Jinja takes a missing text for an empty one; here a template that needs text says so.
      if (want.refused || (name === "llama3" && title === "tools")) {
        assert.is(caught(() => text.chat(messages, false)).code, "WEFT_TOKENIZER", `${name}, ${title}`);
        continue;
      }
      said++;
      assert.is(text.chat(messages, false), want.text, `${name}, ${title}`);
      assert.is(text.chat(messages, true), want.prompt, `${name}, ${title}`);
      assert.equal(text.encode(want.text, false), want.ids, `${name}, ${title}`);
    }
  assert.is(said, 29);
});

test("tools and other arguments: a template is told what transformers tells it; rows may bring them", () => {
  for (const { template, title, given, text: want } of theirs.given)
    assert.is(
      textOf(sourceOf(template)).chat(theirs.conversations[title]!, true, given),
      want,
      `${template}, ${title}, ${Object.keys(given)}`,
    );
  assert.is(theirs.given.length, 16);
  const text = textOf(sourceOf("tools_thinking"));
  const messages = theirs.conversations["two turns"]!;
  const tools = [{ type: "function", function: { name: "clock" } }];
  const rowOf = (more: object) => encodeRow({ messages, ...more }, { text }, [END], "row");
  const said = text.decode(rowOf({ tools }).input_ids);
  assert.match(said, /clock/);
  assert.equal(rowOf({ chat_template_kwargs: { tools } }), rowOf({ tools }));
  assert.equal(rowOf({}), rowOf({ tools: null }));
  assert.is(caught(() => rowOf({ tools: "clock" })).code, "WEFT_DATA");
});

test("{% generation %}: the turns that transformers masks are learned, however tagged", () => {
  let rows = 0;
  for (const [name, results] of Object.entries(theirs.templates))
    for (const [title, want] of Object.entries(results)) {
      if (!want.mask) continue;
      rows++;
      const r = row(textOf(sourceOf(name)), theirs.conversations[title]!);
      assert.equal(r.input_ids, want.ids, `${name}, ${title}`);
      assert.equal(
        r.labels.map((x) => (x < 0 ? 0 : 1)),
        want.mask,
        `${name}, ${title}`,
      );
    }
  assert.is(rows, 8);
  // An end mark right behind the block is learned with it.
  const outside = textOf(
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% " +
      "endgeneration %}</s>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
  );
  assert.equal(learned(outside, row(outside, theirs.conversations["two turns"]!)), [
    "A dog.</s>",
    " A frog.\n</s>",
  ]);
  // A template that prints its blocks changed has no spans to tell.
  const trimmed = textOf(
    "{% for m in messages %}{% set t %}{% generation %} {{ m.content }} {% endgeneration %}{% endset " +
      "%}{{ t | trim }}{% endfor %}",
  );
  assert.match(
    caught(() => row(trimmed, [{ role: "assistant", content: "a" }])).message,
    /WEFT_DATA .*printed/,
  );
  const two = theirs.conversations["two turns"]!;
  const none = textOf("{% if false %}{% generation %}{% endgeneration %}{% endif %}hello");
  assert.match(
    caught(() => row(none, two)).message,
    /WEFT_DATA at d\.jsonl, row 3: messages: .*2 assistant turns/,
  );
});

test("by checked prefixes: a turn is what comes after the prompt that is served for it, to its end", () => {
  const chatml = textOf(sourceOf("chatml"));
  assert.equal(learned(chatml, row(chatml, theirs.conversations["two turns"]!)), [
    "A dog.<|im_end|>\n",
    " A frog.\n<|im_end|>\n",
  ]);
  const llama = textOf(sourceOf("llama3"));
  assert.equal(learned(llama, row(llama, theirs.conversations["two turns"]!)), [
    "A dog.<|eot_id|>",
    "A frog.<|eot_id|>",
  ]);
  // A system turn that becomes part of the user's.
  const gemma = textOf(sourceOf("gemma"));
  assert.equal(learned(gemma, row(gemma, theirs.conversations.system!)), ["Hello Mia<end_of_turn>\n"]);
  // The last turn of a conversation is learned with the thinking that the model has to say.
  const qwen = textOf(sourceOf("qwen3"));
  assert.equal(learned(qwen, row(qwen, theirs.conversations.system!)), [
    "<think>\n\n</think>\n\nHello Mia<|im_end|>\n",
  ]);
  for (const [name, title] of [
    ["chatml", "two turns"],
    ["llama3", "thinking"],
    ["gemma", "system"],
    ["qwen3", "system"],
  ] as const) {
    const text = textOf(sourceOf(name));
    const messages = theirs.conversations[title]!;
    const r = row(text, messages);
    assert.equal(r.input_ids, theirs.templates[name]![title]!.ids, "what is trained on is the whole text");
    messages.forEach((m, i) => {
      if (m.role !== "assistant") return;
      const prompt = text.encode(text.chat(messages.slice(0, i), true), false);
      assert.equal(r.input_ids.slice(0, prompt.length), prompt, `${name}: the prompt as served`);
      assert.ok(
        r.labels[prompt.length - 1]! < 0 && r.labels[prompt.length]! >= 0,
        `${name}: learned from there`,
      );
    });
  }
});

test("a template that rewrites earlier turns is an error that names the turn", () => {
  const lastOnly =
    `{% for m in messages %}<|{{ m.role }}|>{% if m.role == "assistant" and not loop.last %}{{ ` +
    `m.content.split("</think>")[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if ` +
    "add_generation_prompt %}<|assistant|>{% endif %}";
  const messages = theirs.conversations.thinking!;
  for (const source of [lastOnly, sourceOf("qwen3")]) {
    const text = textOf(source);
    const error = caught(() => row(text, messages));
    assert.is(error.code, "WEFT_DATA");
    assert.is(error.where, "d.jsonl, row 3: messages[1]");
    assert.match(error.found, /rewrites earlier turns/);
    assert.match(error.hint!, /weight/);
    const alone = messages.map((m, i) => (i === 1 ? { ...m, weight: 0 } : m));
    const r = row(text, alone);
    assert.equal(
      r.input_ids,
      text.encode(text.chat(messages, false), false),
      "the whole, with its second question",
    );
    const [turn, ...others] = learned(text, r);
    assert.is(others.length, 0);
    assert.match(turn!, /^<think>\nagain\n<\/think>\n\nfour/);
  }
  // Two prompts that differ: the template says something else to a model that answers than it keeps
  // afterwards.
  const opens = textOf(
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt " +
      "%}[assistant]<think>{% endif %}",
  );
  assert.match(
    caught(() =>
      row(
        opens,
        messages.slice(2).map((m) => ({ ...m, content: "x" })),
      ),
    ).where,
    /messages\[1\]/,
  );
  assert.match(
    caught(() => row(opens, [{ role: "assistant", content: "x", weight: 2 }])).message,
    /WEFT_DATA at d\.jsonl, row 3: messages\[0\]\.weight: expected 0 or 1/,
  );
});

test("where a token would reach over a prompt's end, text is cut: its ids are served", () => {
  const text = textOf(
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} Ann{% else %}{{ m.content }}.{% " +
      "endif %}{% endfor %}",
  );
  const messages: Message[] = [
    { role: "user", content: "Who?" },
    { role: "assistant", content: "a has a dog" },
    { role: "user", content: "s And?" },
    { role: "assistant", content: "a ran" },
  ];
  const whole = text.chat(messages, false);
  const prompt = text.encode("Who? Ann", false);
  assert.is.not(text.encode(whole, false)[prompt.length - 1], prompt.at(-1), "Anna is one token");
  const r = row(text, messages);
  assert.equal(r.input_ids.slice(0, prompt.length), prompt);
  assert.is(text.decode(r.input_ids), whole);
  assert.equal(learned(text, r), ["a has a dog.", "a ran."]);
});

test("messages: parts of text are joined, other parts refused by name, the rest passed", () => {
  const text = textOf(sourceOf("chatml"));
  const parts = (content: unknown): Message[] => [{ role: "user", content } as Message];
  const two = parts([
    { type: "text", text: "What pet" },
    { type: "text", text: "has Anna?" },
  ]);
  assert.is(text.chat(two, true), text.chat(parts("What pet\nhas Anna?"), true));
  const call: Message = {
    role: "assistant",
    tool_calls: [{ type: "function", function: { name: "f", arguments: {} } }],
  };
  const spoken: Message[] = [...two, { role: "assistant", content: [{ type: "text", text: "A dog." }] }];
  assert.equal(learned(text, row(text, spoken)), ["A dog.<|im_end|>\n"]);
  for (const [content, where, found] of [
    [
      [
        { type: "text", text: "x" },
        { type: "image_url", image_url: {} },
      ],
      "messages[0].content[1].type",
      '"image_url"',
    ],
    [[{ type: "text" }], "messages[0].content[0].text", "undefined"],
    [[null], "messages[0].content[0].type", "undefined"],
    [7, "messages[0].content", "7"],
  ] as const) {
    const served = caught(() => text.chat(parts(content), true));
    assert.equal([served.code, served.where, served.found], ["WEFT_OPTION", where, found]);
    const trained = caught(() => row(text, parts(content)));
    assert.equal([trained.code, trained.where], ["WEFT_DATA", `d.jsonl, row 3: ${where}`]);
  }
  for (const message of [
    { role: "user" },
    { role: "user", contents: "Hi" },
    { role: "user", contnt: "Hi" },
  ]) {
    const e = caught(() => text.chat([message], true));
    assert.equal([e.code, e.where, e.expected], ["WEFT_OPTION", "messages[0]", "a message with content"]);
  }
  for (const [role, near] of [
    ["asistant", "assistant"],
    ["usr", "user"],
    ["User", "user"],
  ] as const) {
    const e = caught(() => text.chat([{ role, content: "Hi" }], true));
    assert.equal([e.code, e.where, e.hint], ["WEFT_OPTION", "messages[0].role", `did you mean "${near}"?`]);
  }
  // A template may name such a role, or have roles of its own; this one says nothing of those.
  const own = "{% for m in messages if m.role == 'users' %}{{ m.content }}{% endfor %}";
  assert.is(textOf(own).chat([{ role: "users", content: "Hi" }], false), "Hi");
  assert.is(textOf(sourceOf("qwen3")).chat([{ role: "critic", content: "Hi" }], false), "");
  assert.match(textOf(sourceOf("qwen3")).chat([{ role: "user", content: "Hi" }, call], false), /tool_call/);
  for (const list of [[], "hi", [{ content: "x" }], [null]])
    assert.is(caught(() => text.chat(list as never, true)).code, "WEFT_OPTION", JSON.stringify(list));
  const circle: Record<string, unknown> = {};
  circle.self = circle;
  const deep: unknown = JSON.parse("[".repeat(100_000) + "]".repeat(100_000));
  for (const list of [{ deep }, [circle], [deep], [{ role: "user", content: 3n }]])
    assert.is(caught(() => text.chat(list as never, true)).code, "WEFT_OPTION");
  assert.is(caught(() => parseJsonl(JSON.stringify([1]), "d.jsonl")).found, "[1]");
  assert.is(caught(() => parseJsonl("[".repeat(100_000) + "]".repeat(100_000), "d.jsonl")).code, "WEFT_DATA");
  assert.is(caught(() => row(text, [null] as never)).code, "WEFT_DATA");
  // What a template needs and a message lacks is the template's complaint, told with the row.
  const silent = caught(() => row(text, [{ role: "user", content: null }]));
  assert.equal([silent.code, silent.where], ["WEFT_DATA", "d.jsonl, row 3: chat template"]);
  const qwen = textOf(sourceOf("qwen3"));
  assert.match(
    qwen.chat(theirs.conversations.tools!, false),
    /<tool_call>\n\{"name": "clock", "arguments": \{"zone"/,
  );
  const none = caught(() => new Text(tokenizer, config, null).chat(two, true));
  assert.equal([none.code, none.found], ["WEFT_TOKENIZER", "none"]);
});

test("the tokenizer's post-processor alone decides about a start token, as in transformers", () => {
  for (const [name, { processor, config: more, ids }] of Object.entries(theirs.encoded)) {
    const text = new Text({ ...tokenizer, post_processor: processor }, { ...config, ...more }, null);
    assert.equal(text.encode("Anna has a hat."), ids, name);
  }
});

/** Templates that would take all time or memory, by the bound that they pass. */
const set = (name: string, value: string): string => `{% set ${name} = ${value} %}`;
const times = (n: number, body: string): string => `{% for i in range(${n}) %}${body}{% endfor %}`;
/** ns.x, 2^n letters long. */
const doubled = (n: number): string =>
  `{% set ns = namespace(x='a') %}${times(n, "{% set ns.x = ns.x + ns.x %}")}`;
const text16k = "{% set s = range(9999)|join('a') %}";
const grown = (start: string, step: string): string =>
  `{% set ns = namespace(x=${start}) %}${times(60, `{% set ns.x = ${step} %}`)}`;
const hostile: Readonly<Record<string, string>> = {
  "a list of 10⁹ numbers": times(1e9, "a"),
  "the length of one": "{{ range(1000000000)|length }}",
  "numbers that never end": "{{ range(0, 1, 1/0) }}",
  "loops in loops, empty": times(1e5, times(1e5, "")),
  "loops in loops that print": times(1e5, times(1e5, "{{ messages[0].content }}")),
  "three loops": times(1000, times(1000, times(1000, "x"))),
  "loops that choose": `{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}`,
  "a text that doubles": `${grown("'ab'", "ns.x + ns.x")}{{ ns.x }}`,
  "a text that doubles by ~": `${grown("'ab'", "ns.x ~ ns.x")}{{ ns.x|upper }}`,
  "a list that doubles": `${grown("[1]", "ns.x + ns.x")}{{ ns.x }}`,
  "a list of itself twice, as JSON": `${grown("['a']", "[ns.x, ns.x]")}{{ ns.x|tojson }}`,
  "a mapping of itself twice, printed": `${grown("{'a': 1}", "{'l': ns.x, 'r': ns.x}")}{{ ns.x }}`,
  "a namespace in itself": "{% set a = namespace(x=1) %}{% set a.x = [a] %}{{ a|tojson }}",
  "a long separator": `{{ range(99999)|join(messages[0].content) }}`,
  "a text joined with itself": `${text16k}{{ s|join(s) }}`,
  "a text replaced by itself": `${text16k}{{ s|replace('a', s) }}`,
  "a text replaced everywhere": `${text16k}{{ s.replace('', s) }}`,
  "a method kept aside": `${text16k}{% set f = s.replace %}{{ f('a', s) }}`,
  "a method by its name": `${text16k}{{ s['rep' ~ 'lace']('a', s) }}`,
  "splits again and again": text16k + times(99999, set("x", "s.split('a')")),
  "a wide indent": "{{ 'a\nb'|indent(1000000000) }}",
  "a wide indent, named": "{{ 'a\nb'|indent(width=400000000) }}",
  "a wide indent of JSON": "{{ [1, [2]]|tojson(indent=400000000) }}",
  "JSON again and again": times(99999, set("x", "messages|tojson")),
  "prints of everything": times(99999, "{{ messages }}"),
  "a macro without end": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
  "a macro that doubles":
    "{% macro f(x) %}{% if x > 0 %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
  "a search that is quadratic": doubled(19) + times(9999, "{{ ('b' + ns.x[:200000]) in ns.x }}"),
  "long texts compared": [
    doubled(20),
    "{% set y = ns.x + 'b' %}{% set z = ns.x + 'c' %}",
    times(99999, "{{ y == z }}"),
  ].join(""),
  "long texts sorted": [
    text16k,
    "{% set l = [s, s, s, s, s, s, s, s] %}",
    times(99999, "{{ l|sort|length }}"),
  ].join(""),
  "texts reversed": text16k + times(99999, set("x", "s[::-1]")),
  "breaks again and again": times(99999, times(99, "{% break %}")),
  "a filter block": `${times(99999, "{% filter upper %}{{ messages[0].content }}{% endfilter %}")}`,
  "brackets in brackets": `{{ ${"(".repeat(1e5)}1${")".repeat(1e5)} }}`,
  "a long sum": `{{ ${Array(20000).fill("1").join("+")} }}`,
  "blanks before no tag": `${" ".repeat(2e5)}x`,
  "a template of a megabyte": "x".repeat(2 ** 20),
  "a loop without an end": "{% for m in messages %}",
};
test("a hostile template is refused before it takes time or memory, with its bound", () => {
  const messages = [{ role: "user", content: "hello ".repeat(20000) }];
  const before = process.memoryUsage.rss();
  let most = 0;
  for (const [name, source] of Object.entries(hostile)) {
    const error = caught(() => new ChatTemplate(source).render({ messages }));
    assert.is(error.code, "WEFT_TOKENIZER", name);
    assert.ok(error.found.length > 0 && error.found.length <= 300, name);
    most = Math.max(most, process.memoryUsage.rss() - before);
  }
  assert.ok(most < 400 * 2 ** 20, `${(most / 2 ** 20).toFixed(0)} MiB more`);
  const rude = caught(() => new ChatTemplate("{{ raise_exception('no ' * 2) }}").render({ messages }));
  assert.is(rude.code, "WEFT_TOKENIZER");
  const long = `{{ raise_exception('${"no ".repeat(1000)}') }}`;
  assert.is(caught(() => new ChatTemplate(long).render({ messages })).found.length, 300);
});

test("a long conversation is well within the bounds", () => {
  const messages: Message[] = Array.from({ length: 1000 }, (_, i) => ({
    role: i % 2 ? "assistant" : "user",
    content: `${i} `.repeat(100),
  }));
  for (const name of ["chatml", "llama3", "gemma", "qwen3", "dashes_generation"])
    assert.ok(new ChatTemplate(sourceOf(name)).render({ messages, bos_token: "" }).length > 300000, name);
  assert.match(
    new ChatTemplate("{{ strftime_now('%d %b %Y %%') }}").render({}),
    /^\d\d [A-Z][a-z]{2} \d{4} %$/,
  );
});
test("a file of rows is read line by line: it may be longer than a text can be, its lines not", () => {
  const line = `${JSON.stringify({ text: "é".repeat(1000) })}\r\n\n`;
  const bytes = new TextEncoder().encode(line.repeat(3));
  assert.equal(parseJsonl(bytes, "d"), parseJsonl(line.repeat(3), "d"));
  const long = new Uint8Array(bytes.length + 2 ** 26 + 1);
  long.set(bytes);
  const e = caught(() => parseJsonl(long, "d"));
  assert.equal([e.code, e.where, e.found], ["WEFT_DATA", "d, line 7", "67.2 MB"]);
  assert.is(caught(() => parseJsonl(new TextEncoder().encode("{}\n{"), "d")).where, "d, line 2");
});
test("a row that is none is told by its line, with what was taken for a file of rows", async () => {
  const file = `${scratch()}/rows.jsonl`;
  const told = async (content: string): Promise<string> => {
    writeFileSync(file, content);
    const e = (await rowsOf(file, "data", { text: null }, []).catch((x: unknown) => x)) as WeftError;
    assert.instance(e, Error);
    return e.message.replace(`${file}, `, "");
  };
  assert.match(await told('{"input_ids":[1]}\n\n{"promt":"a"}\n'), /line 3: expected rows of/);
  assert.match(await told('[\n{"input_ids":[1]}\n]'), /line 1: .*\(a row a line, with no list around them\)/);
  assert.match(await told('[{"input_ids":[1]}]'), /line 1: .*\(a row a line, with no list around them\)/);
  assert.match(await told("<!doctype html>"), /line 1: .*\(the server sent a page: is the address right\?\)/);
  assert.match(await told('{"input_ids":[1]'), /line 1: expected a JSON object, found \{.*\(.*position 16\)/);
  assert.match(await told("\n\n"), /expected at least one row, found none/);
});
test.run();
