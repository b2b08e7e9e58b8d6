/**
 * The scalar expression IR: what one element of a row tensor is, as a tree. WGSL text, SIMD AssemblyScript
 * (with its scalar tail) and the f64 meaning are all printed or run from the same tree, so an elementwise op
 * is defined once.
 */
import type { LayerConstant, Value } from "./graph.ts";

/** An integer index expression: which element a load or a store touches. */
export type Ix =
  | { readonly ix: "row" }
  | { readonly ix: "col" }
  | { readonly ix: "int"; readonly v: number }
  /**
   * word `name[at]` of the batch metadata block; `at: null` reads a header word; `raw` indexes the block
   * itself.
   */
  | { readonly ix: "meta"; readonly name: string; readonly at: Ix | null }
  | { readonly ix: "bin"; readonly op: IxOp; readonly a: Ix; readonly b: Ix }
  /** A constant of the layer. */
  | { readonly ix: "layer"; readonly name: LayerConstant }
  /** Rows in use of the row's slot at an adapter branch; 0 where the slot lacks it. */
  | { readonly ix: "rank"; readonly branch: number; readonly row: Ix }
  /** Element `at` of a slot tensor with one row, an integer kept as an exact f32. */
  | { readonly ix: "slot"; readonly tensor: Value; readonly row: Ix; readonly at: Ix }
  /** Element `at` of a row of step values, an integer kept as an exact f32. */
  | { readonly ix: "element"; readonly value: Value; readonly row: Ix; readonly at: Ix };
export type IxOp = "add" | "sub" | "mul" | "div" | "mod" | "lt" | "xor";

/**
 * Scalar functions that every target implements. Products that feed a sum are `fma`, so that no driver may
 * contract them differently.
 */
export const scalarFns = {
  add: (a: number, b: number) => a + b,
  sub: (a: number, b: number) => a - b,
  mul: (a: number, b: number) => a * b,
  div: (a: number, b: number) => a / b,
  max: (a: number, b: number) => Math.max(a, b),
  min: (a: number, b: number) => Math.min(a, b),
  /**
   * a * b + c: one rounding on targets with a fused unit, two elsewhere; the same in every kernel of a
   * target.
   */
  fma: (a: number, b: number, c: number) => a * b + c,
  neg: (a: number) => -a,
  exp: (a: number) => Math.exp(a),
  log: (a: number) => Math.log(a),
  tanh: (a: number) => Math.tanh(a),
  rsqrt: (a: number) => 1 / Math.sqrt(a),
  sqrt: (a: number) => Math.sqrt(a),
  /**
   * The value itself, rounded to f32: stops a driver from contracting the product inside into a later
   * addition.
   */
  pin: (a: number) => a,
} as const;
export type ScalarFn = keyof typeof scalarFns;

export type Expr =
  | { readonly e: "const"; readonly v: number }
  | { readonly e: "load"; readonly value: Value; readonly row: Ix; readonly col: Ix }
  | { readonly e: "call"; readonly fn: ScalarFn; readonly args: readonly Expr[] }
  /** `yes` where the index is not zero, else `no`; loads in the branch not taken are not performed. */
  | { readonly e: "if"; readonly ix: Ix; readonly yes: Expr; readonly no: Expr }
  /** f32 bits of a metadata word. */
  | { readonly e: "metaf"; readonly name: string; readonly at: Ix | null }
  /**
   * Σ_r u[row, from + r] · factor[slot[row]][r][col] over the rank of the row's slot; exactly 0 for rank 0.
   * `from` is 0 where it is not given.
   */
  | {
      readonly e: "expand";
      readonly u: Value;
      readonly from?: Ix;
      readonly factor: Value;
      readonly row: Ix;
      readonly col: Ix;
    }
  /**
   * Σ over entries k from index[start + col] to index[start + col + 1] of values[e] · x[row, index[at + e]],
   * e = k, or index[order + k] where there is an order; values and index of the row's slot.
   */
  | {
      readonly e: "sparse";
      readonly x: Value;
      readonly values: Value;
      readonly index: Value;
      readonly row: Ix;
      readonly start: number;
      readonly order: number | null;
      readonly at: number;
    }
  /** Σ over k < n of a[row, from + k · step] · b[row, from + k · step]. */
  | {
      readonly e: "dot";
      readonly a: Value;
      readonly b: Value;
      readonly row: Ix;
      readonly from: Ix;
      readonly step: number;
      readonly n: number;
    }
  /**
   * factor[slot[row]][at][col]: of a factor with rows by rank, row `at` of the row's slot; anything, but no
   * fault, where the slot has no such row.
   */
  | { readonly e: "ranked"; readonly factor: Value; readonly at: Ix; readonly row: Ix; readonly col: Ix }
  /** By what the row's slot scales row `col` of a branch's factors; anything beyond the slot's rank. */
  | { readonly e: "scale"; readonly branch: number; readonly row: Ix; readonly col: Ix }
  /**
   * Uniform number in [0, 1) from (key, salt of layer and site, column): counter-based, so any order of
   * evaluation gives the same bits.
   */
  | { readonly e: "rand"; readonly key: Ix; readonly site: number; readonly col: Ix }
  /**
   * The result of the heavy part of the kernel this expression is an epilogue of: a sum, the first or one
   * beside it; or reduction `stat`.
   */
  | { readonly e: "acc"; readonly of: 0 | 1 }
  /** A named operand of an optimizer rule: param, grad, its states. */
  | { readonly e: "arg"; readonly name: string }
  | { readonly e: "stat"; readonly id: number };

