/**
 * Nodes → kernels. A heavy node (product, reduction, attention) opens a group; pointwise nodes join the
 * latest group that produces one of their operands and become its epilogue, or float into their only
 * consumer. Independent groups with one skeleton then share a launch. Fusion changes launches and bytes,
 * never bits: an epilogue evaluates the same expression a kernel of its own would.
 */
import {
  type Domain,
  type Expr,
  inputName,
  isInput,
  type Node,
  opOf,
  readAt,
  type Type,
  toposort,
  type Value,
  valueKey,
} from "../ops/index.ts";
import { DROPOUT_BIT } from "../runtime/bundle.ts";

type Rows = Type & { kind: "rows" };

export type Store =
  /** A step value [rows, cols]. */
  | { readonly to: "rows"; readonly value: Value; readonly expr: Expr; readonly cols: number }
  /** field[index[row]], rows with a negative index are skipped. */
  | {
      readonly to: "field";
      readonly field: Value;
      readonly index: string;
      readonly expr: Expr;
      readonly cols: number;
    }
  /** Keys (part 0) or values (part 1) of the paged cache at each row's position. */
  | {
      readonly to: "kv";
      readonly kv: Value;
      readonly part: 0 | 1;
      readonly expr: Expr;
      readonly cols: number;
    };

/** A row operand of a heavy node: a step value, or rows of a stored field picked by a metadata array. */
export interface Operand {
  readonly value: Value;
  readonly index: string | null;
  /** Read instead of `value` in steps where no row drops anything: then the masked copy is never made. */
  readonly undropped: Value | null;
}
export interface Stat {
  readonly id: number;
  readonly reduce: "sum" | "max";
  readonly expr: Expr;
}
export type Skeleton =
  | "map"
  | "row"
  | "linear"
  | "linear_t"
  | "shrink"
  | "outer"
  | "col_sum"
  | "sampled"
  | "scatter_rows"
  | "attend"
  | "attend_dq"
  | "attend_dkv";
export interface Body {
  readonly name: string;
  readonly skeleton: Skeleton;
  readonly domain: Domain;
  readonly cols: number;
  readonly node: Node | null;
  readonly operands: readonly Operand[];
  readonly stats: readonly Stat[];
  readonly stores: readonly Store[];
  /** Mask bit (an adapter branch, or a flag) without which this body has nothing to do. */
  readonly bit: number | null;
  /** Values read, in arena terms (for liveness) and inputs (for hazards). */
  readonly reads: readonly Value[];
}
export interface Launch {
  readonly name: string;
  readonly bodies: readonly Body[];
}

class Group {
  readonly members = new Map<string, Value>();
  readonly reduces: Node[] = [];
  readonly stores: Store[] = [];
  readonly effects: { field: Value; x: Value; index: string; part: 0 | 1 | null }[] = [];
  readonly after = new Set<Group>();
  condition: number | null = null;
  constructor(
    readonly order: number,
    readonly skeleton: Skeleton,
    readonly heavy: Node | null,
    readonly domain: Domain,
    readonly cols: number,
  ) {}
}

const epilogueSkeletons = new Set<Skeleton>(["map", "row", "linear", "linear_t", "shrink"]);
/** Operands of a heavy node that are row tensors. */
const rowOperands = (node: Node): Value[] => node.ins.filter((v) => v.type.kind === "rows");

/** The field behind a plain gather, which a heavy node can read without a copy. */
function fieldGather(v: Value): Operand | null {
  if (v.node.op !== "gather_rows") return null;
  const src = v.node.ins[0]!;
  return src.type.kind === "field" && isInput(src)
    ? { value: src, index: String(v.node.attrs.index), undropped: null }
    : null;
}
const isDropout = (v: Value): boolean => v.node.op === "dropout";
function operandOf(v: Value): Operand {
  return fieldGather(v) ?? { value: v, index: null, undropped: isDropout(v) ? v.node.ins[0]! : null };
}

