/**
 * Nodes → groups, each of which becomes a body of a kernel. A heavy node (product, reduction, attention)
 * opens a group; pointwise nodes join the latest group that produces one of their operands and become its
 * epilogue, or float into their only consumer.
 */
import {
  type Domain,
  type Expr,
  isInput,
  type Node,
  type Op,
  opOf,
  readAt,
  sameValue,
  type Type,
  toposort,
  type Value,
  valueKey,
  type Write,
  walkExpr,
} from "../../ops/index.ts";
import { DROPOUT_BIT } from "../../runtime/bundle.ts";
import type { Operand } from "../kernels/body.ts";
import { graphKernels, type Skeleton, skeletonOf } from "../kernels/index.ts";
import { paired } from "./pairs.ts";

type Rows = Type & { kind: "rows" };

export class Group {
  readonly members = new Map<string, Value>();
  readonly reduces: Node[] = [];
  readonly effects: { readonly field: Value; readonly write: Write }[] = [];
  readonly after = new Set<Group>();
  /** A second product of the same rows, whose result the epilogue has too. */
  beside: Node | null = null;
  /** Its sums are of two columns so far apart: lower and upper halves of parts of a row. */
  half: number | null = null;
  /** It reads a matrix beside which it may read no other weights. */
  alone = false;
  constructor(
    readonly order: number,
    readonly skeleton: Skeleton,
    readonly heavy: Node | null,
    readonly domain: Domain,
    readonly cols: number,
    /** Mask bit without which it has nothing to do. */
    readonly condition: number | null,
  ) {}
  get epilogue(): "elements" | "rows" | null {
    return graphKernels[this.skeleton].epilogue;
  }
  /** May its sums be of columns so far apart? Targets go over lower ones in whole panels, of 8 and of 16. */
  halves(half: number): boolean {
    const { pairs, epilogue } = graphKernels[this.skeleton];
    const fits = half % 8 === 0 && this.cols % (2 * half) === 0 && this.cols % 32 === 0;
    const free = !this.alone && !this.beside && (this.half ?? half) === half;
    return Boolean(pairs) && epilogue === "elements" && free && fits;
  }
  /** May rows of this shape be computed on top of what the group produces? */
  takes(t: Rows): boolean {
    return (
      this.epilogue !== null &&
      this.domain === t.domain &&
      (this.cols === t.cols || this.isHalf(t) || (this.epilogue === "rows" && t.cols === 1))
    );
  }
  /** Are rows of this shape a half of the group's, so that it is at each of their columns once? */
  isHalf({ cols }: Rows): boolean {
    return this.half === cols && this.cols === 2 * cols;
  }
}
export interface Grouping {
  readonly groups: readonly Group[];
  /** Values recomputed where they are used. */
  readonly free: ReadonlySet<string>;
  /** Values that must be stored. */
  readonly needed: ReadonlySet<string>;
}

/** The field behind a plain gather, which a heavy node can read without a copy. */
function fieldGather(v: Value): Operand | null {
  if (!opOf(v.node.op).picks) return null;
  const src = v.node.ins[0]!;
  return src.type.kind === "field" && isInput(src)
    ? { value: src, index: String(v.node.attrs.index), undropped: null }
    : null;
}
/** What a node is of its operands, each read where it lies; null for what is no expression. */
const exprOf = ({ op, ins, attrs }: Node): Expr | null =>
  opOf(op).point?.({ ins, attrs, at: (i, w) => readAt(ins[i]!, w?.row, w?.col) }) ?? null;
/** Is a node a number that lies somewhere, unchanged? */
export const picksOne = (node: Node): boolean => exprOf(node)?.e === "load";
/** Does a node read a value as numbers of some rows and columns, and not by a loop or for an index? */
function loads(node: Node, key: string): boolean {
  let plain = true;
  walkExpr(exprOf(node)!, (e, values) => {
    const reads = values.filter((v) => valueKey(v) === key).length;
    if (reads > (e.e === "load" && valueKey(e.value) === key ? 1 : 0)) plain = false;
  });
  return plain;
}
const halfOf = (u: Node): number | null => opOf(u.op).halves?.of(u) ?? null;
const isDropout = (u: Node): boolean => opOf(u.op).drops ?? false;
/** How a heavy node reads an operand. */
export const operandOf = (v: Value): Operand =>
  fieldGather(v) ?? { value: v, index: null, undropped: isDropout(v.node) ? v.node.ins[0]! : null };

