/**
 * Regions → programs. A region is one graph with L instances (layer) or one (outer: embedding and head). Each
 * program is what one command list entry runs: the forward, the pruned backward in its two kept sets, the
 * training head, the update.
 */
import { Graph, type Value } from "../../ops/index.ts";
import { MAX_BRANCHES, WeftError } from "../../runtime/bundle.ts";
import type { AdapterMethod } from "../adapters/adapter.ts";
import { type BranchSpec, RegionBuilder, type SiteSpec, type Stored } from "../layers.ts";
import type { Model } from "../models/model.ts";
import type { Capacities } from "../target.ts";
import { type Fields, trainLayer } from "./backward.ts";
import { calibration, statisticsOf } from "./calibrate.ts";
import { embedTraining, headTraining, servingPrograms } from "./outer.ts";
import type { GraphProgram, Programs, TrainClass } from "./program.ts";
import { buildLayer, hiddenRows, onUnitRows, without } from "./region.ts";

export * from "./program.ts";

export function buildPrograms(
  model: Model,
  c: Capacities,
  options: Stored & { methods: readonly AdapterMethod[]; train: readonly TrainClass[] },
): Programs {
  const { methods, train } = options;
  // The layer without branches declares the sites; methods then say where they have branches.
  const graph = new Graph();
  const plain = buildLayer(graph, model, c.context, options, []);
  const { sites } = plain.builder;
  const branches = branchesOf(methods, sites, c);
  if (train.includes("full") && model.mixture)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "train",
      expected: "methods of adapters: full training is of dense models",
      found: "full",
      hint: "a mixture of experts learns by lora and s2ft",
    });
  const { region: whole, builder } = buildLayer(graph, model, c.context, options, branches);
  const outer = new RegionBuilder(graph, "outer", "T", options, []);
  const field: Fields = (name, cols) => graph.input("field", name, { kind: "field", cols });
  const unitRows = hiddenRows(graph, model, "W");

  const graphs: GraphProgram[] = [...servingPrograms(outer, model, whole.h, field)];
  // One forward serves requests and every class of adapters in training: its saves are skipped where no row
  // is trained.
  const shared = new Map<string, Value>();
  const own: Value[] = [];
  const saved: { [cls: TrainClass]: NonNullable<Programs["saved"][string]> } = {};
  for (const cls of train) {
    // Rows of a unit have one method's branches; full training is exclusive, and its rows have none.
    const full = cls === "full";
    const part = without(whole, (method) => method !== cls);
    const ofClass = branches.filter((b) => b.method.name === cls);
    const { fields, bytes, stores, backward } = trainLayer(
      cls,
      full ? { ...part, from: (v) => v } : part,
      unitRows,
      ofClass,
      field,
    );
    saved[cls] = { fields, bytes };
    if (full) graphs.push(forward("forward.full", stores, part.out));
    else
      stores.forEach((s, i) => {
        if (fields[i]!.index === "ext_row") own.push(s);
        else if (!shared.has(fields[i]!.name)) shared.set(fields[i]!.name, s);
      });
    graphs.push(...backward);
    // Adapters leave the head alone: one program computes its loss and gradient for all of them.
    if (full || !graphs.some((g) => g.name === "head_train"))
      graphs.push(headTraining(outer, model, full, field));
    if (full) graphs.push(embedTraining(outer, model, field));
  }
  const looks = methods.some((m) => m.calibrates && train.includes(m.name));
  const statistics = looks ? statisticsOf(sites) : [];
  if (looks) graphs.push(...calibration(onUnitRows(plain.region, unitRows), statistics, field));
  graphs.push(forward("forward", [...shared.values(), ...own], whole.out));
  return {
    layerParams: builder.params,
    outerParams: outer.params,
    sites,
    branches,
    statistics,
    graphs,
    saved,
  };
}

const forward = (name: string, stores: readonly Value[], out: Value): GraphProgram => ({
  name,
  region: "layer",
  block: "step",
  roots: [...stores, out],
  homes: [{ value: out, name: "h" }],
});

/**
 * Where each method has branches, and the room of each. Throws WEFT_CAPACITY past what the mask words hold.
 */
function branchesOf(
  methods: readonly AdapterMethod[],
  sites: readonly SiteSpec[],
  c: Capacities,
): BranchSpec[] {
  const branches: BranchSpec[] = [];
  for (const method of methods) {
    const kinds = [method.at ?? "linear", ...(method.experts ? ["experts"] : [])];
    const own = sites.filter((s) => kinds.includes(s.kind));
    for (const site of own) {
      const capacity = method.capacity(site, own, c);
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
