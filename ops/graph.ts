/**
 * Values, nodes and op records: the graph that every pass reads and writes. Nodes are immutable and
 * hash-consed; equality is identity.
 */
import { col as colIx, type Expr, type Ix, load, row as rowIx } from "./expr.ts";

/**
 * Row domains are named, equal by name and never by size: forward tokens `T`, logits rows `R`, rows of a
 * backward unit `W`.
 */
export type Domain = "T" | "R" | "W";

export type Type =
  /** f32 [domain, cols], a step value. */
  | { readonly kind: "rows"; readonly domain: Domain; readonly cols: number }
  /**
   * A base matrix [n, k] (output, input), packed in panels over n. `format` names how it is stored; it means
   * the same numbers in every kernel.
   */
  | { readonly kind: "weight"; readonly n: number; readonly k: number; readonly format: string }
  /** Base matrices [n, k], one an expert, one after another. */
  | {
      readonly kind: "experts";
      readonly count: number;
      readonly n: number;
      readonly k: number;
      readonly format: string;
    }
  /** A base vector [n], f32. */
  | { readonly kind: "vector"; readonly n: number }
  /**
   * A tensor of an adapter branch (one method at one site), slot-indexed: [slot][rows][cols]; `rows` is the
   * most a slot can have.
   */
  | { readonly kind: "factor"; readonly rows: number; readonly cols: number; readonly branch: number }
  /** Rows addressed by an explicit index (saved activations, dh): f32 [capacity, cols]. */
  | { readonly kind: "field"; readonly cols: number }
  /** Paged keys and values: [block][k|v][kv head][32][head_dim] numbers of a format. */
  | { readonly kind: "kv"; readonly heads: number; readonly headDim: number; readonly format: string }
  /** A constant f32 table [rows, cols] (rotary cosines and sines). */
  | { readonly kind: "table"; readonly rows: number; readonly cols: number }
  /** Gradient accumulator with the layout of the parameter it belongs to. */
  | { readonly kind: "grad"; readonly of: string };

export type Attrs = Readonly<Record<string, string | number | boolean>>;

export interface Node {
  readonly graph: Graph;
  /** Distinct in its graph, in the order in which nodes were made. */
  readonly id: number;
  readonly op: string;
  readonly ins: readonly Value[];
  readonly attrs: Attrs;
  readonly outs: readonly Type[];
  /** Dotted name for generated text: `q_proj`, `mlp.gate`. */
  readonly label: string;
}
export interface Value {
  readonly node: Node;
  readonly index: number;
  readonly type: Type;
}

/**
 * How a pointwise op reads its operands: `at(i)` at its own coordinates (broadcasting), or elsewhere with
 * explicit indices.
 */
export interface PointCtx {
  readonly at: (i: number, where?: { row?: Ix; col?: Ix }) => Expr;
  readonly ins: readonly Value[];
  readonly attrs: Attrs;
}

/** An element of a lower half of columns and that of the upper half, both in terms of the first's column. */
export type Halves = readonly [lower: Expr, upper: Expr];

/**
 * Everything about an op. Exactly one of `point`, `reduce`, `kernel`, `effect`, `input` says how it is
 * computed.
 */
