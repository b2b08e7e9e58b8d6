/**
 * An interpreter of Jinja with bounds: each evaluation pays for what it is about to do before it does it. A
 * template comes with a model that anybody may have made: whatever it says, rendering ends soon and takes
 * little memory.
 */
import { type Environment, Interpreter } from "@huggingface/jinja";

/** Characters of any value, written out. A context of 128 k tokens is about half a million. */
const LARGEST = 2 ** 22;
/** Work of one rendering: 8 a node, 1 for two characters that are read or written; about a second. */
const WORK = 2 ** 24;
/** What an element of a list or mapping counts beside its own characters. */
const ELEMENT = 16;
/** Nested evaluations, and lists in lists: far from the end of the stack. */
const DEPTH = 400;
const NESTING = 64;
export const SOURCE = 2 ** 18;
/** The library looks for tags behind blanks in time quadratic in a run of them. */
export const BLANKS = 1000;

type Node = NonNullable<Parameters<Interpreter["evaluate"]>[0]>;
type Value = ReturnType<Interpreter["evaluate"]>;
/** A node as the parser makes it: its type, and what that type has. */
type Loose = Node & Readonly<Record<string, unknown>>;
interface Size {
  readonly characters: number;
  readonly nesting: number;
}
/** Node types of this file: a value that is already there, and an expression that is printed. */
const GIVEN = "Given";
const PRINT = "Print";
/**
 * `{% generation %}` … becomes a filter block of this name: a block tag like it, with the same rules for
 * blanks.
 */
export const GENERATION = "weft_generation";
const node = (fields: object): Node => fields as unknown as Node;
const given = (value: Value): Node => node({ type: GIVEN, value });
const isText = (v: Value): boolean => typeof v.value === "string";
const lengthOf = (v: Value): number =>
  typeof v.value === "string" || Array.isArray(v.value)
    ? v.value.length
    : v.value instanceof Map
      ? v.value.size
      : 0;
const isContainer = (v: Value): boolean => Array.isArray(v.value) || v.value instanceof Map;

export class Bounded extends Interpreter {
  private left = WORK;
  private depth = 0;
  private readonly sizes = new WeakMap<object, Size>();
  /** What a turn's text is put between, if it is marked at all. */
  constructor(
    env: Environment,
    private readonly marks: readonly [string, string] | null,
  ) {
    super(env);
  }
  charge(work: number): void {
    this.left -= work;
    if (!(this.left >= 0)) throw new Error("more work than a chat template can need");
  }
  /** Pays for text or elements that are about to be made. */
  private reserve(characters: number): void {
    if (!(characters <= LARGEST)) throw new Error(`a value of more than ${LARGEST} characters`);
    this.charge(characters / 2);
  }
  /** For naive search of one text in another, whose worst case is the product. */
  private search(text: number, part: number): void {
    this.charge((text + part) / 2 + (text * part) / 32);
  }
  private sizeOf(v: Value, nesting = 0): Size {
    if (!isContainer(v)) return { characters: isText(v) ? lengthOf(v) : ELEMENT, nesting: 0 };
    const known = this.sizes.get(v);
    if (known) return known;
    if (nesting > NESTING) throw new Error(`values nested more than ${NESTING} deep`);
    const entries: Iterable<Value> = Array.isArray(v.value)
      ? v.value
      : (v.value as Map<string, Value>).values();
    this.charge(lengthOf(v));
    let characters = 0;
    let deepest = 0;
    for (const entry of entries) {
      // A namespace can change after it was measured; on its own it is measured whenever it is used.
      if (entry.type === "NamespaceValue") throw new Error("a namespace inside another value");
      const inner = this.sizeOf(entry, nesting + 1);
      characters += inner.characters + ELEMENT;
      deepest = Math.max(deepest, inner.nesting + 1);
    }
    if (v.value instanceof Map) for (const key of v.value.keys()) characters += key.length;
    const size = { characters, nesting: deepest };
    if (v.type !== "NamespaceValue") this.sizes.set(v, size);
    return size;
  }
  private chars(v: Value): number {
    return this.sizeOf(v).characters;
  }

