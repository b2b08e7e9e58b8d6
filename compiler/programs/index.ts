/**
 * Regions → programs. A region is one graph with L instances (layer; a graph for each kind of layers) or one
 * (outer: embedding and head). Each program is what one command list entry runs: the forward, the pruned
 * backward in its two kept sets, the training head, the update.
 */
import { Graph, type Value } from "../../ops/index.ts";
import { isOf, kindOf, kindsOf, MAX_BRANCHES, WeftError } from "../../runtime/bundle.ts";
import type { AdapterMethod } from "../adapters/adapter.ts";
import { type BranchSpec, RegionBuilder, type SiteSpec, type Stored } from "../layers.ts";
import type { Model } from "../models/model.ts";
import type { Capacities } from "../target.ts";
import { type Fields, trainLayer } from "./backward.ts";
import { calibration, statisticsOf } from "./calibrate.ts";
import { embedTraining, headTraining, servingPrograms } from "./outer.ts";
import type { GraphProgram, Programs, SavedBytes, TrainClass } from "./program.ts";
import { buildLayer, hiddenRows, onUnitRows, without } from "./region.ts";

export * from "./program.ts";

export function buildPrograms(
  model: Model,
  c: Capacities,
  options: Stored & { methods: readonly AdapterMethod[]; train: readonly TrainClass[] },
): Programs {
  const { methods, train } = options;
  // Layers without branches declare the sites; methods then say where they have branches.
  const graph = new Graph();
  const kinds = Array.from({ length: kindsOf(model) }, (_, kind) => kind);
  const build = (kind: number, branches: readonly BranchSpec[]) =>
    buildLayer(graph, model, kind, c.context, options, branches);
  const plain = kinds.map((kind) => build(kind, []));
  const sites = ofKinds(
    plain.map(({ builder }) => builder.sites),
    (s) => s.module,
  ).map((s, index) => ({ ...s, index }));
  const branches = branchesOf(methods, sites, kinds, c);
  const layers = kinds.map((kind) => ({ kind, ...build(kind, branches) }));
  const outer = new RegionBuilder(graph, "outer", "T", options, []);
  const field: Fields = (name, cols) => graph.input("field", name, { kind: "field", cols });
  const unitRows = hiddenRows(graph, model, "W");

  const graphs: GraphProgram[] = [...servingPrograms(outer, model, layers[0]!.region.h, field)];
  const of = (kind: number): Pick<GraphProgram, "kinds"> => (kinds.length > 1 ? { kinds: [kind] } : {});
  // One forward serves requests and every class of adapters in training: its saves are skipped where no row
  // is trained.
  const stored = kinds.map(() => ({ shared: new Map<string, Value>(), own: [] as Value[] }));
  const saved: { [cls: TrainClass]: NonNullable<Programs["saved"][string]> } = {};
  for (const cls of train) {
    // Rows of a unit have one method's branches; full training is exclusive, and its rows have none.
    const full = cls === "full";
    const ofClass = branches.filter((b) => b.method.name === cls);
    const trained = layers.map(({ kind, region: whole }) => {
      const part = without(whole, (method) => method !== cls);
      const made = trainLayer(cls, kind, full ? { ...part, from: (v) => v } : part, unitRows, ofClass, field);
      const { fields, stores, backward } = made;
      if (full) graphs.push({ ...forward("forward.full", stores, part.out), ...of(kind) });
      else
        stores.forEach((s, i) => {
          const { shared, own } = stored[kind]!;
          if (fields[i]!.index === "ext_row") own.push(s);
          else if (!shared.has(fields[i]!.name)) shared.set(fields[i]!.name, s);
        });
      graphs.push(...backward.map((g) => ({ ...g, ...of(kind) })));
      return made;
    });
    saved[cls] = {
      fields: ofKinds(
        trained.map((t) => t.fields),
        (f) => f.name,
      ),
      bytes: meanBytes(
        Array.from({ length: model.layers }, (_, layer) => trained[kindOf(model, layer)]!.bytes),
      ),
    };
    // Adapters leave the head alone: one program computes its loss and gradient for all of them.
    if (full || !graphs.some((g) => g.name === "head_train"))
      graphs.push(headTraining(outer, model, full, field));
    if (full) graphs.push(embedTraining(outer, model, field));
  }
  const looks = methods.some((m) => m.calibrates && train.includes(m.name));
  const statistics = looks ? statisticsOf(sites) : [];
  if (looks)
    for (const [kind, { region }] of plain.entries()) {
      const own = statistics.filter((s) => isOf(s, kind));
      const made = calibration(onUnitRows(region, unitRows), own, field);
      graphs.push(...made.map((g) => ({ ...g, ...of(kind) })));
    }
  for (const { kind, region } of layers) {
    const { shared, own } = stored[kind]!;
    graphs.push({ ...forward("forward", [...shared.values(), ...own], region.out), ...of(kind) });
  }
  return {
    layerParams: ofKinds(
      layers.map(({ builder }) => builder.params),
      (p) => p.name,
    ),
    outerParams: outer.params,
    sites,
    branches,
    statistics,
    graphs,
    saved,
  };
}
/**
 * What layers of each kind have, together: things of one name are one thing. Of which kinds each is, where
 * not of all.
 */
function ofKinds<T extends { readonly kinds?: readonly number[] }>(
  lists: readonly (readonly T[])[],
  nameOf: (x: T) => string,
): T[] {
  const all = new Map<string, { readonly x: T; readonly kinds: number[] }>();
  for (const [kind, list] of lists.entries())
    for (const x of list) {
      const known = all.get(nameOf(x));
      if (known) known.kinds.push(kind);
      else all.set(nameOf(x), { x, kinds: [kind] });
    }
  return [...all.values()].map(({ x, kinds }) => (kinds.length < lists.length ? { ...x, kinds } : x));
}
const meanBytes = (of: readonly SavedBytes[]): SavedBytes => {
  const mean = (name: keyof SavedBytes): number => of.reduce((n, b) => n + b[name], 0) / of.length;
  return { naive: mean("naive"), read: mean("read"), all: mean("all"), boundary: mean("boundary") };
};

const forward = (name: string, stores: readonly Value[], out: Value): GraphProgram => ({
  name,
  region: "layer",
  block: "step",
  roots: [...stores, out],
  homes: [{ value: out, name: "h" }],
});

/**
 * Where each method has branches, and the room of each: as much as in a layer of any kind that has the site.
 * Throws WEFT_CAPACITY past what the mask words hold.
 */
function branchesOf(
  methods: readonly AdapterMethod[],
  sites: readonly SiteSpec[],
  kinds: readonly number[],
  c: Capacities,
): BranchSpec[] {
  const branches: BranchSpec[] = [];
  for (const method of methods) {
    const at = [method.at ?? "linear", ...(method.experts ? ["experts"] : [])];
    const all = sites.filter((s) => at.includes(s.kind));
    for (const site of all) {
      const capacities = kinds
        .filter((kind) => isOf(site, kind))
        .map((kind) => {
          const own = all.filter((s) => isOf(s, kind));
          return method.capacity(site, own, c);
        });
      const capacity = Math.max(...capacities);
      if (capacity > 0) {
        const tensors = method.tensors(site, capacity);
        branches.push({ index: branches.length, method, site, capacity, tensors });
      }
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
  return branches;
}
