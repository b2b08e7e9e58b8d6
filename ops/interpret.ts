/**
 * Runs a graph in f64 through each op's own meaning: the oracle that every target, pass and gradient is
 * checked against.
 */
import { type At, type Expr, type Ix, indexFn, rand01, scalarFns } from "./expr.ts";
import {
  type EvalCtx,
  inputName,
  isInput,
  type Node,
  opOf,
  readAt,
  type Type,
  toposort,
  type Value,
  valueKey,
} from "./graph.ts";

type Env = Map<string, Float64Array>;

const colsOf = (t: Type): number => {
  switch (t.kind) {
    case "rows":
    case "field":
    case "factor":
    case "table":
      return t.cols;
    case "weight":
    case "experts":
      return t.k;
    case "vector":
      return t.n;
    case "kv":
    case "grad":
      throw new Error(`${t.kind} has no columns`);
  }
};

/**
 * A pointwise value as a function of row and column; `env` holds every value that it loads. `args`: operands
 * by name.
 */
export function expressionFn(
  e: Expr,
  env: Env,
  ctx: EvalCtx,
  args: Readonly<Record<string, number>> = {},
): At {
  const slotRow = (v: Value, r: number): number =>
    ctx.meta("slot", r) * (v.type as Type & { kind: "factor" }).rows;
  const dataOf = (v: Value): Float64Array => {
    const data = env.get(valueKey(v));
    if (!data) throw new Error(`interpreter: ${v.node.label} was not computed`);
    return data;
  };
  const ix = (i: Ix): At =>
    indexFn(i, {
      meta: ctx.meta,
      layer: ctx.ofLayer,
      rank: (branch, r) => ctx.slot(ctx.meta("slot", r), branch).rank,
      slot: (v, r, k) => dataOf(v)[slotRow(v, r) * colsOf(v.type) + k]!,
      element: (v, r, k) => dataOf(v)[r * colsOf(v.type) + k]!,
    });
  const go = (x: Expr): At => {
    switch (x.e) {
      case "const":
        return () => x.v;
      case "load": {
        const [data, cols, row, col] = [dataOf(x.value), colsOf(x.value.type), ix(x.row), ix(x.col)];
        if (x.value.type.kind === "factor")
          return (r, c) => data[slotRow(x.value, row(r, c)) * cols + col(r, c)]!;
        return (r, c) => data[row(r, c) * cols + col(r, c)]!;
      }
      case "call": {
        const fn = scalarFns[x.fn] as (...a: number[]) => number;
        const [a, b, d] = x.args.map(go);
        if (d) return (r, c) => fn(a!(r, c), b!(r, c), d(r, c));
        return b ? (r, c) => fn(a!(r, c), b(r, c)) : (r, c) => fn(a!(r, c));
      }
      case "if": {
        const [at, yes, no] = [ix(x.ix), go(x.yes), go(x.no)];
        return (r, c) => (at(r, c) !== 0 ? yes(r, c) : no(r, c));
      }
      case "metaf": {
        const at = x.at === null ? null : ix(x.at);
        return (r, c) => ctx.metaf(x.name, at === null ? null : at(r, c));
      }
      case "ranked": {
        const t = x.factor.type as Type & { kind: "factor" };
        const [data, row, at, col] = [dataOf(x.factor), ix(x.row), ix(x.at), ix(x.col)];
        return (r, c) =>
          data[(slotRow(x.factor, row(r, c)) + Math.min(at(r, c), t.rows - 1)) * t.cols + col(r, c)]!;
      }
      case "scale": {
        const [row, col] = [ix(x.row), ix(x.col)];
        return (r, c) => ctx.slot(ctx.meta("slot", row(r, c)), x.branch).scale(col(r, c));
      }
      case "rand": {
        const [key, col] = [ix(x.key), ix(x.col)];
        return (r, c) => rand01(key(r, c), ctx.layer * 64 + x.site, col(r, c));
      }
      case "expand": {
        const [u, f, row, col] = [dataOf(x.u), dataOf(x.factor), ix(x.row), ix(x.col)];
        const t = x.factor.type as Type & { kind: "factor" };
        const [from, wide] = [x.from ? ix(x.from) : () => 0, colsOf(x.u.type)];
        return (r, c) => {
          const [at, k] = [row(r, c), col(r, c)];
          const s = ctx.meta("slot", at);
          const start = at * wide + from(r, c);
          let acc = 0;
          for (let i = 0; i < ctx.slot(s, t.branch).rank; i++)
            acc += u[start + i]! * f[(s * t.rows + i) * t.cols + k]!;
          return acc;
        };
      }
      case "sparse": {
        const [values, index, data, row] = [dataOf(x.values), dataOf(x.index), dataOf(x.x), ix(x.row)];
        const part = (v: Value, r: number): number => slotRow(v, r) * colsOf(v.type);
        return (r, c) => {
          const at = row(r, c);
          const [first, own] = [part(x.index, at), part(x.values, at)];
          const from = at * colsOf(x.x.type);
          let acc = 0;
          for (let k = index[first + x.start + c]!; k < index[first + x.start + c + 1]!; k++) {
            const i = x.order === null ? k : index[first + x.order + k]!;
            acc += values[own + i]! * data[from + index[first + x.at + i]!]!;
          }
          return acc;
        };
      }
      case "dot": {
        const [a, b, row, from] = [dataOf(x.a), dataOf(x.b), ix(x.row), ix(x.from)];
        const [wa, wb] = [colsOf(x.a.type), colsOf(x.b.type)];
        return (r, c) => {
          const [at, first] = [row(r, c), from(r, c)];
          let acc = 0;
          for (let k = 0; k < x.n; k++)
            acc += a[at * wa + first + k * x.step]! * b[at * wb + first + k * x.step]!;
          return acc;
        };
      }
      case "arg": {
        const v = args[x.name];
        if (v === undefined) throw new Error(`interpreter: no operand named ${x.name}`);
        return () => v;
      }
      case "acc":
      case "stat":
        throw new Error(`interpreter: ${x.e} only exists inside a kernel`);
    }
  };
  return go(e);
}

