/**
 * Prints expressions once for every target: sub-expressions are hoisted to the row level when they do not
 * depend on the column, and shared by identity. A dialect supplies the leaves.
 */
import {
  type Expr,
  type ExprTable,
  type Ix,
  type IxOp,
  ixUsesCol,
  matchExpr,
  type ScalarFn,
  usesCol,
  valueKey,
} from "../../ops/index.ts";

/** Expressions without expressions in them. */
export type Leaf = Exclude<Expr["e"], "const" | "call" | "if">;
/**
 * How one target spells things. `lanes` is 4 in SIMD bodies and 1 in scalar ones; row-level text is always
 * scalar.
 */
export interface Dialect {
  readonly type: (lanes: 1 | 4) => string;
  readonly constant: (v: number, lanes: 1 | 4) => string;
  readonly calls: { readonly [F in ScalarFn]: (args: readonly string[], lanes: 1 | 4) => string };
  readonly splat: (text: string) => string;
  readonly declare: (name: string, type: string, text: string) => string;
  readonly declareInt: (name: string, text: string) => string;
  readonly ix: (ix: Ix, p: Printer, lane: number) => string;
  readonly leaves: ExprTable<[Printer, 1 | 4], string, Leaf>;
  /** A variable that gets its value later. */
  readonly reserve: (name: string, type: string) => string;
  /** A choice by a column-dependent condition, element by element. */
  readonly choose: (e: Expr & { e: "if" }, a: string, b: string, p: Printer, lanes: 1 | 4) => string;
}
/** Operators of indices that both targets write between their operands. */
export const infix: Readonly<Record<Exclude<IxOp, "lt">, string>> = {
  add: "+",
  sub: "-",
  mul: "*",
  div: "/",
  mod: "%",
  xor: "^",
};

/** The parts of an expression that its value is always made of, itself first. */
function needed(e: Expr, found = new Set<Expr>()): ReadonlySet<Expr> {
  if (e.e === "const" || found.has(e)) return found;
  found.add(e);
  if (e.e === "call") for (const x of e.args) needed(x, found);
  if (e.e === "if") {
    if (ixUsesCol(e.ix)) for (const x of [e.yes, e.no]) needed(x, found);
    else for (const x of needed(e.yes)) if (needed(e.no).has(x)) needed(x, found);
  }
  return found;
}

/**
 * Prints into `row` lines (once a row) and `col` lines (once a column step). Names are unique within the
 * printer.
 */
export class Printer {
  readonly row: string[] = [];
  col: string[] = [];
  private rowMemo = new Map<Expr, string>();
  private colMemo = new Map<Expr, string>();
  private ixMemo = new Map<string, string>();
  private names: { n: number };
  constructor(
    readonly dialect: Dialect,
    readonly lanes: 1 | 4,
    shared?: Printer,
  ) {
    this.names = shared?.names ?? { n: 0 };
    if (shared) {
      this.row = shared.row;
      this.rowMemo = shared.rowMemo;
      this.ixMemo = shared.ixMemo;
    }
  }
  fresh(prefix: string): string {
    // With a mark between them: i32 and f16 are types.
    return `${prefix}_${this.names.n++}`;
  }
  /** An i32 expression; row-level metadata reads are hoisted. */
  ix(ix: Ix, lane = 0): string {
    if (ix.ix === "int" || ix.ix === "row" || ixUsesCol(ix)) return this.dialect.ix(ix, this, lane);
    const key = JSON.stringify(ix, (_, v) => (v?.node ? valueKey(v) : v));
    const known = this.ixMemo.get(key);
    if (known) return known;
    const text = this.dialect.ix(ix, this, 0);
    const name = this.fresh("i");
    this.row.push(this.dialect.declareInt(name, text));
    this.ixMemo.set(key, name);
    return name;
  }
  /** Hoist a row-level integer or pointer, by its text. */
  hoist(text: string, declare: (name: string) => string, prefix: string): string {
    const known = this.ixMemo.get(text);
    if (known) return known;
    const name = this.fresh(prefix);
    this.row.push(declare(name));
    this.ixMemo.set(text, name);
    return name;
  }
  /** Text of the expression at this printer's lanes (splatted if it is a row-level value). */
  at(e: Expr): string {
    if (!usesCol(e)) {
      const s = this.scalar(e);
      if (this.lanes === 1) return s;
      return this.hoist(
        `splat ${s}`,
        (name) => this.dialect.declare(name, this.dialect.type(4), this.dialect.splat(s)),
        "s",
      );
    }
    const known = this.colMemo.get(e);
    if (known) return known;
    const name = this.print(e, this.lanes, this.col, this.colMemo);
    return name;
  }
  /** Text of a row-level expression, as a scalar. */
  scalar(e: Expr): string {
    const known = this.rowMemo.get(e);
    if (known) return known;
    return this.print(e, 1, this.row, this.rowMemo);
  }
  private print(e: Expr, lanes: 1 | 4, lines: string[], memo: Map<Expr, string>): string {
    const d = this.dialect;
    const sub = (x: Expr): string => (lines === this.row ? this.scalar(x) : this.at(x));
    let text: string;
    if (e.e === "const") return d.constant(e.v, lanes);
    if (e.e === "call") text = d.calls[e.fn](e.args.map(sub), lanes);
    else if (e.e === "if") {
      if (ixUsesCol(e.ix)) text = d.choose(e, sub(e.yes), sub(e.no), this, lanes);
      else if (lines === this.row) text = d.choose(e, sub(e.yes), sub(e.no), this, 1);
      else {
        // A branch on a row-level condition: the statements of both sides are evaluated lazily.
        const test = `${this.ix(e.ix)} != 0`;
        // What both sides need comes before them: once in the text.
        const [yes, no] = [needed(e.yes), needed(e.no)];
        for (const x of yes) if (no.has(x) && usesCol(x)) this.at(x);
        const name = this.fresh("v");
        const side = (x: Expr): string[] => {
          const { col, colMemo } = this;
          this.col = [];
          this.colMemo = new Map(colMemo);
          const value = this.at(x);
          const lines = [...this.col, `${name} = ${value};`].map((l) => `  ${l}`);
          this.col = col;
          this.colMemo = colMemo;
          return lines;
        };
        const reserve = d.reserve(name, d.type(lanes));
        this.col.push(reserve, `if (${test}) {`, ...side(e.yes), "} else {", ...side(e.no), "}");
        this.colMemo.set(e, name);
        return name;
      }
    } else text = matchExpr(d.leaves, e, this, lanes);
    const name = this.fresh("v");
    (lines === this.row ? this.row : this.col).push(d.declare(name, d.type(lanes), text));
    (lines === this.row ? memo : this.colMemo).set(e, name);
    return name;
  }
}