/** Group the nodes that `roots` need into launches. `fuse: false` gives every node a kernel of its own. */
export function fuse(
  roots: readonly Value[],
  options: { fuse: boolean; homes?: readonly { readonly value: Value; readonly name: string }[] },
): Launch[] {
  const order = toposort(roots);
  const rootKeys = new Set(roots.map(valueKey));
  const users = new Map<string, Node[]>();
  for (const node of order)
    for (const v of node.ins) users.set(valueKey(v), [...(users.get(valueKey(v)) ?? []), node]);

  // Values that only row reductions read are computed inside the reduction, not stored before it.
  const rowBound = new Set<string>();
  if (options.fuse)
    for (const node of [...order].reverse()) {
      const op = opOf(node.op);
      const key = `${node.id}.0`;
      const uses = users.get(key) ?? [];
      if (
        op.kind === "point" &&
        !op.remote &&
        uses.length &&
        !rootKeys.has(key) &&
        uses.every((u) => opOf(u.op).kind === "reduce" || rowBound.has(`${u.id}.0`))
      )
        rowBound.add(key);
    }

  const groups: Group[] = [];
  const place = new Map<string, Set<Group>>(); // value → groups that must have run before it can be read
  const free = new Set<string>(); // values recomputed where they are used
  const needed = new Set<string>(rootKeys);
  const groupsOf = (v: Value): Set<Group> => place.get(valueKey(v)) ?? new Set();
  const depsOf = (vs: readonly Value[]): Set<Group> => new Set(vs.flatMap((v) => [...groupsOf(v)]));
  const latest = (gs: Iterable<Group>): Group | null =>
    [...gs].reduce<Group | null>((a, g) => (!a || g.order > a.order ? g : a), null);
  const open = (
    skeleton: Skeleton,
    heavy: Node | null,
    domain: Domain,
    cols: number,
    deps: Iterable<Group>,
  ): Group => {
    const g = new Group(groups.length, skeleton, heavy, domain, cols);
    for (const d of deps) g.after.add(d);
    groups.push(g);
    return g;
  };
  const join = (g: Group, node: Node, deps: Iterable<Group>): void => {
    node.outs.forEach((type, index) => {
      const v: Value = { node, index, type };
      g.members.set(valueKey(v), v);
      place.set(valueKey(v), new Set([g]));
    });
    for (const d of deps) if (d !== g) g.after.add(d);
  };
  /**
   * May `g` evaluate an expression over `ins`? Not if a floating operand reads, elsewhere, what g itself is
   * producing.
   */
  const canEvaluate = (g: Group, ins: readonly Value[], remote: boolean): boolean =>
    ins.every((v) => !groupsOf(v).has(g) || (!remote && !free.has(valueKey(v))));
  const inRowBound = (v: Value, g: Group): boolean =>
    // a row-bound operand is inlined; it may use members of g, but not remotely
    rowBound.has(valueKey(v))
      ? v.node.ins.every((i) => inRowBound(i, g))
      : !groupsOf(v).has(g) || !free.has(valueKey(v));

  for (const node of order) {
    const op = opOf(node.op);
    const self: Value = { node, index: 0, type: node.outs[0]! };
    const deps = depsOf(node.ins);
    const last = latest(deps);
    if (op.kind === "input") continue;
    if (op.kind === "kernel") {
      for (const v of rowOperands(node)) {
        if (!fieldGather(v)) needed.add(valueKey(v));
        if (isDropout(v)) needed.add(valueKey(v.node.ins[0]!));
      }
      const t = node.outs[0]!;
      const a = node.ins[0]!.type as Rows;
      const g = open(node.op as Skeleton, node, a.domain, t.kind === "rows" ? t.cols : a.cols, deps);
      join(g, node, deps);
    } else if (op.kind === "reduce") {
      const x = node.ins[0]!;
      const t = x.type as Rows;
      const fits =
        options.fuse &&
        last?.skeleton === "row" &&
        last.domain === t.domain &&
        last.cols === t.cols &&
        inRowBound(x, last);
      const g = fits ? last! : open("row", null, t.domain, t.cols, deps);
      g.reduces.push(node);
      join(g, node, deps);
    } else if (op.kind === "effect") {
      const parts: { x: Value; part: 0 | 1 | null }[] =
        node.op === "kv_write"
          ? [
              { x: node.ins[1]!, part: 0 },
              { x: node.ins[2]!, part: 1 },
            ]
          : [{ x: node.ins[1]!, part: null }];
      const written = new Set<Group>();
      const state = groupsOf(node.ins[0]!);
      for (const { x, part } of parts) {
        const t = x.type as Rows;
        const g0 = latest(groupsOf(x));
        const usable =
          g0 &&
          !free.has(valueKey(x)) &&
          options.fuse &&
          epilogueSkeletons.has(g0.skeleton) &&
          (g0.cols === t.cols || (g0.skeleton === "row" && t.cols === 1)) &&
          g0.domain === t.domain &&
          [...state].every((s) => s.order < g0.order || s === g0);
        const g = usable ? g0 : open("map", null, t.domain, t.cols, [...groupsOf(x), ...state]);
        for (const s of state) if (s !== g) g.after.add(s);
        g.effects.push({ field: node.ins[0]!, x, index: String(node.attrs.index ?? ""), part });
        written.add(g);
      }
      place.set(valueKey(self), new Set([...written, ...state]));
    } else {
      const t = node.outs[0] as Rows;
      const key = valueKey(self);
      const uses = users.get(key) ?? [];
      if (rowBound.has(key)) {
        free.add(key);
        place.set(key, deps);
        continue;
      }
      const feedsHeavy = (u: Node): boolean => opOf(u.op).kind === "kernel";
      if (node.op === "dropout" && uses.some(feedsHeavy)) {
        const g = open("map", null, t.domain, t.cols, deps);
        g.condition = DROPOUT_BIT;
        join(g, node, deps);
        continue;
      }
      if (op.conditional) {
        const g = open("map", null, t.domain, t.cols, deps);
        g.condition = Number(node.attrs.branch);
        join(g, node, deps);
        continue;
      }
      const dropped = uses.some((u) => u.op === "dropout" && (users.get(`${u.id}.0`) ?? []).some(feedsHeavy));
      const shapeFits = (g: Group): boolean =>
        g.condition === null &&
        epilogueSkeletons.has(g.skeleton) &&
        g.domain === t.domain &&
        (g.cols === t.cols || (g.skeleton === "row" && t.cols === 1));
      if (options.fuse && last && shapeFits(last) && canEvaluate(last, node.ins, op.remote ?? false)) {
        join(last, node, deps);
        continue;
      }
      const readDirectly = uses.every((u) => {
        const k = opOf(u.op);
        return k.kind === "kernel" ? fieldGather(self) !== null : !(k.kind === "point" && k.remote);
      });
      const indirectOnly = fieldGather(self) !== null && uses.every((u) => opOf(u.op).kind === "kernel");
      if (
        !rootKeys.has(key) &&
        !dropped &&
        (indirectOnly ||
          (options.fuse && readDirectly && (uses.length <= 1 || deps.size === 0 || t.cols === 1)))
      ) {
        free.add(key);
        place.set(key, deps);
        continue;
      }
      join(open("map", null, t.domain, t.cols, deps), node, deps);
    }
  }

  // Expressions of everything a group stores; loads from other groups mark what must be stored.
  const bodies = new Map<Group, Body>();
  const plans = groups.map((g) => {
    const memo = new Map<string, Expr>();
    const reads = new Map<string, Value>();
    const touch = (e: Expr): void => {
      if (e.e === "load" || e.e === "expand" || e.e === "sparse") {
        const vs = e.e === "load" ? [e.value] : e.e === "expand" ? [e.u, e.factor] : [e.x, e.values, e.index];
        for (const v of vs) {
          reads.set(valueKey(v), v);
          if (!isInput(v)) needed.add(valueKey(v));
        }
      } else if (e.e === "call") e.args.forEach(touch);
      else if (e.e === "if") {
        touch(e.yes);
        touch(e.no);
      }
    };
    const exprOf = (v: Value): Expr => {
      const key = valueKey(v);
      const known = memo.get(key);
      if (known) return known;
      let e: Expr;
      const op = opOf(v.node.op);
      const own = g.members.has(key);
      if (isInput(v)) e = readAt(v);
      else if (own && op.kind === "kernel") e = { e: "acc" };
      else if (own && op.kind === "reduce") e = { e: "stat", id: g.reduces.indexOf(v.node) };
      else if (own || free.has(key))
        e = op.point!({
          ins: v.node.ins,
          attrs: v.node.attrs,
          at: (i, w) => (w ? readAt(v.node.ins[i]!, w.row, w.col) : exprOf(v.node.ins[i]!)),
        });
      else e = readAt(v);
      memo.set(key, e);
      return e;
    };
    const stats: Stat[] = g.reduces.map((node, id) => ({
      id,
      reduce: opOf(node.op).reduce!,
      expr: exprOf(node.ins[0]!),
    }));
    const effects = g.effects.map((f): Store => {
      const cols = (f.x.type as Rows).cols;
      let field = f.field;
      while (!isInput(field)) field = field.node.ins[0]!;
      return f.part === null
        ? { to: "field", field, index: f.index, expr: exprOf(f.x), cols }
        : { to: "kv", kv: field, part: f.part, expr: exprOf(f.x), cols };
    });
    for (const e of [...stats.map((s) => s.expr), ...effects.map((s) => s.expr)]) touch(e);
    return { g, exprOf, stats, effects, touch, reads };
  });
  for (const { g, exprOf, touch } of plans)
    for (const v of g.members.values()) if (opOf(v.node.op).kind === "point") touch(exprOf(v));

  for (const { g, exprOf, stats, effects, reads } of plans) {
    const stores: Store[] = [];
    for (const [key, v] of g.members) {
      if (needed.has(key) && v.type.kind === "rows" && !(g.heavy && !epilogueSkeletons.has(g.skeleton)))
        stores.push({ to: "rows", value: v, expr: exprOf(v), cols: v.type.cols });
    }
    const operands = g.heavy ? g.heavy.ins.map(operandOf) : [];
    for (const o of operands)
      for (const v of [o.value, ...(o.undropped ? [o.undropped] : [])]) reads.set(valueKey(v), v);
    const factor = g.heavy?.ins.find((v) => v.type.kind === "factor");
    const name =
      g.heavy?.label ??
      [...g.members.values()].at(-1)?.node.label ??
      g.effects.map((f) => `store_${f.field.node.label}`)[0] ??
      g.skeleton;
    bodies.set(g, {
      name,
      skeleton: g.skeleton,
      domain: g.domain,
      cols: g.cols,
      node: g.heavy,
      operands,
      stats,
      stores: [...stores, ...effects],
      bit: factor ? (factor.type as Type & { kind: "factor" }).branch : g.condition,
      reads: [...reads.values()],
    });
  }
  const live = groups.filter((g) => {
    const b = bodies.get(g)!;
    return b.stores.length > 0 || (g.heavy && !epilogueSkeletons.has(g.skeleton));
  });
  return merge(
    live,
    bodies,
    options.fuse,
    new Map((options.homes ?? []).map((h) => [valueKey(h.value), h.name])),
  );
}