const isPoint = (u: Node): boolean => opOf(u.op).kind === "point";
const isHeavy = (u: Node): boolean => opOf(u.op).kind === "kernel";
const latest = (gs: Iterable<Group>): Group | null =>
  [...gs].reduce<Group | null>((a, g) => (!a || g.order > a.order ? g : a), null);

/**
 * Group the nodes that `roots` need; where `on` is false, every node has a group of its own. Beside a matrix
 * that is `alone` a group reads no other weights.
 */
export function groupNodes(roots: readonly Value[], on: boolean, alone: (v: Value) => boolean): Grouping {
  const sorted = toposort(roots);
  const rootKeys = new Set(roots.map(valueKey));
  const users = new Map<string, Node[]>();
  for (const node of sorted)
    for (const v of node.ins) users.set(valueKey(v), [...(users.get(valueKey(v)) ?? []), node]);
  const usesOf = (key: string): readonly Node[] => users.get(key) ?? [];
  const { order, firstOf } = on ? paired(sorted, usesOf) : { order: sorted, firstOf: new Map<Node, Node>() };

  // Values that only row reductions read are computed inside the reduction, not stored before it.
  const rowBound = new Set<string>();
  if (on)
    for (const node of [...order].reverse()) {
      const op = opOf(node.op);
      const key = `${node.id}.0`;
      const uses = usesOf(key);
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
  const free = new Set<string>();
  const needed = new Set<string>(rootKeys);
  const groupsOf = (v: Value): Set<Group> => place.get(valueKey(v)) ?? new Set();
  const depsOf = (vs: readonly Value[]): Set<Group> => new Set(vs.flatMap((v) => [...groupsOf(v)]));
  const open = (
    op: Op,
    { domain, cols }: Pick<Rows, "domain" | "cols">,
    deps: Iterable<Group>,
    more: { readonly heavy?: Node; readonly condition?: number } = {},
  ): Group => {
    const { heavy = null, condition = null } = more;
    const g = new Group(groups.length, skeletonOf(op), heavy, domain, cols, condition);
    for (const d of deps) g.after.add(d);
    groups.push(g);
    return g;
  };
  const join = (g: Group, node: Node, deps: Iterable<Group>): void => {
    g.alone ||= node.ins.some(alone);
    node.outs.forEach((type, index) => {
      const v: Value = { node, index, type };
      g.members.set(valueKey(v), v);
      place.set(valueKey(v), new Set([g]));
    });
    for (const d of deps) if (d !== g) g.after.add(d);
  };
  /** Does what a node is made of, where that is evaluated with it, read the group's weights? */
  const readsWeights = (node: Node): boolean =>
    node.ins.some(
      (v) =>
        v.type.kind === "weight" ||
        v.type.kind === "vector" ||
        (free.has(valueKey(v)) && readsWeights(v.node)),
    );
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

  function kernel(node: Node, op: Op): void {
    // A field's rows are read where they lie, also where a copy of them is made for others.
    const ins = node.ins.filter((v) => !fieldGather(v));
    const deps = depsOf(ins);
    for (const v of ins) {
      if (v.type.kind !== "rows") continue;
      needed.add(valueKey(v));
      if (isDropout(v.node)) needed.add(valueKey(v.node.ins[0]!));
    }
    const [t, a] = [node.outs[0]!, node.ins[0]!.type as Rows];
    const cols = t.kind === "rows" ? t.cols : a.cols;
    const first = firstOf.get(node);
    const [g] = first
      ? place.get(`${first.id}.0`)!
      : [open(op, { domain: a.domain, cols }, deps, { heavy: node })];
    if (first) g!.beside = node;
    join(g!, node, deps);
  }
  function reduce(node: Node, op: Op): void {
    const deps = depsOf(node.ins);
    const last = latest(deps);
    const x = node.ins[0]!;
    const t = x.type as Rows;
    const fits =
      on &&
      last?.epilogue === "rows" &&
      last.domain === t.domain &&
      last.cols === t.cols &&
      inRowBound(x, last);
    const g = fits ? last : open(op, t, deps);
    g.reduces.push(node);
    join(g, node, deps);
  }
  function effect(node: Node, op: Op): void {
    const field = node.ins[0]!;
    const written = new Set<Group>();
    const state = groupsOf(field);
    for (const write of op.writes!(node)) {
      const t = write.x.type as Rows;
      const from = latest(groupsOf(write.x));
      const usable =
        on &&
        from?.takes(t) &&
        !free.has(valueKey(write.x)) &&
        [...state].every((s) => s.order < from.order || s === from);
      const g = usable ? from! : open(op, t, [...groupsOf(write.x), ...state]);
      for (const s of state) if (s !== g) g.after.add(s);
      g.effects.push({ field, write });
      written.add(g);
    }
    place.set(`${node.id}.0`, new Set([...written, ...state]));
  }
  /** The group that a pointwise node joins or opens; null where it floats into its users. */
  function pointGroup(node: Node, op: Op, deps: ReadonlySet<Group>): Group | null {
    const last = latest(deps);
    const t = node.outs[0] as Rows;
    const self: Value = { node, index: 0, type: t };
    const key = valueKey(self);
    const uses = usesOf(key);
    if (rowBound.has(key)) return null;
    if (node.ins.some(alone)) return open(op, t, deps);
    if (isDropout(node) && uses.some(isHeavy)) return open(op, t, deps, { condition: DROPOUT_BIT });
    if (op.conditional) return open(op, t, deps, { condition: Number(node.attrs.branch) });
    const near = on && last?.condition === null && last.domain === t.domain ? last : null;
    if (
      near?.takes(t) &&
      !(near.alone && readsWeights(node)) &&
      canEvaluate(near, node.ins, op.remote ?? false)
    )
      return near;
    const half = halfOf(node);
    const inHalves = (x: string): boolean =>
      near!.members.has(x) && usesOf(x).every((u) => !opOf(u.op).remote || halfOf(u) === half);
    if (near && half && near.halves(half) && inHalves(valueKey(node.ins[0]!))) {
      near.half = half;
      return near;
    }
    const dropped = uses.some((u) => isDropout(u) && usesOf(`${u.id}.0`).some(isHeavy));
    const gathers = fieldGather(self) !== null;
    // What reads it elsewhere reads where it lies.
    const readable = (u: Node): boolean => !opOf(u.op).remote || (on && picksOne(node) && loads(u, key));
    const readDirectly = uses.every((u) => (isHeavy(u) ? gathers : !isPoint(u) || readable(u)));
    const indirectOnly = gathers && uses.every(isHeavy);
    const floats =
      !rootKeys.has(key) &&
      !dropped &&
      (indirectOnly || (on && readDirectly && (uses.length <= 1 || deps.size === 0 || t.cols === 1)));
    return floats ? null : open(op, t, deps);
  }
  function point(node: Node, op: Op): void {
    const deps = depsOf(node.ins);
    const g = pointGroup(node, op, deps);
    if (g) join(g, node, deps);
    else {
      free.add(`${node.id}.0`);
      place.set(`${node.id}.0`, deps);
    }
  }
  const handle: { readonly [K in Op["kind"]]: (node: Node, op: Op) => void } = {
    input: () => {},
    kernel,
    reduce,
    effect,
    point,
  };
  for (const node of order) {
    const op = opOf(node.op);
    handle[op.kind](node, op);
  }
  // Products of the same rows run beside it, and are made alike.
  for (const { half, heavy } of groups.filter((g) => g.half))
    for (const g of groups)
      if (g.heavy && sameValue(g.heavy.ins[0]!, heavy!.ins[0]!) && g.halves(half!)) g.half = half;
  return { groups, free, needed };
}
