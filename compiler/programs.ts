/**
 * Regions → programs. A region is one graph with L instances (layer) or one (outer: embedding and head). Each program is what one command list
 * entry runs: the forward, the pruned backward in its two kept sets, the training head, the update.
 */
import {
  colSum,
  crossEntropy,
  type Domain,
  Graph,
  gatherRows,
  inputName,
  make,
  mul,
  type Node,
  opOf,
  rowSum,
  storeRows,
  type Type,
  toposort,
  type Value,
  valueKey,
  zeros,
} from "../ops/index.ts";
import { type Format, WeftError } from "../runtime/bundle.ts";
import type { AdapterMethod } from "./adapters/adapter.ts";
import { vjp } from "./autodiff.ts";
import { type BranchSpec, type ParamSpec, RegionBuilder, type SiteSpec, tensorName } from "./layers.ts";
import { type BlockKind, extArray, MAX_BRANCHES } from "./metadata.ts";
import type { Model } from "./models/model.ts";
import type { Capacities } from "./target.ts";

type Rows = Type & { kind: "rows" };
/** What a bundle can train: an adapter method by name, or `full` for every base tensor (exclusive). */
export type TrainClass = string;
/** Classes of jobs that only look, and update nothing: statistics of activations; with the loss and its backward, of gradients. */
export const CALIBRATE = "calibrate";
export const CALIBRATE_GRADIENT = "calibrate_gradient";
export type RegionName = "layer" | "outer";

export interface SavedField {
  readonly name: string;
  readonly cols: number;
  /** `save_row`: kept in both modes, one field for all adapter methods; `ext_row`: kept only in mode `all`, a field of the class's own. */
  readonly index: "save_row" | "ext_row";
}
export interface GraphProgram {
  readonly name: string;
  readonly region: RegionName;
  readonly block: BlockKind;
  readonly roots: readonly Value[];
  /** Values with a fixed home: `h`, `logits`. */
  readonly homes: readonly { readonly value: Value; readonly name: string }[];
}
export interface SavedBytes {
  /** Every value of the forward. */
  readonly naive: number;
  /** What the pruned backward reads, when nothing is recomputed. */
  readonly read: number;
  readonly all: number;
  readonly boundary: number;
}
export interface Programs {
  readonly layerParams: readonly ParamSpec[];
  readonly outerParams: readonly ParamSpec[];
  readonly sites: readonly SiteSpec[];
  readonly branches: readonly BranchSpec[];
  /** Of the channels of each coupled group, sums over the rows of a calibration: x², or the squared norm of a row's gradient. What selectors look at. */
  readonly statistics: readonly {
    readonly name: string;
    readonly group: string;
    readonly channels: number;
  }[];
  readonly graphs: readonly GraphProgram[];
  /** Saved fields of a layer per class, and bytes a token a layer. */
  readonly saved: Readonly<Partial<Record<TrainClass, { fields: readonly SavedField[]; bytes: SavedBytes }>>>;
}

const isParameter = (v: Value): boolean => v.type.kind === "weight" || v.type.kind === "vector";
/** The base's tensors that a value is made of, in the order in which they were declared. */
const parametersOf = (v: Value): Value[] =>
  toposort([v])
    .filter((n) => n.op === "input")
    .sort((a, b) => a.id - b.id)
    .map((node): Value => ({ node, index: 0, type: node.outs[0]! }))
    .filter(isParameter);

/** Rebuild `roots` with some values replaced. */
export function substitute(roots: readonly Value[], replace: ReadonlyMap<string, Value>): Value[] {
  const done = new Map<string, Value>(replace);
  for (const node of toposort(roots)) {
    const ins = node.ins.map((v) => done.get(valueKey(v))!);
    const same = ins.every((v, i) => valueKey(v) === valueKey(node.ins[i]!));
    const outs = same
      ? node.outs.map((type, index): Value => ({ node, index, type }))
      : make(opOf(node.op), ins, node.attrs, node.label);
    outs.forEach((o, i) => {
      const key = `${node.id}.${i}`;
      if (!done.has(key)) done.set(key, o);
    });
  }
  return roots.map((v) => done.get(valueKey(v))!);
}

