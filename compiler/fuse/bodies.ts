/**
 * Groups → bodies: the expression of everything that a group stores. What one group loads of another must be
 * stored there.
 */
import {
  type Expr,
  furtherOn,
  type Halves,
  isInput,
  ixAt,
  type Op,
  opOf,
  readAt,
  type Type,
  type Value,
  valueKey,
  walkExpr,
} from "../../ops/index.ts";
import type { Body, Element, Stat, Store } from "../kernels/body.ts";
import { type Group, type Grouping, operandOf, picksOne } from "./groups.ts";

type Rows = Type & { kind: "rows" };

/** The input whose state an effect is the next of. */
function stateOf(v: Value): Value {
  return isInput(v) ? v : stateOf(v.node.ins[0]!);
}

/** Bodies of the groups that store something, in order. */
export function bodiesOf({ groups, free, needed }: Grouping): ReadonlyMap<Group, Body> {
  const stored = new Set(needed);
  const plans = groups.map((g) => {
    const { half } = g;
    const memo = new Map<string, Halves>();
    const reads = new Map<string, Value>();
    const touch = (e: Expr): void =>
      walkExpr(e, (_, values) => {
        for (const v of values) {
          reads.set(valueKey(v), v);
          if (!isInput(v)) stored.add(valueKey(v));
        }
      });
    /** What is there already of the columns `half` further on. */
    const further = new Map<Expr, Expr>();
    const upper = (e: Expr): Expr => (half ? furtherOn(e, half, further) : e);
    const halves = (e: Expr): Halves => [e, upper(e)];
    const acc = { 0: { e: "acc", of: 0 }, 1: { e: "acc", of: 1 } } as const;
    /**
     * A member of the group: what its kernel has made when an epilogue runs, or what is made of that. Where
     * its sums are of halves, at both columns.
     */
    const member: { readonly [K in Op["kind"]]: (v: Value, op: Op) => Halves } = {
      input: (v) => halves(readAt(v)),
      effect: (v) => halves(readAt(v)),
      kernel: (v) => (half ? [acc[0], acc[1]] : halves(acc[v.node === g.beside ? 1 : 0])),
      reduce: (v) => halves({ e: "stat", id: g.reduces.indexOf(v.node) }),
      point: ({ node }, op) => {
        const { ins, attrs } = node;
        if (half && op.halves?.of(node) === half) return op.halves.point({ ins, attrs }, exprsOf(ins[0]!));
        const of = (which: 0 | 1): Expr =>
          whereItLies(
            op.point!({
              ins,
              attrs,
              at: (i, w) => (w ? readAt(ins[i]!, w.row, w.col) : exprsOf(ins[i]!)[which]),
            }),
          );
        const lower = of(0);
        return [lower, half ? upper(of(1)) : lower];
      },
    };
    const exprsOf = (v: Value): Halves => {
      const key = valueKey(v);
      const known = memo.get(key);
      if (known) return known;
      const op = opOf(v.node.op);
      const e = g.members.has(key) || free.has(key) ? member[op.kind](v, op) : halves(readAt(v));
      further.set(e[1], e[1]);
      memo.set(key, e);
      return e;
    };
    const exprOf = (v: Value): Expr => exprsOf(v)[0];
    const lying = new Map<Expr, Expr>();
    /** Loads of what is stored nowhere, as loads of what it is picked from; parts that are shared stay so. */
    const whereItLies = (e: Expr): Expr => {
      const found = lying.get(e) ?? readsOf(e);
      lying.set(e, found);
      return found;
    };
    const readsOf = (e: Expr): Expr => {
      if (e.e === "call") {
        const args = e.args.map(whereItLies);
        return args.every((arg, i) => arg === e.args[i]) ? e : { ...e, args };
      }
      if (e.e === "if") {
        const [yes, no] = [whereItLies(e.yes), whereItLies(e.no)];
        return yes === e.yes && no === e.no ? e : { ...e, yes, no };
      }
      if (e.e !== "load" || !free.has(valueKey(e.value)) || !picksOne(e.value.node)) return e;
      const from = exprOf(e.value) as Expr & { e: "load" };
      return { ...from, row: ixAt(from.row, e.row, e.col), col: ixAt(from.col, e.row, e.col) };
    };
    const stats = g.reduces.map(
      (node, id): Stat => ({ id, reduce: opOf(node.op).reduce!, expr: exprOf(node.ins[0]!) }),
    );
    /** A value's element, at each column that the body is at. */
    const eachOf = (v: Value): Element[] => {
      const { cols } = v.type as Rows;
      const [lower, upper] = exprsOf(v).map((expr): Element => ({ expr, cols }));
      return half && !g.isHalf(v.type as Rows) ? [lower!, { ...upper!, shift: half }] : [lower!];
    };
    const effects = g.effects.flatMap(({ field, write }) =>
      eachOf(write.x).map(
        (at): Store =>
          write.to === "field"
            ? { to: "field", field: stateOf(field), index: write.index, ...at }
            : { to: "kv", kv: stateOf(field), part: write.part, ...at },
      ),
    );
    for (const s of [...stats, ...effects]) touch(s.expr);
    return { g, eachOf, stats, effects, touch, reads };
  });
  for (const { g, eachOf, touch } of plans)
    for (const v of g.members.values())
      if (opOf(v.node.op).kind === "point") for (const { expr } of eachOf(v)) touch(expr);

  const bodies = new Map<Group, Body>();
  for (const { g, eachOf, stats, effects, reads } of plans) {
    const stores = g.epilogue
      ? [...g.members].flatMap(([key, value]): Store[] =>
          stored.has(key) && value.type.kind === "rows"
            ? eachOf(value).map((at): Store => ({ to: "rows", value, ...at }))
            : [],
        )
      : [];
    const operands = [g.heavy, g.beside].flatMap((node) => node?.ins.map(operandOf) ?? []);
    for (const o of operands)
      for (const v of [o.value, ...(o.undropped ? [o.undropped] : [])]) reads.set(valueKey(v), v);
    if (g.epilogue && !stores.length && !effects.length) continue;
    const factor = g.heavy?.ins.find((v) => v.type.kind === "factor");
    const bit = factor ? (factor.type as Type & { kind: "factor" }).branch : g.condition;
    bodies.set(g, {
      name: nameOf(g),
      skeleton: g.skeleton,
      domain: g.domain,
      cols: g.cols,
      node: g.heavy,
      beside: g.beside,
      half: g.half,
      operands,
      stats,
      stores: [...stores, ...effects],
      bits: bit === null ? [] : [bit],
      rest: null,
      reads: [...reads.values()],
    });
  }
  return bodies;
}
const nameOf = (g: Group): string =>
  (g.beside ? `${g.heavy!.label}__${g.beside.label}` : g.heavy?.label) ??
  [...g.members.values()].at(-1)?.node.label ??
  g.effects.map((f) => `store_${f.field.node.label}`)[0] ??
  g.skeleton;
