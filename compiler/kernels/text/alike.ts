/**
 * WGSL texts that are one but for whole numbers. A launch has a body for each matrix, an optimizer one for
 * each tensor: as one function of the numbers that differ they are compiled once, and drivers take more than
 * twice the time for twice the text.
 */
import { FIRST_BODY } from "../../../runtime/bundle.ts";
import { type Lines, lines } from "./lines.ts";

/** A whole number, i32 or u32: no part of a name, of a float or of a type. */
const NUMBER = /(?<![\w.])(\d+)(u?)(?![\w.>])/g;
/** A text without its numbers: texts of the same shape differ in numbers only. */
const shapeOf = (text: string): string => text.replace(NUMBER, "#$2");
const numbersOf = (text: string, number: RegExp): string[] =>
  [...text.matchAll(number)].flatMap(([, n]) => (n === undefined ? [] : [n]));

/** One text for several: names `prefix0` … where they differ, and what these are in each. */
interface Alike {
  readonly text: string;
  readonly names: readonly string[];
  /** By text: a number a name. */
  readonly values: readonly (readonly string[])[];
}
/**
 * Of texts of one shape; `number` finds what may differ in its first group, an `u` in
 * the second.
 */
export function alike(texts: readonly string[], nameOf: (i: number) => string, number = NUMBER): Alike {
  const numbers = texts.map((t) => numbersOf(t, number));
  // Places whose numbers are the same in every text share a name.
  const names = new Map<string, string>();
  const columns: string[][] = [];
  let at = 0;
  const text = texts[0]!.replace(number, (found: string, n: string | undefined, unsigned: string) => {
    if (n === undefined) return found;
    const place = at++;
    const column = numbers.map((list) => list[place]!);
    if (column.every((n) => n === column[0])) return found;
    const key = column.join();
    const name = names.get(key) ?? nameOf(names.size);
    if (!names.has(key)) columns.push(column);
    names.set(key, name);
    return unsigned ? `u32(${name})` : name;
  });
  return { text, names: [...names.values()], values: texts.map((_, i) => columns.map((c) => c[i]!)) };
}
/** The numbers of the `cases` of a selector, as variables. */
const chosen = (
  names: readonly string[],
  selector: string,
  cases: readonly (readonly [which: number, values: readonly string[]])[],
): Lines => {
  const [first, ...others] = cases;
  const set = (values: readonly string[]): string => names.map((n, i) => `${n} = ${values[i]};`).join(" ");
  return lines`
    ${names.map((name, i) => `var ${name} = ${first![1][i]};`)}
    switch ${selector} {
      ${others.map(([which, values]) => `case ${which}: { ${set(values)} }`)}
      default: {}
    }`;
};

/**
 * Statements in turn: a loop, where they are one text but for numbers. With `model`, a block whose numbers
 * are all others, up to `upTo` of them are one text however many there are and whichever numbers meet in
 * them.
 */
export function inTurn(
  blocks: readonly Lines[],
  prefix: string,
  like?: { readonly model: Lines; readonly upTo: number },
): Lines {
  if (blocks.length < 2 && !like) return blocks.flat();
  const texts = [...blocks, ...(like ? [like.model] : [])].map((b) => b.join("\n"));
  if (new Set(texts.map(shapeOf)).size > 1)
    return blocks.flatMap((b) => ["{", ...b.map((l) => `  ${l}`), "}"]);
  const { text, names, values } = alike(texts, (i) => `${prefix}_${i}`);
  const n = blocks.length;
  const cases = Array.from({ length: Math.max(n, like?.upTo ?? 0) }, (_, i) => values[Math.min(i, n - 1)]!);
  // A variable is a number that may be another elsewhere.
  return lines`
    ${like ? [`let ${prefix}_n = ${n};`] : []}
    for (var ${prefix} = 0; ${prefix} < ${like ? `${prefix}_n` : n}; ${prefix}++) {
      ${chosen(names, prefix, [...cases.entries()])}
      ${text.split("\n")}
    }`;
}