  override evaluate(statement: Node | undefined, env: Environment): Value {
    if (statement?.type === GIVEN) return (statement as Loose).value as Value;
    this.charge(8);
    if (++this.depth > DEPTH) throw new Error(`more than ${DEPTH} nested expressions, blocks and macros`);
    let value: Value;
    try {
      value = statement ? this.step(statement as Loose, env) : super.evaluate(statement, env);
    } finally {
      this.depth--;
    }
    if (isText(value) || isContainer(value)) {
      const size = this.sizeOf(value);
      if (size.characters > LARGEST) throw new Error(`a value of more than ${LARGEST} characters`);
      if (size.nesting > NESTING) throw new Error(`values nested more than ${NESTING} deep`);
    }
    return value;
  }
  private step(n: Loose, env: Environment): Value {
    const of = (key: string): Value => this.evaluate(n[key] as Node, env);
    switch (n.type) {
      case PRINT: {
        const value = of("expression");
        if (isContainer(value)) this.reserve(this.chars(value));
        return value;
      }
      case "For": {
        const iterable = n.iterable as Loose;
        const select = iterable.type === "SelectExpression";
        const list = given(this.evaluate(select ? (iterable.lhs as Node) : iterable, env));
        this.charge(64 * lengthOf((list as Loose).value as Value));
        return super.evaluate(node({ ...n, iterable: select ? { ...iterable, lhs: list } : list }), env);
      }
      case "Break":
      case "Continue":
        this.charge(512);
        break;
      case "Identifier": {
        const value = super.evaluate(n, env);
        if (value.type === "UndefinedValue") this.charge(64);
        return value;
      }
      case "TestExpression": {
        const operand = of("operand");
        if (isText(operand) && /lower|upper/.test(String((n.test as Loose).value)))
          this.charge(lengthOf(operand));
        return super.evaluate(node({ ...n, operand: given(operand) }), env);
      }
      case "BinaryExpression": {
        const operator = String((n.operator as { value: unknown }).value);
        if (operator === "and" || operator === "or") break;
        const [left, right] = [of("left"), of("right")];
        this.payBinary(operator, left, right);
        return super.evaluate(node({ ...n, left: given(left), right: given(right) }), env);
      }
      case "CallExpression":
        this.charge(64);
        break;
      case "MemberExpression":
        return this.member(n, env);
      case "FilterExpression":
        return this.filter(of("operand"), n.filter as Loose, env);
      case "FilterStatement": {
        const { value: name } = n.filter as Loose;
        const body = n.body as Node[];
        if (name !== GENERATION)
          return this.filter(this.evaluate(node({ type: "Program", body }), env), n.filter as Loose, env);
        const text = (value: string): Node => node({ type: "StringLiteral", value });
        const marked = this.marks ? [text(this.marks[0]), ...body, text(this.marks[1])] : body;
        return this.evaluate(node({ type: "Program", body: marked }), env);
      }
    }
    return super.evaluate(n, env);
  }
  private payBinary(operator: string, left: Value, right: Value): void {
    const texts = isText(left) && isText(right);
    if (operator === "in" || operator === "not in") {
      if (texts) this.search(lengthOf(right), lengthOf(left));
      else if (Array.isArray(right.value))
        this.charge(isText(left) ? this.chars(right) / 2 : lengthOf(right));
    } else if (operator === "==" || operator === "!=") {
      if (texts) this.charge(lengthOf(left) === lengthOf(right) ? lengthOf(left) / 8 : 0);
      // A list beside a text is written out to be compared.
      else if (isContainer(left) !== isContainer(right)) this.charge(this.chars(left) + this.chars(right));
    } else if (operator === "+" || operator === "~") {
      if (Array.isArray(left.value) && Array.isArray(right.value))
        this.charge(lengthOf(left) + lengthOf(right));
      // Two texts are joined without being copied.
      else if (!texts) this.charge(this.chars(left) + this.chars(right));
    }
  }
  private member(n: Loose, env: Environment): Value {
    const object = this.evaluate(n.object as Node, env);
    let property = n.property as Loose;
    if (property.type === "SliceExpression") this.charge(2 * lengthOf(object));
    else if (n.computed) property = given(this.evaluate(property, env)) as Loose;
    this.charge(32);
    const value = super.evaluate(node({ ...n, object: given(object), property }), env);
    if (value.type !== "FunctionValue") return value;
    // A method pays when it is called, wherever it has been kept until then.
    const name = String(property.type === GIVEN ? (property.value as Value).value : property.value);
    const method = value.value as (args: Value[], scope: Environment) => Value;
    const Made = value.constructor as new (f: typeof method) => Value;
    return new Made((args, scope) => {
      this.payMethod(name, object, args);
      const [set] = args;
      // The library strips blanks whatever it is told to strip.
      if (/^[lr]?strip$/.test(name) && isText(object) && set && isText(set)) {
        const Text = object.constructor as new (text: string) => Value;
        return new Text(strip(name, object.value as string, set.value as string));
      }
      return method(args, scope);
    });
  }
  private payMethod(name: string, object: Value, args: readonly Value[]): void {
    if (!isText(object)) {
      // Of a mapping.
      if (name === "dictsort") this.paySort(object);
      else if (name !== "get") this.charge(ELEMENT * lengthOf(object));
      return;
    }
    const text = object.value as string;
    const [first, second] = args;
    this.charge(text.length / 2);
    if (name === "split") {
      const parts = first && isText(first) ? this.count(text, first.value as string) : this.words(text);
      this.reserve(text.length + ELEMENT * (parts + 1));
    } else if (name === "replace" && first && second && isText(first) && isText(second))
      this.reserve(text.length + this.count(text, first.value as string) * lengthOf(second));
    else for (const a of args) this.charge(isContainer(a) ? this.chars(a) : lengthOf(a));
  }
  private paySort(list: Value): void {
    this.charge((this.chars(list) + 1) * Math.log2(lengthOf(list) + 2));
  }
  /** How many times `part` is found in `text`. */
  private count(text: string, part: string): number {
    if (!part) return text.length + 1;
    this.search(text.length, part.length);
    let n = 0;
    for (let i = text.indexOf(part); i >= 0; i = text.indexOf(part, i + part.length)) n++;
    return n;
  }
  private words(text: string): number {
    let n = 0;
    for (const _ of text.matchAll(/\S+/g)) n++;
    return n;
  }

