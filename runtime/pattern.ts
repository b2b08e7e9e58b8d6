/**
 * Regular expressions of strangers' files (PEFT's target_modules, exclude_modules, rank_pattern,
 * alpha_pattern), as Python's re.fullmatch reads them, in time linear in the text: the states of an automaton
 * step together, so no pattern backtracks (Thompson 1968). Literals, `.`, escapes, classes, groups,
 * alternatives, repetition and anchors; whatever needs more (backreferences, lookaround, flags) is refused by
 * name.
 */
import { type ErrorCode, WeftError } from "./errors.ts";
import { show } from "./schema.ts";

/** Steps that the patterns of one configuration may take together. */
const MOST_STEPS = 20_000_000;
const MOST_STATES = 4000;
const MOST_CHARACTERS = 20_000;

type Accepts = (code: number) => boolean;
/** Places between characters: the ends of the text, and of words. */
type Edge = "start" | "end" | "word" | "inside";
type Node =
  | { readonly is: "set"; readonly accepts: Accepts }
  | { readonly is: "edge"; readonly at: Edge }
  | { readonly is: "all"; readonly of: readonly Node[] }
  | { readonly is: "any"; readonly of: readonly Node[] }
  | { readonly is: "repeat"; readonly of: Node; readonly least: number; readonly most: number };
/** A state: it takes a character, looks at a place, or goes on as others; the last one is the end. */
interface State {
  accepts: Accepts | null;
  edge: Edge | null;
  next: readonly number[];
}
/** Steps left to all patterns that share it. */
export interface Steps {
  left: number;
}
export const steps = (): Steps => ({ left: MOST_STEPS });

const code = (c: string): number => c.codePointAt(0)!;
const between = (a: string, b: string): Accepts => {
  const [from, to] = [code(a), code(b)];
  return (c) => c >= from && c <= to;
};
const either =
  (...sets: readonly Accepts[]): Accepts =>
  (c) =>
    sets.some((s) => s(c));
const not =
  (set: Accepts): Accepts =>
  (c) =>
    !set(c);
const only = (c: string): Accepts => {
  const it = code(c);
  return (x) => x === it;
};
const digit = between("0", "9");
const letter = either(digit, between("a", "z"), between("A", "Z"), only("_"));
const space = either(only(" "), between("\t", "\r"));
const newline = only("\n");
const sets: Readonly<Record<string, Accepts>> = {
  d: digit,
  D: not(digit),
  w: letter,
  W: not(letter),
  s: space,
  S: not(space),
  n: newline,
  t: only("\t"),
  r: only("\r"),
  f: only("\f"),
  v: only("\v"),
};

