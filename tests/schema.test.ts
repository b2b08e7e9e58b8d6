/** What is described once: schemas, the one error they give, and errors that travel. */
import { MessageChannel, Worker } from "node:worker_threads";
import * as assert from "uvu/assert";
import * as v from "valibot";
import { WeftError } from "../runtime/errors.ts";
import * as s from "../runtime/schema.ts";
import { suite } from "./support/suite.ts";

const test = suite("schemas");
const refused = (f: () => unknown): WeftError => {
  try {
    f();
  } catch (e) {
    assert.instance(e, WeftError, String(e));
    return e as WeftError;
  }
  return assert.unreachable("nothing was refused") as never;
};
const error = (): WeftError =>
  new WeftError({
    code: "WEFT_DATA",
    where: "rows.jsonl, line 3",
    expected: "a row",
    found: "3",
    hint: "look",
    retryable: true,
    cause: new TypeError("inner"),
  });
const sameFields = (e: WeftError | null): void => {
  assert.instance(e, WeftError);
  assert.equal(e!.toJSON(), error().toJSON());
  assert.is(e!.message, error().message);
  assert.is(e!.name, "WeftError");
};

test("errors survive structuredClone, message ports, workers and JSON", async () => {
  sameFields(WeftError.from(error()));
  const clone = structuredClone(error());
  assert.not.instance(clone, WeftError);
  sameFields(WeftError.from(clone));
  assert.is((WeftError.from(clone)!.cause.cause as Error).message, "inner");
  assert.is(WeftError.from(clone)!.stack, clone.stack);
  // Fields can be read off a clone without this class, too.
  assert.is((clone.cause as { code: string }).code, "WEFT_DATA");
  const { port1, port2 } = new MessageChannel();
  const got = new Promise((resolve) => port2.once("message", resolve));
  port1.postMessage({ error: error() });
  sameFields(WeftError.from(((await got) as { error: unknown }).error));
  port1.close();
  const worker = new Worker("require('worker_threads').parentPort.once('message', (e) => { throw e })", {
    eval: true,
  });
  const thrown = new Promise((resolve) => worker.once("error", resolve));
  worker.postMessage(error());
  sameFields(WeftError.from(await thrown));
  sameFields(WeftError.from(JSON.parse(JSON.stringify(error()))));
});
test("an error whose cause cannot be cloned travels without it, and has it here", () => {
  for (const cause of [() => 1, Symbol("x"), { f: () => 1 }, new Error("outer", { cause: () => 1 })]) {
    const e = new WeftError({ code: "WEFT_IO", where: "a", expected: "b", found: "c", cause });
    assert.is(e.cause.cause, cause);
    assert.is(WeftError.from(structuredClone(e))!.code, "WEFT_IO");
  }
  const e = new WeftError({ code: "WEFT_IO", where: "a", expected: "b", found: "c", cause: error() });
  assert.is(e.cause.cause, e.cause.cause);
  sameFields(WeftError.from(WeftError.from(structuredClone(e))!.cause.cause));
});
test("what is no error of ours stays what it is", () => {
  for (const x of [null, undefined, 3, "WEFT_IO", new Error("x"), {}, [], { code: "WEFT_IO" }])
    assert.is(WeftError.from(x), null);
  const fields = error().toJSON();
  for (const [key, value] of [
    ["code", "WEFT_NEW"],
    ["where", 3],
    ["found", null],
    ["hint", {}],
    ["retryable", "yes"],
  ] as const)
    assert.is(WeftError.from({ ...fields, [key]: value }), null, key);
});