  private filter(operand: Value, filter: Loose, env: Environment): Value {
    const call = filter.type === "CallExpression";
    const name = String(call ? (filter.callee as Loose).value : filter.value);
    // Their arguments decide how much they make.
    const { nodes, at } =
      call && /^(join|indent|tojson|replace)$/.test(name) ? this.settle(filter, env) : none;
    const length = (v: Value | undefined, otherwise: number): number =>
      v && isText(v) ? lengthOf(v) : otherwise;
    const size = this.sizeOf(operand);
    const n = lengthOf(operand);
    switch (name) {
      case "default":
      case "first":
      case "last":
      case "length":
      case "list":
      case "safe":
        break;
      case "sort":
      case "dictsort":
        this.paySort(operand);
        break;
      case "selectattr":
      case "rejectattr":
      case "map":
        this.charge(n * (ELEMENT + JSON.stringify(call ? filter.args : []).length));
        break;
      case "join":
        this.reserve(size.characters + n * (ELEMENT + length(at(0, "separator"), 0)));
        break;
      case "indent": {
        const width = Math.max(0, Number(at(0, "width")?.value ?? 4));
        const lines = isText(operand) ? this.count(operand.value as string, "\n") + 1 : 0;
        this.reserve(size.characters + lines * width + width);
        break;
      }
      case "tojson": {
        const indent = Math.max(0, Number(at(null, "indent")?.value ?? 0));
        const separators = at(null, "separators");
        const between = separators ? this.chars(separators) : 4;
        // Escapes take up to six characters for one; a line is indented as deep as it is nested.
        const entries = size.characters / ELEMENT + 1;
        this.reserve(size.characters + entries * (between + indent * (size.nesting + 1)));
        this.charge(size.characters);
        break;
      }
      case "replace":
        this.payMethod(
          "replace",
          operand,
          [at(0, ""), at(1, "")].filter((v) => v !== undefined),
        );
        break;
      default:
        this.charge(size.characters / 2);
    }
    const settled = nodes ? { ...filter, args: nodes } : filter;
    return super.evaluate(node({ type: "FilterExpression", operand: given(operand), filter: settled }), env);
  }
  /** Arguments evaluated once: as nodes that hold them, and by place or name. */
  private settle(
    filter: Loose,
    env: Environment,
  ): { nodes: Node[]; at: (place: number | null, name: string) => Value | undefined } {
    const places: Value[] = [];
    const names = new Map<string, Value>();
    const nodes = (filter.args as Loose[]).map((a) => {
      const key =
        a.type === "KeywordArgumentExpression" ? "value" : a.type.includes("Spread") ? "argument" : null;
      const value = this.evaluate(key ? (a[key] as Node) : a, env);
      if (a.type === "SpreadExpression" && Array.isArray(value.value)) places.push(...value.value);
      else if (a.type === "KeywordSpreadExpression" && value.value instanceof Map)
        for (const [k, v] of value.value) names.set(k, v);
      else if (a.type === "KeywordArgumentExpression") names.set(String((a.key as Loose).value), value);
      else places.push(value);
      return key ? node({ ...a, [key]: given(value) }) : given(value);
    });
    return { nodes, at: (place, name) => (place === null ? undefined : places[place]) ?? names.get(name) };
  }
}
const none = { nodes: null, at: (): undefined => undefined };

