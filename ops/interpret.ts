/**
 * Runs a graph in f64 through each op's own meaning: the oracle that every target, pass and gradient is
 * checked against.
 */
import { type Expr, evalIx, type Ix, rand01, scalarFns } from "./expr.ts";
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

/** One element of a pointwise value; `env` holds every value it loads. */
export function evalExpr(
  e: Expr,
  env: Env,
  ctx: EvalCtx,
  row: number,
  col: number,
  args: Readonly<Record<string, number>> = {},
): number {
  const slotRow = (v: Value, r: number): number =>
    ctx.meta("slot", r) * (v.type as Type & { kind: "factor" }).rows;
  const ix = (i: Ix): number =>
    evalIx(i, {
      row,
      col,
      meta: ctx.meta,
      layer: ctx.ofLayer,
      rank: (branch, r) => ctx.slot(ctx.meta("slot", r), branch).rank,
      slot: (v, r, k) => env.get(valueKey(v))![slotRow(v, r) * colsOf(v.type) + k]!,
      element: (v, r, k) => env.get(valueKey(v))![r * colsOf(v.type) + k]!,
    });
  const go = (x: Expr): number => {
    switch (x.e) {
      case "const":
        return x.v;
      case "load": {
        const data = env.get(valueKey(x.value));
        if (!data) throw new Error(`interpreter: ${x.value.node.label} was not computed`);
        const r = x.value.type.kind === "factor" ? slotRow(x.value, ix(x.row)) : ix(x.row);
        return data[r * colsOf(x.value.type) + ix(x.col)]!;
      }
      case "call":
        return (scalarFns[x.fn] as (...a: number[]) => number)(...x.args.map(go));
      case "if":
        return go(ix(x.ix) !== 0 ? x.yes : x.no);
      case "metaf":
        return ctx.metaf(x.name, x.at === null ? null : ix(x.at));
      case "ranked": {
        const t = x.factor.type as Type & { kind: "factor" };
        const r = slotRow(x.factor, ix(x.row)) + Math.min(ix(x.at), t.rows - 1);
        return env.get(valueKey(x.factor))![r * t.cols + ix(x.col)]!;
      }
      case "scale":
        return ctx.slot(ctx.meta("slot", ix(x.row)), x.branch).scale(ix(x.col));
      case "rand":
        return rand01(ix(x.key), ctx.layer * 64 + x.site, ix(x.col));
      case "expand": {
        const [u, f] = [env.get(valueKey(x.u))!, env.get(valueKey(x.factor))!];
        const t = x.factor.type as Type & { kind: "factor" };
        const s = ctx.meta("slot", ix(x.row));
        const from = x.from ? ix(x.from) : 0;
        let acc = 0;
        for (let r = 0; r < ctx.slot(s, t.branch).rank; r++)
          acc += u[ix(x.row) * colsOf(x.u.type) + from + r]! * f[(s * t.rows + r) * t.cols + ix(x.col)]!;
        return acc;
      }
      case "sparse": {
        const part = (v: Value): ((i: number) => number) => {
          const data = env.get(valueKey(v))!;
          const base = slotRow(v, ix(x.row)) * colsOf(v.type);
          return (i) => data[base + i]!;
        };
        const [values, index, data] = [part(x.values), part(x.index), env.get(valueKey(x.x))!];
        const from = ix(x.row) * colsOf(x.x.type);
        let acc = 0;
        for (let k = index(x.start + col); k < index(x.start + col + 1); k++) {
          const e = x.order === null ? k : index(x.order + k);
          acc += values(e) * data[from + index(x.at + e)]!;
        }
        return acc;
      }
      case "dot": {
        const [a, b] = [env.get(valueKey(x.a))!, env.get(valueKey(x.b))!];
        const [ra, rb] = [x.a, x.b].map((v) => ix(x.row) * colsOf(v.type) + ix(x.from)) as [number, number];
        let acc = 0;
        for (let k = 0; k < x.n; k++) acc += a[ra + k * x.step]! * b[rb + k * x.step]!;
        return acc;
      }
      case "arg": {
        const v = args[x.name];
        if (v === undefined) throw new Error(`interpreter: no operand named ${x.name}`);
        return v;
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
    const rows = ctx.rows(t.domain);
    const out = new Float64Array(rows * t.cols);
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < t.cols; c++) out[r * t.cols + c] = evalExpr(expr, env, ctx, r, c);
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

/**
 * Evaluate `roots` in f64. `inputs` are the region's named inputs: row tensors [rows, cols], weights [n, k]
 * row-major, factors [slot][rows][cols], fields and caches in their own layout. Throws on a missing input.
 */
export function interpret(
  roots: readonly Value[],
  inputs: Readonly<Record<string, Float64Array>>,
  ctx: EvalCtx,
): Float64Array[] {
  const env: Env = new Map();
  for (const node of toposort(roots)) {
    let outs: Float64Array[];
    const self: Value = { node, index: 0, type: node.outs[0]! };
    if (isInput(self)) {
      const data = inputs[inputName(self)];
      if (!data) throw new Error(`interpreter: input ${inputName(self)} was not given`);
      outs = [data];
    } else outs = evalNode(node, env, ctx);
    outs.forEach((o, index) => env.set(`${node.id}.${index}`, o));
  }
  return roots.map((v) => env.get(valueKey(v))!);
}