function evalNode(node: Node, env: Env, ctx: EvalCtx): Float64Array[] {
  const op = opOf(node.op);
  const ins = node.ins.map((v) => env.get(valueKey(v))!);
  if (op.kind === "point") {
    const t = node.outs[0] as Type & { kind: "rows" };
    const expr = op.point!({
      ins: node.ins,
      attrs: node.attrs,
      at: (i, w = {}) => readAt(node.ins[i]!, w.row, w.col),
    });
    const at = expressionFn(expr, env, ctx);
    const rows = ctx.rows(t.domain);
    const out = new Float64Array(rows * t.cols);
    for (let r = 0; r < rows; r++) for (let c = 0; c < t.cols; c++) out[r * t.cols + c] = at(r, c);
    return [out];
  }
  if (op.kind === "reduce") {
    const t = node.ins[0]!.type as Type & { kind: "rows" };
    const out = new Float64Array(ctx.rows(t.domain));
    for (let r = 0; r < out.length; r++) {
      let acc = op.reduce === "max" ? -Infinity : 0;
      for (let c = 0; c < t.cols; c++)
        acc = op.reduce === "max" ? Math.max(acc, ins[0]![r * t.cols + c]!) : acc + ins[0]![r * t.cols + c]!;
      out[r] = acc;
    }
    return [out];
  }
  if (!op.eval) throw new Error(`interpreter: ${node.op} has no meaning`);
  return op.eval(node, ins, ctx);
}

/** What a node gives where that is known otherwise than by its op; null: what its op means. */
export type Instead = (node: Node, ins: readonly Float64Array[]) => readonly Float64Array[] | null;

/**
 * Evaluate `roots` in f64. `inputs` are the region's named inputs: row tensors [rows, cols], weights [n, k]
 * row-major, factors [slot][rows][cols], fields and caches in their own layout. A value is kept until its
 * last reader has run. Throws on a missing input.
 */
export function interpret(
  roots: readonly Value[],
  inputs: Readonly<Record<string, Float64Array>>,
  ctx: EvalCtx,
  instead: Instead = () => null,
): Float64Array[] {
  const env: Env = new Map();
  const order = toposort(roots);
  const wanted = new Set(roots.map((v) => v.node));
  const last = new Map(order.flatMap((node) => node.ins.map((v) => [v.node, node] as const)));
  for (const node of order) {
    const self: Value = { node, index: 0, type: node.outs[0]! };
    const data = isInput(self) ? inputs[inputName(self)] : undefined;
    const given = data
      ? [data]
      : instead(
          node,
          node.ins.map((v) => env.get(valueKey(v))!),
        );
    if (!given && isInput(self)) throw new Error(`interpreter: input ${inputName(self)} was not given`);
    (given ?? evalNode(node, env, ctx)).forEach((o, index) => env.set(`${node.id}.${index}`, o));
    for (const { node: read } of node.ins)
      if (last.get(read) === node && !wanted.has(read))
        read.outs.forEach((_, i) => env.delete(`${read.id}.${i}`));
  }
  return roots.map((v) => env.get(valueKey(v))!);
}