export interface Op {
  readonly name: string;
  readonly kind: "point" | "reduce" | "kernel" | "effect" | "input";
  readonly infer: (ins: readonly Type[], attrs: Attrs) => Type[];
  /**
   * One thunk per input, or null where no gradient flows. Autodiff calls only those on a path to a trainable
   * tensor: pruning is structural.
   */
  readonly grad?: (node: Node, douts: readonly (Value | null)[]) => ((() => Value) | null)[];
  /** Nothing differentiates it: gradients are made of it, or it is taken of what is not trained. */
  readonly constant?: true;
  /** For `point`: one element as an expression. */
  readonly point?: (ctx: PointCtx) => Expr;
  /** For `point`: reads some operand away from (row, col), so that operand must be materialised. */
  readonly remote?: boolean;
  /**
   * For a `remote` one that reads its first operand at two columns: how far apart, those of lower and upper
   * halves of parts of a row; null: elsewhere too. And both elements as expressions, of the operand there.
   */
  readonly halves?: {
    readonly of: (node: Node) => number | null;
    readonly point: (ctx: Pick<PointCtx, "ins" | "attrs">, x: Halves) => Halves;
  };
  /** For `point`: `attrs.branch` names the adapter branch without which it has nothing to compute. */
  readonly conditional?: boolean;
  /** For `point`: rows of its operand as they are, picked by the metadata array `attrs.index`. */
  readonly picks?: boolean;
  /** For `point`: its operand unchanged in every row of steps in which no row has dropout. */
  readonly drops?: boolean;
  /** For `reduce`: how two partial results combine, and the neutral element. */
  readonly reduce?: "sum" | "max";
  /** Never run again in a backward: what it gives is kept of every row that is trained. */
  readonly edge?: true;
  /** For `effect`: what it writes into its first operand. */
  readonly writes?: (node: Node) => readonly Write[];
  /** For `kernel` and `effect`: the meaning in f64. */
  readonly eval?: (node: Node, ins: readonly Float64Array[], ctx: EvalCtx) => Float64Array[];
  /**
   * Operand shapes for the registry tests: `rows` cols, vectors as `-n`. Elementwise ops get theirs by arity.
   */
  readonly samples?: readonly Sample[];
}
/**
 * Rows that an effect writes: to field[index[row]] where that index is not negative, or as keys (part 0) or
 * values (1) of the paged cache at each row's position.
 */
export type Write =
  | { readonly to: "field"; readonly x: Value; readonly index: string }
  | { readonly to: "kv"; readonly x: Value; readonly part: 0 | 1 };
export interface Sample {
  readonly ins: readonly Type[];
  readonly attrs?: Attrs;
  /** Keeps random operands inside the op's domain. */
  readonly within?: (x: number) => number;
}
export interface EvalCtx {
  readonly rows: (domain: Domain) => number;
  readonly meta: (name: string, i: number | null) => number;
  readonly metaf: (name: string, i: number | null) => number;
  readonly slot: (s: number, branch: number) => { rank: number; scale: (rankRow: number) => number };
  readonly layer: number;
  /** A constant of the layer. */
  readonly ofLayer: (name: LayerConstant) => number;
}
/** Integers that differ between layers of one graph, a word each in the layer's table. */
export type LayerConstant = "window" | "rope";

const registry = new Map<string, Op>();
export function defineOp(op: Op): Op {
  if (registry.has(op.name)) throw new Error(`op ${op.name} is defined twice`);
  registry.set(op.name, op);
  return op;
}
export function opOf(name: string): Op {
  const op = registry.get(name);
  if (!op) throw new Error(`no op named ${name}`);
  return op;
}
export const allOps = (): Op[] => [...registry.values()];

/**
 * Where nodes are made: one a compile. A node is built once for each op, attributes and operands, so that
 * equal values are one value. Nodes know their graph, so what is made of values is made where they are.
 */
export class Graph {
  private nextId = 0;
  private readonly interned = new Map<string, Node>();

  /** Build (or find) a node. Inputs are never shared by content, only by name. */
  make(op: Op, ins: readonly Value[], attrs: Attrs = {}, label = op.name): Value[] {
    const key = `${op.name}|${JSON.stringify(attrs)}|${ins.map(valueKey).join(",")}`;
    let node = op.kind === "effect" ? undefined : this.interned.get(key);
    if (!node) {
      const outs = op.infer(
        ins.map((v) => v.type),
        attrs,
      );
      node = { graph: this, id: this.nextId++, op: op.name, ins: [...ins], attrs, outs, label };
      this.interned.set(key, node);
    }
    const n = node;
    return n.outs.map((type, index) => ({ node: n, index, type }));
  }
  make1(op: Op, ins: readonly Value[], attrs: Attrs = {}, label?: string): Value {
    return this.make(op, ins, attrs, label)[0]!;
  }
  /**
   * A named input of a region: weight, vector, factor, field, state, table or row tensor. Inputs with the
   * same scope and name are one value.
   */
  input(scope: string, name: string, type: Type): Value {
    const key = `input|${scope}|${name}`;
    let node = this.interned.get(key);
    if (!node) {
      const attrs = { name };
      node = { graph: this, id: this.nextId++, op: inputOp.name, ins: [], attrs, outs: [type], label: name };
      this.interned.set(key, node);
    }
    return { node, index: 0, type: node.outs[0]! };
  }
}
/** Build (or find) a node where its first operand is. */
export const make = (op: Op, ins: readonly Value[], attrs: Attrs = {}, label?: string): Value[] =>
  ins[0]!.node.graph.make(op, ins, attrs, label);