class Parser {
  private at = 0;
  private depth = 0;
  private readonly chars: readonly string[];
  constructor(
    source: string,
    private readonly refuse: (what: string) => never,
  ) {
    this.chars = [...source];
  }
  whole(): Node {
    const node = this.choice();
    if (this.at < this.chars.length) this.refuse("an unopened )");
    return node;
  }
  private peek(text: string): boolean {
    return [...text].every((c, i) => this.chars[this.at + i] === c);
  }
  private take(text: string): boolean {
    if (!this.peek(text)) return false;
    this.at += text.length;
    return true;
  }
  private choice(): Node {
    const of = [this.sequence()];
    while (this.take("|")) of.push(this.sequence());
    return of.length > 1 ? { is: "any", of } : of[0]!;
  }
  private sequence(): Node {
    const of: Node[] = [];
    while (this.at < this.chars.length && !this.peek("|") && !this.peek(")")) of.push(this.repeated());
    return { is: "all", of };
  }
  private repeated(): Node {
    const of = this.atom();
    const range = this.range();
    if (!range) return of;
    if (of.is === "edge") this.refuse("a repeated anchor");
    // Lazy or greedy, the same texts match.
    this.take("?");
    if (this.peek("+")) this.refuse("a possessive repetition");
    if (this.peek("*") || this.range()) this.refuse("a repetition of a repetition");
    return { is: "repeat", of, ...range };
  }
  private range(): { least: number; most: number } | null {
    const many = Number.POSITIVE_INFINITY;
    if (this.take("*")) return { least: 0, most: many };
    if (this.take("+")) return { least: 1, most: many };
    if (this.take("?")) return { least: 0, most: 1 };
    if (!this.peek("{")) return null;
    const end = this.chars.indexOf("}", this.at);
    const inner = end < 0 || end - this.at > 20 ? "" : this.chars.slice(this.at + 1, end).join("");
    const [, least, comma, most] = /^(\d*)(,?)(\d*)$/.exec(inner) ?? [];
    // Other braces are characters.
    if (least === undefined || !(least || comma)) return null;
    this.at = end + 1;
    const range = { least: Number(least), most: comma ? (most ? Number(most) : many) : Number(least) };
    if (range.least > range.most) this.refuse("a repetition from more to less");
    if (range.least > 1000 || (range.most > 1000 && range.most !== many)) this.refuse("more than 1000 times");
    return range;
  }
  private atom(): Node {
    const c = this.chars[this.at++]!;
    if (c === "(") return this.group();
    if (c === "[") return { is: "set", accepts: this.class() };
    if (c === ".") return { is: "set", accepts: not(newline) };
    if (c === "^") return { is: "edge", at: "start" };
    if (c === "$") return { is: "edge", at: "end" };
    if ("*+?".includes(c)) this.refuse("nothing to repeat");
    if (c !== "\\") return { is: "set", accepts: only(c) };
    if (this.take("A")) return { is: "edge", at: "start" };
    if (this.take("Z")) return { is: "edge", at: "end" };
    if (this.take("b")) return { is: "edge", at: "word" };
    if (this.take("B")) return { is: "edge", at: "inside" };
    return { is: "set", accepts: this.escape() };
  }
  private escape(): Accepts {
    const c = this.chars[this.at++];
    if (c === undefined) return this.refuse("an escape of nothing");
    if (Object.hasOwn(sets, c)) return sets[c]!;
    if (/[1-9]/.test(c)) this.refuse("a backreference");
    if (/[a-zA-Z0]/.test(c)) this.refuse(`the escape \\${c}`);
    return only(c);
  }
  private group(): Node {
    if (this.take("?")) {
      if (this.take("P<")) {
        const end = this.chars.indexOf(">", this.at);
        if (end < 0 || !/^[A-Za-z_]\w*$/.test(this.chars.slice(this.at, end).join("")))
          this.refuse("a group's name");
        this.at = end + 1;
      } else if (!this.take(":"))
        this.refuse(/[=!<]/.test(this.chars[this.at] ?? "") ? "lookaround" : "flags or another extension");
    }
    if (++this.depth > 100) this.refuse("groups that deep");
    const of = this.choice();
    this.depth--;
    if (!this.take(")")) this.refuse("an unclosed (");
    return of;
  }
  private class(): Accepts {
    const negated = this.take("^");
    const parts: Accepts[] = [];
    for (let first = true; first || !this.peek("]"); first = false) {
      const c = this.chars[this.at++];
      if (c === undefined) return this.refuse("an unclosed [");
      const named = c === "\\" && Object.hasOwn(sets, this.chars[this.at] ?? "");
      const from = c === "\\" ? this.escape() : only(c);
      const single = c === "\\" ? this.chars[this.at - 1]! : c;
      if (this.peek("-") && this.chars[this.at + 1] !== "]" && this.at + 1 < this.chars.length) {
        this.at++;
        let to = this.chars[this.at++]!;
        const set = to === "\\" && Object.hasOwn(sets, this.chars[this.at] ?? "");
        if (to === "\\") {
          this.escape();
          to = this.chars[this.at - 1]!;
        }
        if (named || set || code(to) < code(single)) this.refuse("a range from more to less");
        parts.push(between(single, to));
      } else parts.push(from);
    }
    this.at++;
    return negated ? not(either(...parts)) : either(...parts);
  }
}

/**
 * Does a whole text match? Throws what `code` and `where` say for a pattern that is none, or asks for too
 * much.
 */