/** Named storage a body reads or writes: what may not be reordered. */
function touches(b: Body, homes: ReadonlyMap<string, string>): { reads: Set<string>; writes: Set<string> } {
  const reads = new Set(b.reads.filter(isInput).map(inputName));
  const writes = new Set<string>();
  for (const s of b.stores) {
    if (s.to === "field") writes.add(inputName(s.field));
    if (s.to === "kv") writes.add(inputName(s.kv));
    const home = s.to === "rows" ? homes.get(valueKey(s.value)) : undefined;
    if (home) writes.add(home);
  }
  if (b.skeleton === "attend_dkv") writes.add("dkv");
  return { reads, writes };
}

/** Independent groups with the same skeleton and domain share a launch. */
function merge(
  groups: readonly Group[],
  bodies: ReadonlyMap<Group, Body>,
  on: boolean,
  homes: ReadonlyMap<string, string>,
): Launch[] {
  const launches: Group[][] = [];
  const at = new Map<Group, number>();
  for (const g of groups) {
    const b = bodies.get(g)!;
    const t = touches(b, homes);
    let earliest = 0;
    for (const d of g.after) earliest = Math.max(earliest, (at.get(d) ?? -1) + 1);
    let target = -1;
    if (on) {
      for (let i = launches.length - 1; i >= earliest; i--) {
        const here = launches[i]!;
        const clash = here.some((o) => {
          const u = touches(bodies.get(o)!, homes);
          return (
            [...t.writes].some((w) => u.reads.has(w) || u.writes.has(w)) ||
            [...t.reads].some((r) => u.writes.has(r))
          );
        });
        if (
          clash &&
          !(t.writes.has("kv") && here.every((o) => !touches(bodies.get(o)!, homes).reads.has("kv")))
        )
          break;
        if (
          here[0]!.skeleton === g.skeleton &&
          here[0]!.condition === g.condition &&
          here[0]!.domain === g.domain &&
          here.length < 8
        )
          target = i;
      }
    }
    if (target < 0) {
      launches.push([g]);
      target = launches.length - 1;
    } else launches[target]!.push(g);
    at.set(g, target);
  }
  // A home is written only after everything that reads what it held.
  launches.forEach((gs, i) => {
    for (const g of gs)
      for (const w of touches(bodies.get(g)!, homes).writes)
        for (const later of launches.slice(i))
          for (const o of later)
            if (o !== g && [...homes.values()].includes(w) && touches(bodies.get(o)!, homes).reads.has(w))
              throw new Error(
                `${bodies.get(g)!.name} overwrites ${w} before ${bodies.get(o)!.name} reads it`,
              );
  });
  return launches.map((gs) => {
    const bs = gs.map((g) => bodies.get(g)!);
    return { name: bs.map((b) => b.name).join("__"), bodies: bs };
  });
}