export const make1 = (op: Op, ins: readonly Value[], attrs: Attrs = {}, label?: string): Value =>
  make(op, ins, attrs, label)[0]!;
export const valueKey = (v: Value): string => `${v.node.id}.${v.index}`;
export const sameValue = (a: Value, b: Value): boolean => a.node === b.node && a.index === b.index;

const inputOp = defineOp({ name: "input", kind: "input", infer: () => [] });
export const isInput = (v: Value): boolean => v.node.op === "input";
export const inputName = (v: Value): string => String(v.node.attrs.name);

/** Nodes that `roots` need, operands before users. */
export function toposort(roots: readonly Value[]): Node[] {
  const seen = new Set<Node>();
  const order: Node[] = [];
  const stack: { node: Node; next: number }[] = [];
  for (const root of roots) {
    if (seen.has(root.node)) continue;
    seen.add(root.node);
    stack.push({ node: root.node, next: 0 });
    while (stack.length) {
      const top = stack[stack.length - 1]!;
      const child = top.node.ins[top.next++];
      if (!child) {
        order.push(top.node);
        stack.pop();
      } else if (!seen.has(child.node)) {
        seen.add(child.node);
        stack.push({ node: child.node, next: 0 });
      }
    }
  }
  return order;
}

/**
 * Element of an operand at the consumer's coordinates: vectors broadcast over rows, one-column rows over
 * columns.
 */
export function readAt(v: Value, row: Ix = rowIx, col: Ix = colIx): Expr {
  const t = v.type;
  if (t.kind === "vector") return load(v, { ix: "int", v: 0 }, col);
  if (t.kind === "rows" && t.cols === 1) return load(v, row, { ix: "int", v: 0 });
  return load(v, row, col);
}

export function showType(t: Type): string {
  switch (t.kind) {
    case "rows":
      return `${t.domain}×${t.cols}`;
    case "weight":
      return `${t.format}[${t.n},${t.k}]`;
    case "experts":
      return `${t.format}[${t.count},${t.n},${t.k}]`;
    case "vector":
      return `f32[${t.n}]`;
    case "factor":
      return `slot${t.branch}[${t.rows},${t.cols}]`;
    case "field":
      return `field×${t.cols}`;
    case "kv":
      return `${t.format} kv[${t.heads}×${t.headDim}]`;
    case "table":
      return `table[${t.rows},${t.cols}]`;
    case "grad":
      return `grad(${t.of})`;
  }
}
/** Stable text of a graph: the same graph prints the same, whatever else was built before. */
export function print(roots: readonly Value[]): string {
  const names = new Map<Node, string>();
  const nameOf = (v: Value): string => names.get(v.node)! + (v.node.outs.length > 1 ? `#${v.index}` : "");
  let n = 0;
  const lines: string[] = [];
  for (const node of toposort(roots)) {
    const name = node.op === "input" ? `%${node.attrs.name}` : `%${n++}`;
    names.set(node, name);
    if (node.op === "input") continue;
    const args = node.ins.map(nameOf);
    const attrs = Object.keys(node.attrs).length ? ` ${JSON.stringify(node.attrs)}` : "";
    const types = node.outs.map(showType).join(", ");
    lines.push(`${name} = ${node.op}(${args.join(", ")})${attrs} : ${types}  // ${node.label}`);
  }
  lines.push(`return ${roots.map(nameOf).join(", ")}`);
  return lines.join("\n");
}