export const row: Ix = { ix: "row" };
export const col: Ix = { ix: "col" };
export const int = (v: number): Ix => ({ ix: "int", v });
export const meta = (name: string, at: Ix | null = null): Ix => ({ ix: "meta", name, at });
export const ixBin = (op: IxOp, a: Ix, b: Ix | number): Ix => ({
  ix: "bin",
  op,
  a,
  b: typeof b === "number" ? int(b) : b,
});
export const ofLayer = (name: LayerConstant): Ix => ({ ix: "layer", name });
export const konst = (v: number): Expr => ({ e: "const", v });
export const call = (fn: ScalarFn, ...args: Expr[]): Expr => ({ e: "call", fn, args });
export const load = (value: Value, r: Ix = row, c: Ix = col): Expr => ({ e: "load", value, row: r, col: c });

/** An index of (row, col) as one of another row and column. */
export function ixAt(ix: Ix, r: Ix, c: Ix): Ix {
  const there = (i: Ix): Ix => ixAt(i, r, c);
  switch (ix.ix) {
    case "row":
      return r;
    case "col":
      return c;
    case "meta":
      return ix.at ? { ...ix, at: there(ix.at) } : ix;
    case "bin":
      return { ...ix, a: there(ix.a), b: there(ix.b) };
    case "rank":
      return { ...ix, row: there(ix.row) };
    case "slot":
    case "element":
      return { ...ix, row: there(ix.row), at: there(ix.at) };
    default:
      return ix;
  }
}

/** A function for each kind of expression, or for the kinds `K`: a new kind is missing in each such table. */
export type ExprTable<A extends readonly unknown[], R, K extends Expr["e"] = Expr["e"]> = {
  readonly [E in K]: (e: Expr & { e: E }, ...rest: A) => R;
};
export function matchExpr<A extends readonly unknown[], R, K extends Expr["e"]>(
  table: ExprTable<A, R, K>,
  e: Expr & { e: K },
  ...rest: A
): R {
  return (table[e.e as K] as (e: Expr & { e: K }, ...rest: A) => R)(e, ...rest);
}

/** What an expression is made of: expressions at the same element, and values that it reads. */
interface Parts {
  readonly exprs: readonly Expr[];
  readonly values: readonly Value[];
}
const leaf: Parts = { exprs: [], values: [] };
/** Step values that an index is read from. */
function valuesOf(...list: readonly (Ix | null)[]): Value[] {
  return list.flatMap((ix): Value[] => {
    switch (ix?.ix) {
      case "element":
        return [ix.value, ...valuesOf(ix.row, ix.at)];
      case "bin":
        return valuesOf(ix.a, ix.b);
      case "meta":
      case "slot":
        return valuesOf(ix.at);
      default:
        return [];
    }
  });
}
const parts: ExprTable<[], Parts> = {
  const: () => leaf,
  load: (e) => ({ exprs: [], values: [e.value, ...valuesOf(e.row, e.col)] }),
  call: (e) => ({ exprs: e.args, values: [] }),
  if: (e) => ({ exprs: [e.yes, e.no], values: valuesOf(e.ix) }),
  metaf: () => leaf,
  expand: (e) => ({ exprs: [], values: [e.u, e.factor, ...valuesOf(e.from ?? null, e.col)] }),
  sparse: (e) => ({ exprs: [], values: [e.x, e.values, e.index] }),
  dot: (e) => ({ exprs: [], values: [e.a, e.b] }),
  ranked: (e) => ({ exprs: [], values: [e.factor] }),
  scale: () => leaf,
  rand: () => leaf,
  acc: () => leaf,
  arg: () => leaf,
  stat: () => leaf,
};
/** Visit an expression and all that it is made of. */
export function walkExpr(e: Expr, visit: (e: Expr, reads: readonly Value[]) => void): void {
  const { exprs, values } = matchExpr(parts, e);
  visit(e, values);
  for (const x of exprs) walkExpr(x, visit);
}

