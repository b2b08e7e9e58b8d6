/** Mutations of inputs, from a seed: of structured values, and of bytes. */
import { generator } from "./random.ts";

/** An integer below n. */
export type Random = (n: number) => number;
export const randomOf = (seed: string): Random => {
  const next = generator(seed);
  return (n) => next() % n;
};
const pick = <T>(r: Random, list: readonly T[]): T => list[r(list.length)]!;

const numbers = [
  0,
  -0,
  1,
  -1,
  2,
  3,
  7,
  0.5,
  1.5,
  -0.5,
  31,
  32,
  33,
  64,
  255,
  256,
  1e3,
  65535,
  65536,
  1e6,
  2 ** 29,
  2 ** 30,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 53 - 1,
  2 ** 53,
  1e16,
  1e38,
  1e300,
  1.7976931348623157e308,
  5e-324,
  1e-9,
  -(2 ** 31),
  -1e300,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
];
const texts = [
  "",
  " ",
  "a",
  "0",
  "-1",
  "1e999",
  "null",
  "NaN",
  "all",
  "lora",
  "full",
  "base",
  "@",
  "a@1",
  "../x",
  "/etc",
  "\0",
  "\u2028",
  "\ud800",
  "constructor",
  "__proto__",
  "toString",
  "{l}",
  "x".repeat(300),
  "(a+)+$",
  "(",
  "\\1",
  "[",
  "a|*",
  "(?=a)",
  ".*.*.*.*.*.*x",
  "é",
  "日本",
  "🦊",
];
const others: readonly unknown[] = [
  null,
  true,
  false,
  [],
  {},
  [[]],
  [null],
  [1, 2, 3],
  ["a"],
  { a: 1 },
  { length: 3 },
  [{}],
  Array(200).fill(0),
];
/** Something else than was there. */
export const junk = (r: Random): unknown => copy(pick<unknown>(r, pick(r, [numbers, texts, others])));
type Json = Record<string, unknown> | unknown[];
const isJson = (x: unknown): x is Json =>
  typeof x === "object" && x !== null && (Array.isArray(x) || Object.getPrototypeOf(x) === Object.prototype);
/** A copy of what JSON can say; the rest by reference. */
export const copy = <T>(x: T): T =>
  (Array.isArray(x)
    ? x.map(copy)
    : isJson(x)
      ? Object.fromEntries(Object.entries(x).map(([k, v]) => [k, copy(v)]))
      : x) as T;
/** A place in a value, found by walking down at random: deep parts are met as often as broad ones. */
function place(root: Json, r: Random): { parent: Json; key: string } | null {
  let parent = root;
  for (let depth = 0; depth < 30; depth++) {
    const keys = Object.keys(parent);
    if (!keys.length) return null;
    const key = pick(r, keys);
    const value = (parent as Record<string, unknown>)[key];
    if (!isJson(value) || r(4) === 0) return { parent, key };
    parent = value;
  }
  return null;
}
const set = (o: Json, key: string, value: unknown): void => {
  Object.defineProperty(o, key, { value, enumerable: true, writable: true, configurable: true });
};
/**
 * One to three changes at random places: delete, retype, extreme numbers, duplicate, swap, rename, truncate.
 */
export function mutate<T>(value: T, r: Random): T {
  const root = { value: copy(value) };
  for (let n = 1 + r(3); n > 0; n--) {
    const at = place(root, r);
    if (!at || at.parent === root) {
      if (r(30) === 0) root.value = junk(r) as T;
      continue;
    }
    const { parent, key } = at;
    const old = (parent as Record<string, unknown>)[key];
    const other = place(root, r);
    const changes: (() => void)[] = [
      () => void (Array.isArray(parent) ? parent.splice(Number(key), 1) : delete parent[key]),
      () => set(parent, key, junk(r)),
      () => set(parent, key, junk(r)),
      () =>
        set(
          parent,
          key,
          typeof old === "number" ? pick(r, [old + 1, old - 1, old * 2, -old, old / 2]) : junk(r),
        ),
      () => set(parent, key, typeof old === "number" ? pick(r, numbers) : junk(r)),
      () => set(parent, key, typeof old === "string" ? old.slice(0, r(old.length + 1)) : [old]),
      () => set(parent, key, typeof old === "string" ? `${old}${pick(r, texts)}` : { [key]: old }),
      () =>
        void (Array.isArray(parent) ? parent.push(copy(old)) : set(parent, `${key}${r(3) || ""}`, copy(old))),
      () => {
        if (!other || other.parent === root) return;
        set(parent, key, copy((other.parent as Record<string, unknown>)[other.key]));
      },
      () => {
        if (!Array.isArray(parent)) delete parent[key];
        set(parent, Array.isArray(parent) ? String(parent.length) : pick(r, texts), old);
      },
      () => void (Array.isArray(parent) && (parent.length = r(parent.length + 1))),
    ];
    pick(r, changes)();
  }
  return root.value;
}
/** One to four changes of bytes: flipped bits, cut, doubled, filled, and words of extreme size. */
export function mutateBytes(bytes: Uint8Array, r: Random, near = bytes.length): Uint8Array {
  let out = Uint8Array.from(bytes);
  for (let n = 1 + r(4); n > 0; n--) {
    const at = r(Math.max(1, Math.min(near, out.length)));
    const change = r(7);
    if (change < 3 && out.length) out[at] = out[at]! ^ (1 << r(8));
    else if (change === 3 && out.length)
      out[at] = pick(r, [0, 1, 127, 128, 255, 34, 44, 58, 91, 93, 123, 125]);
    else if (change === 4) out = out.slice(0, r(out.length + 1));
    else if (change === 5)
      out = Uint8Array.from([...out.subarray(0, at), ...out.subarray(Math.max(0, at - r(16)))]);
    else out.fill(pick(r, [0, 255, 127, 49]), at, at + pick(r, [2, 4, 8, 16]));
  }
  return out;
}