export interface Fn {
  readonly name: string;
  readonly params: string;
  readonly body: string;
}
const FUNCTION = /^fn (\w+)\((.*)\) (\{[\s\S]*?^\})/gm;
export const functionsOf = (text: string): readonly Fn[] =>
  [...text.matchAll(FUNCTION)].map(([, name, params, body]) => ({
    name: name!,
    params: params!,
    body: body!,
  }));

/** Entries of a launch, those that are alike beside each other. */
export function sorted(text: string, entries: readonly string[]): string[] {
  const all = functionsOf(text);
  const groups = new Map<string, string[]>();
  for (const entry of entries) {
    const own = all.filter(({ name }) => name === entry || name.startsWith(`${entry}_`));
    const named = own.map((f) => `${f.name} ${f.body}`.replaceAll(entry, "entry"));
    const shape = shapeOf(named.join("\n"));
    groups.set(shape, [...(groups.get(shape) ?? []), entry]);
  }
  return [...groups.values()].flat();
}
/** How often the same comes in turn. */
export function runsOf(all: readonly string[]): number[] {
  const runs: number[] = [];
  all.forEach((x, i) => {
    if (i && x === all[i - 1]) runs[runs.length - 1]!++;
    else runs.push(1);
  });
  return runs;
}
/** Of a body by its number, which text it goes through: as the pipeline knows it, where it is of one text. */
export const chosenBy = (z: string): string => `select(${z}, ${FIRST_BODY}, ${FIRST_BODY} >= 0)`;

/**
 * The functions of a launch, those that are alike as one; the statements that call the one of `entries` that
 * wg.z names; and how many of these in turn go through one text.
 */
export function merged(
  text: string,
  entries: readonly string[],
): { functions: string; select: Lines; runs: readonly number[] } {
  /** What is called in place of a function, with which numbers before its own arguments. */
  const called = new Map<string, { readonly name: string; readonly numbers: readonly string[] }>();
  const calls = (body: string): string =>
    body.replace(/\b(\w+)\(/g, (call, name: string) => {
      const to = called.get(name);
      return to ? `${to.name}(${to.numbers.map((n) => `${n}, `).join("")}` : call;
    });
  const out: string[] = [];
  let waiting = functionsOf(text);
  while (waiting.length) {
    // Those that are called before those that call.
    const ready = waiting.filter(({ body }) => !waiting.some((f) => body.includes(`${f.name}(`)));
    waiting = waiting.filter((f) => !ready.includes(f));
    const groups = new Map<string, Fn[]>();
    for (const f of ready) {
      const body = calls(f.body);
      const shape = shapeOf(`${f.params} ${body}`);
      groups.set(shape, [...(groups.get(shape) ?? []), { ...f, body }]);
    }
    for (const group of groups.values()) {
      const { name, params } = group[0]!;
      const one = alike(
        group.map((f) => f.body),
        (i) => `p_${i}`,
      );
      const numbers = one.names.map((n) => `${n}: i32, `).join("");
      out.push(`fn ${name}(${numbers}${params}) ${one.text}`);
      group.forEach((f, i) => void called.set(f.name, { name, numbers: one.values[i]! }));
    }
  }
  const byFunction = new Map<string, [z: number, numbers: readonly string[]][]>();
  for (const [z, entry] of entries.entries()) {
    const { name, numbers } = called.get(entry)!;
    byFunction.set(name, [...(byFunction.get(name) ?? []), [z, numbers]]);
  }
  const cases = [...byFunction].map(([name, cases]): [string, Lines] => {
    const names = cases[0]![1].map((_, i) => `p_${i}`);
    const call = `${name}(${[...names, "wg", "lane"].join(", ")});`;
    return [
      cases.map(([z]) => z).join(", "),
      cases.length > 1 ? [...chosen(names, "wg.z", cases), call] : [`${name}(wg, lane);`],
    ];
  });
  const select =
    cases.length === 1
      ? cases[0]![1]
      : lines`
        switch ${chosenBy("wg.z")} {
          ${cases.flatMap(([zs, body]) => [`case ${zs}: {`, ...body.map((l) => `  ${l}`), "}"])}
          default: {}
        }`;
  return { functions: out.join("\n"), select, runs: runsOf(entries.map((e) => called.get(e)!.name)) };
}
