/**
 * Options and foreign files are described once, as valibot schemas; types are derived from them. `check`
 * turns what does not fit into one WeftError. A schema's message is what was expected, in words.
 */
import * as v from "valibot";
import { type ErrorCode, WeftError } from "./errors.ts";

export interface At {
  readonly code: ErrorCode;
  /** The file, or what the options are for; the path of the wrong value follows. Empty: the path alone. */
  readonly where: string;
  readonly hint?: string | undefined;
}

/**
 * `value` as its schema has it. Throws one WeftError that names the path, and for an unknown key or word the
 * nearest known one.
 */
export function check<const S extends v.GenericSchema>(schema: S, value: unknown, at: At): v.InferOutput<S> {
  const result = v.safeParse(schema, value, { abortEarly: true, message: inWords });
  if (result.success) return result.output;
  const issue = result.issues[0];
  const [expected, near] = issue.message.split(HINT) as [string, string?];
  const path = pathOf(issue.path ?? []);
  const missing = issue.path?.at(-1)?.origin === "key" && issue.input === undefined;
  const hint = [near, at.hint].filter(Boolean).join("; ");
  throw new WeftError({
    code: at.code,
    where: at.where && path ? `${at.where}: ${path}` : at.where || path || "options",
    expected,
    found: missing ? "nothing" : show(issue.input),
    ...(hint && { hint }),
  });
}

/** Between what was expected and a hint, in a message. */
const HINT = "\u001f";
const withHint = (expected: string, hint: string | null): string =>
  hint ? `${expected}${HINT}${hint}` : expected;
/** What valibot's own schemas expect, in words. */
function inWords({ expected }: { expected: string | null }): string {
  const words: Readonly<Record<string, string>> = {
    string: "a string",
    Object: "an object",
    Array: "an array",
    undefined: "nothing",
  };
  return (expected && words[expected]) ?? expected ?? "another value";
}
function pathOf(path: readonly { readonly type: string; readonly key?: unknown }[]): string {
  let out = "";
  for (const { type, key } of path) {
    if (type === "array" || type === "tuple") out += `[${String(key)}]`;
    else if (typeof key === "string" && /^[\w.-]{1,60}$/.test(key)) out += out ? `.${key}` : key;
    else out += `[${show(key)}]`;
  }
  return out;
}

/** A value in at most about 60 characters, whatever its size. */
export function show(value: unknown, room = 60): string {
  if (typeof value === "string")
    return value.length > room ? `${JSON.stringify(value.slice(0, room))}…` : JSON.stringify(value);
  if (typeof value === "bigint") return `${shorten(String(value), room)}n`;
  if (typeof value === "function") return "a function";
  if (typeof value !== "object" || value === null) return String(value);
  if (ArrayBuffer.isView(value)) return `${value.constructor.name} of ${value.byteLength} bytes`;
  if (room < 4) return "…";
  let out = "";
  if (Array.isArray(value)) {
    for (const [i, x] of value.slice(0, 8).entries()) {
      if (out.length > room / 2) return `[${out}, … ${value.length - i} more]`;
      out += `${i ? ", " : ""}${show(x, room / 2)}`;
    }
    return `[${out}${value.length > 8 ? `, … ${value.length - 8} more` : ""}]`;
  }
  for (const key in value) {
    if (out.length > room / 2) return `{${out}, …}`;
    const inner = show((value as Record<string, unknown>)[key], room / 4);
    out += `${out && ", "}${shorten(key, room / 2)}: ${inner}`;
  }
  return `{${out}}`;
}
const shorten = (s: string, room: number): string => (s.length > room ? `${s.slice(0, room)}…` : s);

/** First letters of a word's parts: lr of learningRate and of --learning-rate. */
const initials = (s: string): string =>
  s
    .split(/[\s_-]+|(?=[A-Z])/)
    .map((part) => part.charAt(0))
    .join("")
    .toLowerCase();
/**
 * The known word nearest to a wrong one by edits, case and separators aside, or of which it is the initials;
 * null where none is near.
 */