/** Values of the forward that the backward reads, fewest first kept: what is pointwise in kept values is recomputed, never stored. */
function keptSet(forward: ReadonlySet<Node>, roots: readonly Value[]): { read: Value[]; kept: Value[] } {
  const read = new Map<string, Value>();
  const order = toposort(roots);
  for (const node of order)
    if (!forward.has(node))
      for (const v of node.ins) if (forward.has(v.node) && v.type.kind === "rows") read.set(valueKey(v), v);
  const keep = new Set(read.keys());
  const recomputable = (v: Value): boolean => {
    if (keep.has(valueKey(v))) return true;
    const op = opOf(v.node.op);
    if (op.kind === "input") return v.type.kind !== "rows";
    return op.kind === "point" && !op.remote && v.node.ins.every(recomputable);
  };
  for (const node of [...order].reverse())
    for (const [key, v] of read)
      if (v.node === node && opOf(node.op).kind !== "input") {
        keep.delete(key);
        if (!recomputable(v)) keep.add(key);
      }
  return { read: [...read.values()], kept: [...read].filter(([key]) => keep.has(key)).map(([, v]) => v) };
}

/**
 * Where each value of `part` (a region with the branches of some methods) is in `whole` (the same region with more of them). What other methods'
 * branches made of a value counts as that value: for rows without those branches it is the same number.
 */
function correspond(part: Value, whole: Value, unwrap: (v: Value) => Value | null): (v: Value) => Value {
  const values = new Map<string, Value>();
  const nodes = new Map<Node, Node>();
  const walk = (p: Value, outer: Value): void => {
    if (values.has(valueKey(p))) return;
    let w = outer;
    for (let inner = unwrap(w); inner; inner = unwrap(w)) w = inner;
    if (p.node.op !== w.node.op || p.node.ins.length !== w.node.ins.length)
      throw new Error(`${p.node.op} (${p.node.label}) has no counterpart: found ${w.node.op}`);
    values.set(valueKey(p), outer);
    nodes.set(p.node, w.node);
    p.node.ins.forEach((v, i) => {
      walk(v, w.node.ins[i]!);
    });
  };
  walk(part, whole);
  return (v) => values.get(valueKey(v)) ?? { node: nodes.get(v.node)!, index: v.index, type: v.type };
}

/** A unit that only looks: `roots` over a layer rebuilt from what every adapter in training keeps of it, what bounds the recomputed part. */
function calibration(
  cls: string,
  roots: readonly Value[],
  h: Value,
  out: Value,
  kept: (name: string, cols: number) => Value,
): GraphProgram {
  const attend = toposort([out]).find((n) => n.op === "attend")!;
  const replace = new Map([[valueKey(attend.ins[1]!), attend.ins[1]!.node.ins[0]!]]);
  const edges: [Value, string][] = [
    [h, "h_in"],
    ...attend.outs.map((type, index): [Value, string] => [
      { node: attend, index, type },
      `${attend.label}${index ? `_${index}` : ""}`,
    ]),
  ];
  for (const [v, name] of edges)
    replace.set(valueKey(v), gatherRows(kept(name, (v.type as Rows).cols), "save_row", "W"));
  return {
    name: `backward.${cls}.boundary`,
    region: "layer",
    block: "unit",
    roots: substitute(roots, replace),
    homes: [],
  };
}

