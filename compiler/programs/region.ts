/**
 * The layer region: built once, then mapped. A map is pure and tells where each value went, and where it came
 * from.
 */
import {
  type Attrs,
  type Domain,
  type Graph,
  type Node,
  opOf,
  type Type,
  toposort,
  type Value,
  valueKey,
} from "../../ops/index.ts";
import { type BranchSpec, RegionBuilder, type Stored } from "../layers.ts";
import type { Model } from "../models/model.ts";

export type Rows = Type & { kind: "rows" };
/**
 * A layer as a graph: what enters it, what leaves it, what enters and leaves the matrix of each site, and
 * where that is one of each expert, those that rows chose.
 */
export interface Region {
  readonly h: Value;
  readonly out: Value;
  readonly entries: ReadonlyMap<string, Value>;
  readonly exits: ReadonlyMap<string, Value>;
  readonly choices: ReadonlyMap<string, Value>;
  /** What a branch made of a value: for rows whose slot lacks the branch the two are equal, bit for bit. */
  readonly wrapped: ReadonlyMap<string, { readonly before: Value; readonly method: string }>;
}
/** The same region after a map, and for each of its values the one it came from. */
export interface Mapped extends Region {
  readonly from: (v: Value) => Value;
}

/** Hidden states of rows of a domain, as they enter a layer. */
export const hiddenRows = (graph: Graph, model: Model, domain: Domain): Value =>
  graph.input(`layer/${domain}`, "h", { kind: "rows", domain, cols: model.hiddenSize });

/** Build the layer of a kind over the forward's rows, with these branches at their sites. */
export function buildLayer(
  graph: Graph,
  model: Model,
  kind: number,
  positions: number,
  stored: Stored,
  branches: readonly BranchSpec[],
): { readonly builder: RegionBuilder; readonly region: Region } {
  const builder = new RegionBuilder(graph, "layer", "T", stored, branches);
  const h = hiddenRows(graph, model, "T");
  const out = model.layer(builder, h, positions, kind);
  const { entries, exits, choices, wrapped } = builder;
  return { builder, region: { h, out, entries, exits, choices, wrapped } };
}

/** What rebuilding a graph changes: values that are replaced as they are met, and attributes. */
interface Change {
  readonly replace: ReadonlyMap<string, Value>;
  readonly attrs?: (node: Node) => Attrs;
  /** A value that stands for another once both are rebuilt. */
  readonly stands?: (v: Value) => Value | null;
}
/** Where each value that `roots` need is after the change. */
function rebuild(roots: readonly Value[], change: Change): Map<string, Value> {
  const done = new Map<string, Value>(change.replace);
  for (const node of toposort(roots)) {
    const ins = node.ins.map((v) => done.get(valueKey(v))!);
    const attrs = change.attrs?.(node) ?? node.attrs;
    const same = attrs === node.attrs && ins.every((v, i) => valueKey(v) === valueKey(node.ins[i]!));
    const outs = same
      ? node.outs.map((type, index): Value => ({ node, index, type }))
      : node.graph.make(opOf(node.op), ins, attrs, node.label);
    node.outs.forEach((type, index) => {
      const v: Value = { node, index, type };
      const other = change.stands?.(v);
      if (!done.has(valueKey(v))) done.set(valueKey(v), other ? done.get(valueKey(other))! : outs[index]!);
    });
  }
  return done;
}
/** Rebuild `roots` with some values replaced. */
export function substitute(roots: readonly Value[], replace: ReadonlyMap<string, Value>): Value[] {
  const done = rebuild(roots, { replace });
  return roots.map((v) => done.get(valueKey(v))!);
}
function mapRegion(region: Region, change: Change, readers: (v: Value) => Value): Mapped {
  const { out, entries, exits, choices } = region;
  const roots = [out, ...entries.values(), ...exits.values(), ...choices.values()];
  const done = rebuild(roots, change);
  const to = (v: Value): Value => done.get(valueKey(v))!;
  const all = (m: ReadonlyMap<string, Value>): Map<string, Value> =>
    new Map([...m].map(([name, v]) => [name, to(v)]));
  // Of the values that one came from, the one that readers see: from the region's end, the first on the way.
  const origin = new Map<string, Value>();
  const seen = new Set<Node>();
  const visit = (v: Value): void => {
    const { node } = readers(v);
    const meets = [v, ...node.outs.map((type, index): Value => ({ node, index, type }))];
    for (const m of meets) if (!origin.has(valueKey(to(m)))) origin.set(valueKey(to(m)), m);
    if (seen.has(node)) return;
    seen.add(node);
    node.ins.forEach(visit);
  };
  roots.forEach(visit);
  return {
    h: to(region.h),
    out: to(out),
    entries: all(entries),
    exits: all(exits),
    choices: all(choices),
    wrapped: new Map(
      [...region.wrapped].flatMap(([key, w]) => {
        const after = done.get(key);
        return after && valueKey(after) !== valueKey(to(w.before))
          ? [[valueKey(after), { before: to(w.before), method: w.method }] as const]
          : [];
      }),
    ),
    from: (v) => origin.get(valueKey(v))!,
  };
}
/** The region without the branches of some methods: what they made of a value is that value. */
export function without(region: Region, drops: (method: string) => boolean): Mapped {
  const before = (v: Value): Value | null => {
    const w = region.wrapped.get(valueKey(v));
    return w && drops(w.method) ? w.before : null;
  };
  const readers = (v: Value): Value => {
    const inner = before(v);
    return inner ? readers(inner) : v;
  };
  return mapRegion(region, { replace: new Map(), stands: before }, readers);
}
/** The region over the rows of a backward unit. */
export function onUnitRows(region: Region, h: Value): Mapped {
  const { domain } = h.type as Rows;
  const attrs = (node: Node): Attrs => ("domain" in node.attrs ? { ...node.attrs, domain } : node.attrs);
  return mapRegion(region, { replace: new Map([[valueKey(region.h), h]]), attrs }, (v) => v);
}