export function nearest(wrong: unknown, known: readonly string[]): string | null {
  if (typeof wrong !== "string" || wrong.length > 64) return null;
  const plain = (s: string): string => s.toLowerCase().replaceAll(/[\s_-]/g, "");
  const a = plain(wrong);
  const short = a.length > 1 && known.find((word) => initials(word) === a);
  if (short) return short;
  let best: string | null = null;
  let least = Math.max(1, Math.floor(a.length / 3)) + 1;
  for (const word of known) {
    const d = edits(a, plain(word));
    if (d < least) [best, least] = [word, d];
  }
  return best;
}
/** Insertions, deletions, substitutions, swaps of neighbours from `a` to `b` (optimal string alignment). */
function edits(a: string, b: string): number {
  let [last, row] = [[] as number[], Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        next[j] = Math.min(next[j]!, last[j - 2]! + 1);
    }
    [last, row] = [row, next];
  }
  return row[b.length]!;
}
/** A hint, where a known word is near. */
export const didYouMean = (wrong: unknown, known: readonly string[]): string | null => {
  const near = nearest(wrong, known);
  return near && `did you mean ${JSON.stringify(near)}?`;
};

const isObject = (x: unknown): x is object => typeof x === "object" && x !== null && !Array.isArray(x);
const any = v.custom<object>(isObject, "an object");
/** Words of a list, as one says them. */
const listed = (words: readonly string[]): string =>
  words.length > 1 ? `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : words.join("");

/** An object of ours: it has these keys and no others. */
export const object = <const E extends v.ObjectEntries>(entries: E) =>
  v.pipe(
    any,
    v.strictObject(entries, ({ expected, input }) => {
      const known = Object.keys(entries);
      if (expected !== "never") return `the key ${expected}`;
      return withHint(`one of the keys ${shorten(listed(known), 400)}`, didYouMean(input, known));
    }),
  );
/** An object of others: what we know of it is checked, the rest passes as it is. */
export const foreign = <const E extends v.ObjectEntries>(entries: E) =>
  v.pipe(
    any,
    v.looseObject(entries, ({ expected }) => `the key ${expected}`),
  );
/** Values by name. */
export const record = <const S extends v.GenericSchema>(
  value: S,
  key: v.GenericSchema<string> = v.string(),
) =>
  v.pipe(
    v.custom<object>(
      (x) => isObject(x) && !["__proto__", "prototype", "constructor"].some((k) => Object.hasOwn(x, k)),
      "an object, without keys of JavaScript's own",
    ),
    v.record(key, value),
  );
/** One of some words. */
export const oneOf = <const W extends readonly string[]>(words: W) =>
  v.picklist(words, ({ input }) => withHint(listed(words), didYouMean(input, words)));

/** A number that `ok` accepts; `expected` says which. */
export const number = (expected: string, ok: (x: number) => boolean) =>
  v.custom<number>((x) => typeof x === "number" && ok(x), expected);
const LIMIT = 2 ** 31;
/** An integer from `least` up to, not including, `limit`. */
export const integer = (least: number, limit = LIMIT) =>
  number(
    limit < LIMIT
      ? `an integer from ${least} to ${limit - 1}`
      : least === 1
        ? "a positive integer below 2^31"
        : `an integer from ${least} up, below 2^31`,
    (x) => Number.isInteger(x) && x >= least && x < limit,
  );
/** An integer from 1 up; `count` from 0 up, below 2^31 as indices of the device are. */
export const positive = integer(1);
export const count = integer(0);
/** What may lie in memory at once of a file whose size nothing declares: JSON, mostly. */
export const SMALL_FILE = 64 * 2 ** 20;
/** Bytes of a file or place in one, or of memory. */
export const bytes = number("a number of bytes", (x) => Number.isSafeInteger(x) && x >= 0);
export const finite = number("a finite number", Number.isFinite);
export const atLeast0 = number("a finite number from 0 up", (x) => x >= 0 && x < Number.POSITIVE_INFINITY);
export const above0 = number("a finite number above 0", (x) => x > 0 && x < Number.POSITIVE_INFINITY);
export const text = v.string();
export const boolean = v.custom<boolean>((x) => typeof x === "boolean", "true or false");
/** This value and no other. */
export const exactly = <const T extends string | number | boolean>(value: T) =>
  v.custom<T>((x) => x === value, JSON.stringify(value));
/** Perhaps null, or not there at all: both say nothing. */
export const maybe = <const S extends v.GenericSchema>(schema: S) => v.optional(v.nullable(schema));
/** So many of one kind. */
const several = (item: v.GenericSchema, length: number, expected: string) =>
  v.pipe(
    v.array(item, expected),
    v.check((l) => l.length === length, expected),
  );
type Item<S extends v.GenericSchema> = v.InferOutput<S>;
export const pair = <const S extends v.GenericSchema>(item: S, expected: string) =>
  several(item, 2, expected) as unknown as v.GenericSchema<unknown, [Item<S>, Item<S>]>;
export const triple = <const S extends v.GenericSchema>(item: S, expected: string) =>
  several(item, 3, expected) as unknown as v.GenericSchema<unknown, [Item<S>, Item<S>, Item<S>]>;
/** A text of this pattern. */
export const matching = (pattern: RegExp, expected: string) =>
  v.custom<string>((x) => typeof x === "string" && pattern.test(x), expected);
export const sha256Hex = matching(/^[0-9a-f]{64}$/, "a SHA-256, 64 hexadecimal digits");
/** A relative path that stays inside its folder. */
export const isInside = (name: string): boolean =>
  name.length < 1024 &&
  !name.includes("\\") &&
  !name.includes("\0") &&
  !/^[a-z]+:/i.test(name) &&
  name.split("/").every((p) => p !== "" && p !== "." && p !== "..");
export const fileName = v.custom<string>(
  (x) => typeof x === "string" && isInside(x),
  "a path inside the folder",
);
/** A name of an adapter or job: letters, digits, dots, dashes, underscores. */
export const plainName = matching(/^[\w.-]{1,200}$/, "letters, digits, dots, dashes or underscores");
/** The name of an adapter, which is told from the model without one: that is `base`. */
export const adapterName = v.pipe(
  plainName,
  v.check((x) => x !== "base", "another name: base is the model without adapters"),
);
/** Token ids, or other numbers; checked in one loop, for there may be many. */
export const numbers = (expected: string, ok: (x: number) => boolean) =>
  v.pipe(
    v.custom<readonly number[]>(Array.isArray, "an array of numbers"),
    v.rawCheck(({ dataset, addIssue }) => {
      if (!dataset.typed) return;
      const list: readonly unknown[] = dataset.value;
      const key = list.findIndex((x) => !(typeof x === "number" && ok(x)));
      if (key >= 0)
        addIssue({
          input: list[key],
          message: expected,
          path: [{ type: "array", origin: "value", input: dataset.value as number[], key, value: list[key] }],
        });
    }),
  );
export const tokenId = integer(0);
export const tokenIds = numbers("a token id", (x) => Number.isInteger(x) && x >= 0 && x < LIMIT);
// biome-ignore lint/complexity/noBannedTypes: any function; its parameters are the type's to say
export const callback = <F extends Function>() => v.custom<F>((x) => typeof x === "function", "a function");
export const signal = v.custom<AbortSignal>(
  (x) => isObject(x) && "aborted" in x && "addEventListener" in x,
  "an AbortSignal",
);

/** A schema's type, which nobody changes. */
export type Of<S extends v.GenericSchema> = Frozen<v.InferOutput<S>>;
// biome-ignore lint/complexity/noBannedTypes: functions stay as they are
export type Frozen<T> = T extends Function | AbortSignal | URL | Float32Array | Map<unknown, unknown>
  ? T
  : T extends object
    ? { readonly [K in keyof T]: Frozen<T[K]> }
    : T;