export function buildPrograms(
  model: Model,
  c: Capacities,
  options: { format: Format; methods: readonly AdapterMethod[]; train: readonly TrainClass[] },
): Programs {
  const { format, methods, train } = options;
  const graph = new Graph();
  if (train.includes("full") && format !== "f32")
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "train: full",
      expected: "weights stored as f32",
      found: format,
      hint: "compile with --format f32",
    });
  const region = "layer";
  const d = model.hiddenSize;
  const rows = (domain: Domain): Type => ({ kind: "rows", domain, cols: d });
  const build = (domain: Domain, apply: readonly BranchSpec[]) => {
    const b = new RegionBuilder(graph, region, domain, format, apply);
    const h = graph.input(`${region}/${domain}`, "h", rows(domain));
    return { b, h, out: model.layer(b, h, c.context) };
  };
  // A first build declares the sites; methods then say where they have branches.
  const { sites } = build("T", []).b;
  const branches: BranchSpec[] = [];
  for (const method of methods) {
    const own = sites.filter((s) => s.kind === (method.at ?? "linear"));
    for (const site of own) {
      const capacity = method.capacity(site, own, c);
      if (capacity > 0)
        branches.push({
          index: branches.length,
          method,
          site,
          capacity,
          tensors: method.tensors(site, capacity),
        });
    }
  }
  if (branches.length > MAX_BRANCHES)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "adapter methods",
      expected: `at most ${MAX_BRANCHES} method × site pairs`,
      found: String(branches.length),
      hint: "compile fewer methods",
    });
  const fwd = build("T", branches);
  const graphs: GraphProgram[] = [];

  const outer = new RegionBuilder(graph, "outer", "T", format, []);
  const embedded = model.embed(outer, "T");
  const field = (name: string, cols: number): Value => graph.input("field", name, { kind: "field", cols });
  const hT = graph.input(`${region}/T`, "h", rows("T"));
  const hidden = field("hidden", d);
  const dh = field("dh", d);

  graphs.push({
    name: "embed",
    region: "outer",
    block: "step",
    roots: [embedded],
    homes: [{ value: embedded, name: "h" }],
  });
  graphs.push({
    name: "stash",
    region: "outer",
    block: "step",
    roots: [storeRows(hidden, hT, "save_row")],
    homes: [],
  });
  const logits = model.head(outer, gatherRows(hT, "head_row", "R"));
  graphs.push({
    name: "head",
    region: "outer",
    block: "step",
    roots: [logits],
    homes: [{ value: logits, name: "logits" }],
  });
  // One forward serves requests and every class of adapters in training: its saves are skipped where no row is trained.
  const shared = new Map<string, Value>();
  const own: Value[] = [];
  const saved: Partial<Record<TrainClass, { fields: SavedField[]; bytes: SavedBytes }>> = {};
  for (const cls of train) {
    // Rows of a unit have one method's branches; full training is exclusive, and its rows have none.
    const ofClass = branches.filter((b) => b.method.name === cls);
    const part = build("T", ofClass);
    const unit = build("W", ofClass);
    const orderT = toposort([part.out]);
    const orderW = toposort([unit.out]);
    const forwardNodes = new Set(orderW);
    const inputs = orderW
      .filter((n) => n.op === "input")
      .map((node): Value => ({ node, index: 0, type: node.outs[0]! }));
    const trained = new Set(
      ofClass.flatMap((b) => b.tensors.filter((t) => t.trained).map((t) => tensorName(b, t.name))),
    );
    const trainable =
      cls === "full" ? inputs.filter(isParameter) : inputs.filter((v) => trained.has(inputName(v)));
    const dout = gatherRows(dh, "save_row", "W");
    const grads = vjp([[unit.out, dout]], [unit.h, ...trainable]);
    const dIn = grads.get(valueKey(unit.h))!;
    const paramGrads = trainable.flatMap((v) => grads.get(valueKey(v)) ?? []);
    const roots = [...paramGrads, dIn];

    // Kept sets. Attention is never rerun: its input, output and log-sum-exp bound what a unit recomputes.
    const attendNode = orderW.find((n) => n.op === "attend")!;
    const written = attendNode.ins[1]!;
    const boundary = [
      unit.h,
      { node: attendNode, index: 0, type: attendNode.outs[0]! },
      { node: attendNode, index: 1, type: attendNode.outs[1]! },
    ];
    const boundaryKeys = new Set(boundary.map(valueKey));
    const sets = keptSet(forwardNodes, roots);
    const extra = sets.kept.filter((v) => !boundaryKeys.has(valueKey(v)));
    const readToo = sets.read.filter((v) => !boundaryKeys.has(valueKey(v)));
    const full = cls === "full";
    const fieldFor = (v: Value): SavedField => {
      const edge = boundaryKeys.has(valueKey(v));
      const label = `${v === boundary[0] ? "h_in" : v.node.label}${v.index ? `_${v.index}` : ""}`;
      const name = edge
        ? `${full ? "full" : "adapter"}.${label}`
        : `${cls}.${label}_${orderW.indexOf(v.node)}`;
      return { name, cols: (v.type as Rows).cols, index: edge ? "save_row" : "ext_row" };
    };
    const inWhole = full
      ? (v: Value): Value => v
      : correspond(part.out, fwd.out, (v) => {
          const w = fwd.b.wrapped.get(valueKey(v));
          return w && w.method !== cls ? w.before : null;
        });
    const toT = (v: Value): Value => {
      const node = orderT[orderW.indexOf(v.node)]!;
      return inWhole({ node, index: v.index, type: node.outs[v.index]! });
    };
    const kept = [...boundary, ...extra];
    const fields = kept.map(fieldFor);
    const stores = kept.map((v, i) =>
      storeRows(
        field(fields[i]!.name, fields[i]!.cols),
        toT(v),
        fields[i]!.index === "save_row" ? "save_row" : extArray(cls),
      ),
    );
    if (full)
      graphs.push({
        name: "forward.full",
        region: "layer",
        block: "step",
        roots: [...stores, part.out],
        homes: [{ value: part.out, name: "h" }],
      });
    else
      stores.forEach((s, i) => {
        if (fields[i]!.index === "ext_row") own.push(s);
        else if (!shared.has(fields[i]!.name)) shared.set(fields[i]!.name, s);
      });

    for (const mode of ["all", "boundary"] as const) {
      const use = mode === "all" ? kept : boundary;
      const replace = new Map<string, Value>([[valueKey(written), written.node.ins[0]!]]);
      use.forEach((v, i) => {
        replace.set(valueKey(v), gatherRows(field(fields[i]!.name, fields[i]!.cols), fields[i]!.index, "W"));
      });
      const out = substitute(roots, replace);
      const back = storeRows(dh, out[out.length - 1]!, "save_row");
      graphs.push({
        name: `backward.${cls}.${mode}`,
        region: "layer",
        block: "unit",
        roots: [...out.slice(0, -1), back],
        homes: [],
      });
    }
    const bytes = (vs: readonly Value[]): number => vs.reduce((n, v) => n + 4 * (v.type as Rows).cols, 0);
    const everything = orderW
      .filter((n) => n.op !== "input")
      .flatMap((node) =>
        node.outs.flatMap((type, index) => (type.kind === "rows" ? [{ node, index, type }] : [])),
      );
    saved[cls] = {
      fields,
      bytes: {
        naive: bytes(everything),
        read: bytes([...boundary, ...readToo]),
        all: bytes(kept),
        boundary: bytes(boundary),
      },
    };

    // Adapters leave the head alone: one program computes its loss and gradient for all of them.
    if (!full && graphs.some((g) => g.name === "head_train")) continue;
    const x = graph.input("head", "hidden_rows", rows("R"));
    const trainLogits = model.head(outer, x);
    const { nll, dlogits } = crossEntropy(trainLogits);
    const outerTrainable = full ? parametersOf(trainLogits) : [];
    const headGrads = vjp([[trainLogits, dlogits]], [x, ...outerTrainable]);
    const cleared = storeRows(dh, zeros(graph, "W", d), "save_row");
    const dx = storeRows(cleared, headGrads.get(valueKey(x))!, "head_dst");
    const told = storeRows(field("nll", 1), nll, "head_dst");
    const headRoots = [dx, told, ...outerTrainable.map((v) => headGrads.get(valueKey(v))!)];
    graphs.push({
      name: full ? "head_train.full" : "head_train",
      region: "outer",
      block: "unit",
      roots: substitute(headRoots, new Map([[valueKey(x), gatherRows(hidden, "head_row", "R")]])),
      homes: [],
    });
    if (full) {
      const rows = model.embed(outer, "W");
      const wanted = parametersOf(rows);
      const grads = vjp([[rows, gatherRows(dh, "save_row", "W")]], wanted);
      graphs.push({
        name: "embed_backward.full",
        region: "outer",
        block: "unit",
        roots: wanted.map((v) => grads.get(valueKey(v))!),
        homes: [],
      });
    }
  }
  const statistics = methods.some((m) => m.calibrates && train.includes(m.name))
    ? sites
        .filter((s) => s.coupling?.axis === "in")
        .map((s) => ({
          name: `calibrate.${s.coupling!.group}`,
          group: s.coupling!.group,
          channels: s.inFeatures,
          module: s.module,
        }))
    : [];
  if (statistics.length) {
    const { b, h, out } = build("W", []);
    const kept = (name: string, cols: number): Value => field(`adapter.${name}`, cols);
    const square = (v: Value): Value => mul(v, v);
    const over = (each: (x: Value, module: string) => Value): Value[] =>
      statistics.map((s) =>
        colSum(
          each(b.entries.get(s.module)!, s.module),
          graph.input(region, s.name, { kind: "vector", n: s.channels }),
        ),
      );
    graphs.push(calibration(CALIBRATE, over(square), h, out, kept));
    // ‖∂ loss of a token / ∂ column c of W‖² is x[c]² · ‖∂ loss / ∂ W·x‖².
    const grads = vjp(
      [[out, gatherRows(dh, "save_row", "W")]],
      [h, ...statistics.map((s) => b.exits.get(s.module)!)],
    );
    const sums = over((x, module) =>
      mul(square(x), rowSum(square(grads.get(valueKey(b.exits.get(module)!))!))),
    );
    graphs.push(
      calibration(
        CALIBRATE_GRADIENT,
        [...sums, storeRows(dh, grads.get(valueKey(h))!, "save_row")],
        h,
        out,
        kept,
      ),
    );
  }
  graphs.push({
    name: "forward",
    region: "layer",
    block: "step",
    roots: [...shared.values(), ...own, fwd.out],
    homes: [{ value: fwd.out, name: "h" }],
  });
  return {
    layerParams: fwd.b.params,
    outerParams: outer.params,
    sites,
    branches,
    statistics,
    graphs,
    saved,
  };
}