/** Statements; what else stands in a block is an expression that is printed. */
const statements = new Set([
  "Program",
  "If",
  "For",
  "Set",
  "Macro",
  "CallStatement",
  "FilterStatement",
  "Break",
  "Continue",
  "Comment",
  "StringLiteral",
]);
/** Expressions in blocks become nodes that print them. */
export function markPrints(at: unknown, seen = new Set<object>()): void {
  if (typeof at !== "object" || at === null || seen.has(at)) return;
  seen.add(at);
  for (const [key, inner] of Object.entries(at)) {
    markPrints(inner, seen);
    if (Array.isArray(inner) && /^(body|alternate|defaultBlock)$/.test(key))
      inner.forEach((child: Loose, i) => {
        if (!statements.has(child.type)) inner[i] = { type: PRINT, expression: child };
      });
  }
}

/** Python's strip, lstrip and rstrip with the characters that they take away. */
function strip(name: string, text: string, characters: string): string {
  const set = new Set(characters);
  let [from, to] = [0, text.length];
  if (name !== "rstrip") while (from < to && set.has(text[from]!)) from++;
  if (name !== "lstrip") while (to > from && set.has(text[to - 1]!)) to--;
  return text.slice(from, to);
}
/** Python's range, which makes a list. */
export const range =
  (charge: (work: number) => void) =>
  (start: unknown, stop?: unknown, step: unknown = 1): number[] => {
    const [from, to] = stop === undefined || stop === null ? [0, start] : [start, stop];
    if (![from, to, step].every(Number.isSafeInteger) || step === 0)
      throw new Error("range() takes whole numbers, and a step that is not 0");
    const [a, b, s] = [from as number, to as number, step as number];
    const n = Math.max(0, Math.ceil((b - a) / s));
    if (n * ELEMENT > LARGEST) throw new Error(`range() of ${n} numbers`);
    charge(ELEMENT * n);
    return Array.from({ length: n }, (_, i) => a + i * s);
  };
/** The day's date for templates that say it, in the words of Python's C locale. */
export function strftimeNow(format: unknown): string {
  const now = new Date();
  const two = (n: number): string => String(n).padStart(2, "0");
  const word = (o: Intl.DateTimeFormatOptions): string => new Intl.DateTimeFormat("en-US", o).format(now);
  const parts: Readonly<Record<string, () => string>> = {
    Y: () => String(now.getFullYear()),
    y: () => two(now.getFullYear() % 100),
    m: () => two(now.getMonth() + 1),
    d: () => two(now.getDate()),
    H: () => two(now.getHours()),
    M: () => two(now.getMinutes()),
    S: () => two(now.getSeconds()),
    B: () => word({ month: "long" }),
    b: () => word({ month: "short" }),
    A: () => word({ weekday: "long" }),
    a: () => word({ weekday: "short" }),
    "%": () => "%",
  };
  return String(format).replace(/%(.)/g, (whole, key: string) => parts[key]?.() ?? whole);
}