export type Pattern = (text: string, budget: Steps) => boolean;
/** `tail`: after any text that ends in a dot, or none. */
export function pattern(source: string, tail: boolean, at: { code: ErrorCode; where: string }): Pattern {
  const refuse = (what: string): never => {
    throw new WeftError({
      ...at,
      expected: "a regular expression of literals, classes, groups, alternatives, repetition and anchors",
      found: `${what} in ${show(source)}`,
    });
  };
  if (source.length > MOST_CHARACTERS) refuse(`more than ${MOST_CHARACTERS} characters`);
  const parsed = new Parser(source, refuse).whole();
  const states: State[] = [];
  const put = (s: State): number => {
    if (states.length >= MOST_STATES) refuse(`more than ${MOST_STATES} states`);
    return states.push(s) - 1;
  };
  const goes = (next: readonly number[]): number => put({ accepts: null, edge: null, next });
  /** States of a node in front of state `to`; their first. */
  const build = (node: Node, to: number): number => {
    if (node.is === "set") return put({ accepts: node.accepts, edge: null, next: [to] });
    if (node.is === "edge") return put({ accepts: null, edge: node.at, next: [to] });
    if (node.is === "any") return goes(node.of.map((n) => build(n, to)));
    if (node.is === "all") return node.of.reduceRight((next, n) => build(n, next), to);
    let first = to;
    if (node.most === Number.POSITIVE_INFINITY) {
      first = goes([to]);
      states[first]!.next = [build(node.of, first), to];
    } else for (let i = node.least; i < node.most; i++) first = goes([build(node.of, first), to]);
    for (let i = 0; i < node.least; i++) first = build(node.of, first);
    return first;
  };
  const end = goes([]);
  let start = build(parsed, end);
  if (tail) {
    const dot = build({ is: "set", accepts: only(".") }, start);
    const any = build(
      { is: "repeat", of: { is: "set", accepts: not(newline) }, least: 0, most: Number.POSITIVE_INFINITY },
      dot,
    );
    start = goes([start, any]);
  }
  const marks = new Uint32Array(states.length);
  let mark = 0;
  return (text, budget) => {
    const chars = [...text];
    let now: number[] = [];
    const isLetter = (i: number): boolean => i >= 0 && i < chars.length && letter(code(chars[i]!));
    const isAt = (edge: Edge, i: number): boolean =>
      edge === "start"
        ? i === 0
        : edge === "end"
          ? i === chars.length
          : (isLetter(i - 1) !== isLetter(i)) === (edge === "word");
    /** All states that `from` is without another character, at place `i`. */
    const enter = (from: readonly number[], i: number, into: number[]): void => {
      const open = [...from];
      for (let s = open.pop(); s !== undefined; s = open.pop()) {
        if (marks[s] === mark) continue;
        marks[s] = mark;
        if (--budget.left < 0) refuse("too much to decide");
        const { accepts, edge, next } = states[s]!;
        if (accepts || s === end) into.push(s);
        else if (!edge || isAt(edge, i)) open.push(...next);
      }
    };
    const step = (): void => {
      mark = (mark + 1) >>> 0;
      if (mark) return;
      marks.fill(0);
      mark = 1;
    };
    step();
    enter([start], 0, now);
    for (const [i, c] of chars.entries()) {
      const after: number[] = [];
      step();
      for (const s of now) if (states[s]!.accepts?.(code(c))) enter(states[s]!.next, i + 1, after);
      now = after;
      if (!now.length) return false;
    }
    return now.includes(end);
  };
}

/** What an adapter's configuration says of modules by patterns, as PEFT has them. */
export function patternsOf(
  target: string | null,
  ranks: Readonly<Record<string, number>>,
  alphas: Readonly<Record<string, number>>,
): {
  readonly target: ((path: string) => boolean) | null;
  readonly rank: (path: string) => number | undefined;
  readonly alpha: (path: string) => number | undefined;
} {
  const budget = steps();
  const code = "WEFT_ADAPTER";
  const whole = target === null ? null : pattern(target, false, { code, where: "target_modules" });
  /** A number by module: that of the first key which matches. */
  const byModule = (where: string, map: Readonly<Record<string, number>>) => {
    const keys = Object.entries(map).map(
      ([key, v]) => [pattern(key, true, { code, where: `${where}[${show(key)}]` }), v] as const,
    );
    return (path: string): number | undefined => keys.find(([key]) => key(path, budget))?.[1];
  };
  return {
    target: whole && ((path) => whole(path, budget)),
    rank: byModule("rank_pattern", ranks),
    alpha: byModule("alpha_pattern", alphas),
  };
}