/** An expression so many columns further; `known`: what it is of parts of it, which grows. */
export function furtherOn(e: Expr, by: number, known: Map<Expr, Expr>): Expr {
  const found = known.get(e);
  if (found) return found;
  const there = ixBin("add", col, by);
  const of = <I extends Ix | null | undefined>(ix: I): I => (ix ? (ixAt(ix, row, there) as I) : ix);
  const go = (x: Expr): Expr => furtherOn(x, by, known);
  const same = <E extends Expr>(x: E): E => x;
  const table: ExprTable<[], Expr> = {
    const: same,
    load: (x) => ({ ...x, row: of(x.row), col: of(x.col) }),
    call: (x) => ({ ...x, args: x.args.map(go) }),
    if: (x) => ({ ...x, ix: of(x.ix), yes: go(x.yes), no: go(x.no) }),
    metaf: (x) => ({ ...x, at: of(x.at) }),
    expand: (x) => ({ ...x, col: of(x.col), ...(x.from && { from: of(x.from) }) }),
    sparse: (x) => ({ ...x, start: x.start + by }),
    dot: (x) => ({ ...x, from: of(x.from) }),
    ranked: (x) => ({ ...x, at: of(x.at), col: of(x.col) }),
    scale: (x) => ({ ...x, col: of(x.col) }),
    rand: (x) => ({ ...x, col: of(x.col) }),
    acc: same,
    arg: same,
    stat: same,
  };
  // What no column is in is one value at both.
  const out = usesCol(e) ? matchExpr(table, e) : e;
  known.set(e, out);
  return out;
}

/** Does an index depend on the column? Decides vector load, splat or lane-wise gather. */
export function ixUsesCol(ix: Ix): boolean {
  switch (ix.ix) {
    case "col":
      return true;
    case "row":
    case "int":
    case "layer":
    case "rank":
      return false;
    case "meta":
      return ix.at !== null && ixUsesCol(ix.at);
    case "slot":
      return ixUsesCol(ix.at);
    case "element":
      return ixUsesCol(ix.row) || ixUsesCol(ix.at);
    case "bin":
      return ixUsesCol(ix.a) || ixUsesCol(ix.b);
  }
}
const columnwise: ExprTable<[], boolean> = {
  const: () => false,
  load: (e) => ixUsesCol(e.row) || ixUsesCol(e.col),
  call: (e) => e.args.some(usesCol),
  if: (e) => ixUsesCol(e.ix) || usesCol(e.yes) || usesCol(e.no),
  metaf: () => false,
  expand: () => true,
  sparse: () => true,
  dot: (e) => ixUsesCol(e.row) || ixUsesCol(e.from),
  ranked: (e) => ixUsesCol(e.col),
  scale: (e) => ixUsesCol(e.col),
  rand: () => true,
  acc: () => true,
  arg: () => true,
  stat: () => false,
};
/** Does an expression depend on the column? If not, it is printed once a row. */
export const usesCol = (e: Expr): boolean => matchExpr(columnwise, e);

/** What an index is computed from, beside its row and column. */
export interface IxEnv {
  readonly meta: (name: string, i: number | null) => number;
  readonly layer: (name: LayerConstant) => number;
  readonly rank: (branch: number, row: number) => number;
  readonly slot: (tensor: Value, row: number, at: number) => number;
  readonly element: (value: Value, row: number, at: number) => number;
}
/** A function of the element's row and column. */
export type At = (row: number, col: number) => number;
/** An index as a function: what it is made of is looked at once, not for every element. */
export function indexFn(ix: Ix, env: IxEnv): At {
  switch (ix.ix) {
    case "row":
      return (row) => row;
    case "col":
      return (_, col) => col;
    case "int":
      return () => ix.v;
    case "meta": {
      if (ix.at === null) return () => env.meta(ix.name, null);
      const at = indexFn(ix.at, env);
      return (row, col) => env.meta(ix.name, at(row, col));
    }
    case "bin": {
      const [a, b, of] = [indexFn(ix.a, env), indexFn(ix.b, env), ixFns[ix.op]];
      return (row, col) => of(a(row, col), b(row, col));
    }
    case "layer":
      return () => env.layer(ix.name);
    case "rank": {
      const of = indexFn(ix.row, env);
      return (row, col) => env.rank(ix.branch, of(row, col));
    }
    case "slot":
    case "element": {
      const [of, at] = [indexFn(ix.row, env), indexFn(ix.at, env)];
      return ix.ix === "slot"
        ? (row, col) => env.slot(ix.tensor, of(row, col), at(row, col))
        : (row, col) => env.element(ix.value, of(row, col), at(row, col));
    }
  }
}
const ixFns: Record<IxOp, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => Math.floor(a / b),
  mod: (a, b) => a % b,
  lt: (a, b) => (a < b ? 1 : 0),
  xor: (a, b) => (a ^ b) >>> 0,
};

/**
 * The counter-based hash behind dropout (a murmur3-style finaliser over three words); mirrored bit for bit by
 * both targets.
 */
export function rand01(key: number, salt: number, column: number): number {
  let h = (key ^ Math.imul(salt + 1, 0x9e3779b9) ^ Math.imul(column + 1, 0x85ebca6b)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d) >>> 0;
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b) >>> 0;
  h = (h ^ (h >>> 16)) >>> 0;
  return (h >>> 8) / 16777216;
}