const Inner = s.object({ size: s.positive, kind: s.oneOf(["adamw", "sgd"]) });
const Outer = s.object({
  learningRate: v.optional(s.above0),
  list: v.optional(v.array(Inner)),
  ids: v.optional(s.tokenIds),
  by: v.optional(s.record(s.finite)),
});
const at = { code: "WEFT_OPTION", where: "" } as const;
test("one error: path, words, what was found, the nearest known key or word", () => {
  const cases: [unknown, Partial<Record<"where" | "expected" | "found" | "hint", RegExp>>][] = [
    [{ learning_rate: 1 }, { where: /^learning_rate$/, hint: /did you mean "learningRate"/ }],
    [{ lerningRate: 1 }, { hint: /learningRate/ }],
    [{ wholly: 1 }, { expected: /one of the keys learningRate, list, ids or by/ }],
    [{ list: [{ size: 1, kind: "adam" }] }, { where: /^list\[0\]\.kind$/, hint: /"adamw"/ }],
    [{ list: [{ size: 1 }] }, { where: /^list\[0\]\.kind$/, expected: /the key "kind"/, found: /^nothing$/ }],
    [
      { list: [{ size: 0.5, kind: "sgd" }] },
      { where: /size/, expected: /a positive integer/, found: /0\.5/ },
    ],
    [{ list: {} }, { expected: /an array/, found: /\{\}/ }],
    [{ ids: [1, 2, -3] }, { where: /^ids\[2\]$/, expected: /token id/, found: /-3/ }],
    [{ ids: "abc" }, { where: /^ids$/, found: /"abc"/ }],
    [{ by: { "a b": Number.NaN } }, { where: /by\["a b"\]/, found: /NaN/ }],
    [JSON.parse('{"by":{"__proto__":1}}'), { where: /by/, expected: /keys of JavaScript/ }],
    [[], { where: /^options$/, expected: /an object/, found: /\[\]/ }],
    [null, { expected: /an object/, found: /null/ }],
    [{ learningRate: "x".repeat(1e6) }, { found: /^.{60,70}$/ }],
  ];
  for (const [value, says] of cases) {
    const e = refused(() => s.check(Outer, value, at));
    for (const [key, pattern] of Object.entries(says))
      assert.match(String(e[key as "where"]), pattern, `${s.show(value)}: ${key}`);
  }
  const e = refused(() =>
    s.check(Outer, { x: 1 }, { code: "WEFT_CONFIG", where: "a/config.json", hint: "see" }),
  );
  assert.is(e.code, "WEFT_CONFIG");
  assert.is(e.where, "a/config.json: x");
  assert.is(e.hint, "see");
});
test("what fits passes as it is; what others say beside it, too", () => {
  const value = { learningRate: 1e-3, list: [{ size: 2, kind: "sgd" }], ids: [1, 2], by: { a: 1 } };
  assert.equal(s.check(Outer, value, at), value);
  assert.equal(s.check(Outer, { learningRate: undefined }, at), { learningRate: undefined });
  assert.equal(s.check(s.foreign({ size: s.positive }), { size: 1, more: [2] }, at), { size: 1, more: [2] });
  refused(() => s.check(s.foreign({ size: s.positive }), { size: "1" }, at));
});
test("values are shown in few characters, whatever their size", () => {
  const wide = Object.fromEntries(Array.from({ length: 1e4 }, (_, i) => [`key${i}`.repeat(50), i]));
  let deep: unknown = 1;
  for (let i = 0; i < 1e4; i++) deep = i % 2 ? [deep] : { a: deep };
  for (const x of [
    wide,
    deep,
    "y".repeat(1e6),
    Array(1e6).fill("z".repeat(100)),
    2n ** 4000n,
    new Uint8Array(9),
  ])
    assert.ok(s.show(x).length < 150, s.show(x));
});
test("names of files stay inside their folder", () => {
  for (const name of ["a", "weights/model-00000.safetensors", "kernels/x.wgsl"]) assert.ok(s.isInside(name));
  for (const name of [
    "",
    "/a",
    "a//b",
    "../a",
    "a/..",
    "a\\b",
    "c:x",
    "http://x",
    "a\0",
    ".",
    "x".repeat(2000),
  ])
    assert.not(s.isInside(name), name);
});
test.run();
