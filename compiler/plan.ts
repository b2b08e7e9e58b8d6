/**
 * Memory planning: a chamber offset for every parameter and saved field, an arena offset for every step
 * value. Pure arithmetic over lifetimes.
 */
import { inputName, isInput, type Type, type Value, valueKey } from "../ops/index.ts";
import {
  BLOCK,
  type Format,
  mostStates,
  type ParamEntry,
  packedWords,
  type TargetPlan,
  WeftError,
} from "../runtime/bundle.ts";
import type { Address } from "./kernel.ts";
import type { Launch } from "./kernels/body.ts";
import { stateOf, storesResult } from "./kernels/index.ts";
import { type ParamSpec, tensorName } from "./layers.ts";
import type { Model } from "./models/model.ts";
import type { GraphProgram, Programs, TrainClass } from "./programs/index.ts";
import type { Capacities, Target } from "./target.ts";

/** 256-byte alignment, in words. */
export const align = (words: number, to = 64): number => Math.ceil(words / to) * to;

function placeParams(
  specs: readonly ParamSpec[],
  panel: number,
  format: Format,
): { params: ParamEntry[]; words: number; accumWords: number } {
  let offset = 0;
  let accum = 0;
  const params = specs.map((s): ParamEntry => {
    const full = s.kind === "weight" ? packedWords("f32", s.n, s.k, panel) : align(s.n, 8);
    const words = s.kind === "weight" ? packedWords(format, s.n, s.k, panel) : full;
    const entry: ParamEntry = {
      name: s.name,
      kind: s.kind,
      n: s.n,
      k: s.k,
      branch: null,
      rows: "one",
      offset,
      words: align(full, 4),
      accum,
    };
    offset += align(words);
    accum += (1 + mostStates) * align(full, 4);
    return entry;
  });
  // Tiles read up to one panel past a tensor's last row.
  return { params, words: align(offset + panel * 8), accumWords: align(accum) };
}

export interface Layout {
  readonly params: {
    readonly layer: readonly ParamEntry[];
    readonly outer: readonly ParamEntry[];
    readonly factors: readonly ParamEntry[];
    readonly statistics: readonly ParamEntry[];
  };
  readonly classes: TargetPlan["classes"];
  readonly homes: TargetPlan["homes"];
  readonly persistent: number;
  readonly slotWords: number;
  readonly jobWords: number;
  readonly fieldOffsets: ReadonlyMap<string, number>;
}

/** Offsets of everything that outlives one program, for one target. */
export function layoutOf(
  model: Model,
  programs: Programs,
  c: Capacities,
  target: Target,
  format: Format,
  train: readonly TrainClass[],
): Layout {
  const layer = placeParams(programs.layerParams, target.panel, format);
  const outer = placeParams(programs.outerParams, target.panel, format);
  // A slot holds one adapter and a job trains one method, so methods share the words.
  let slotWords = 0;
  let jobWords = 0;
  const factors = [...new Set(programs.branches.map((b) => b.method.name))].flatMap((method) => {
    let slot = 0;
    let accum = 0;
    const entries = programs.branches
      .filter((b) => b.method.name === method)
      .flatMap((b) =>
        b.tensors.map((t): ParamEntry => {
          const n = t.rows === "rank" ? b.capacity : 1;
          const words = align(n * t.cols, 4);
          const entry: ParamEntry = {
            name: tensorName(b, t.name),
            kind: "factor",
            n,
            k: t.cols,
            branch: b.index,
            rows: t.rows,
            offset: slot,
            words,
            accum: t.trained ? accum : -1,
          };
          slot += words;
          if (t.trained) accum += (1 + mostStates) * words;
          return entry;
        }),
      );
    slotWords = Math.max(slotWords, align(slot));
    if (train.includes(method)) jobWords = Math.max(jobWords, align(accum));
    return entries;
  });
  let statAt = 0;
  const statistics = programs.statistics.map((s): ParamEntry => {
    const words = align(s.channels, 4);
    statAt += words;
    return {
      name: s.name,
      kind: "vector",
      n: s.channels,
      k: 1,
      branch: null,
      rows: "one",
      offset: 0,
      words,
      accum: statAt - words,
    };
  });
  jobWords = Math.max(jobWords, align(statAt));
  const full = train.includes("full");
  // Saved fields: adapters in training share what every method keeps, and have fields of their own; full
  // training runs alone, over the same words.
  const fieldOffsets = new Map<string, number>([["hidden", 0]]);
  let savedLayer = 0;
  let adapters = 0;
  for (const cls of train) {
    let at = cls === "full" ? 0 : adapters;
    for (const f of programs.saved[cls]!.fields) {
      if (fieldOffsets.has(f.name)) continue;
      fieldOffsets.set(f.name, at);
      at += align(f.cols * (f.index === "save_row" ? c.savedRows : c.keptRows));
    }
    if (cls !== "full") adapters = at;
    savedLayer = Math.max(savedLayer, at);
  }
  const d = model.hiddenSize;
  const kvDim = model.kvHeads * model.headDim;
  let at = 0;
  const home = (words: number): number => {
    const offset = at;
    at += align(words);
    return offset;
  };
  const training = train.length > 0 ? 1 : 0;
  const homes = {
    h: home(c.tokens * d),
    logits: home(c.headRows * model.vocab),
    dh: home(training * c.savedRows * d),
    dkv: home(training * c.savedRows * 2 * kvDim),
    nll: home(training * c.savedRows),
    rotary: home(c.context * model.headDim),
    norms: home(c.jobs * (model.layers + 3)),
  };
  const slots = c.slots + 1;
  return {
    params: { layer: layer.params, outer: outer.params, factors, statistics },
    classes: {
      weights: { layer: layer.words, outer: outer.words },
      kv: { layer: c.blocks * 2 * kvDim * BLOCK, outer: 64 },
      saved: { layer: Math.max(64, savedLayer), outer: Math.max(64, training * align(c.savedRows * d)) },
      adapters: { layer: Math.max(64, slots * slotWords), outer: 64 },
      accum: {
        layer: Math.max(64, full ? layer.accumWords : 0, c.jobs * jobWords),
        outer: Math.max(64, full ? outer.accumWords : 0),
      },
      tables: { layer: align(64 + slots * programs.branches.length * 2), outer: 128 },
    },
    homes,
    persistent: at,
    slotWords,
    jobWords,
    fieldOffsets,
  };
}

const rowsOf = (c: Capacities, domain: "T" | "R" | "W"): number =>
  ({ T: c.tokens, R: c.headRows, W: c.unitRows })[domain];

/** Arena offsets of a program's step values: two values overlap only if their lifetimes do not. */
export function placeValues(
  program: GraphProgram,
  launches: readonly Launch[],
  c: Capacities,
  layout: Layout,
): { places: ReadonlyMap<string, number>; end: number } {
  const homes = new Map(
    program.homes.map((h) => [valueKey(h.value), layout.homes[h.name as keyof Layout["homes"]]]),
  );
  const born = new Map<string, { v: Value; from: number; to: number }>();
  launches.forEach((launch, i) => {
    for (const b of launch.bodies) {
      const made: Value[] = b.stores.flatMap((s) => (s.to === "rows" ? [s.value] : []));
      if (storesResult(b))
        b.node!.outs.forEach((type, index) => {
          if (type.kind === "rows") made.push({ node: b.node!, index, type });
        });
      for (const v of made) born.set(valueKey(v), { v, from: i, to: i });
    }
  });
  launches.forEach((launch, i) => {
    for (const b of launch.bodies)
      for (const v of b.reads) {
        const life = born.get(valueKey(v));
        if (life) life.to = Math.max(life.to, i);
        else if (!isInput(v) && v.type.kind === "rows" && !homes.has(valueKey(v)))
          throw new Error(`${program.name}: ${v.node.label} is read by ${b.name} but never stored`);
      }
  });
  const places = new Map<string, number>(homes);
  const taken: { start: number; end: number; from: number; to: number }[] = [];
  let end = layout.persistent;
  for (const [key, { v, from, to }] of born) {
    if (places.has(key)) continue;
    const t = v.type as Type & { kind: "rows" };
    // A tile may read a panel past the last row.
    const words = align(rowsOf(c, t.domain) * t.cols + 32);
    const busy = taken.filter((x) => x.from <= to && from <= x.to).sort((a, b) => a.start - b.start);
    let start = layout.persistent;
    for (const x of busy) if (x.start < start + words && start < x.end) start = x.end;
    taken.push({ start, end: start + words, from, to });
    places.set(key, start);
    end = Math.max(end, start + words);
  }
  return { places, end };
}

/** Address of any value a kernel of `program` touches. */
export function addresser(places: ReadonlyMap<string, number>, layout: Layout): (v: Value) => Address {
  const layer = new Map(layout.params.layer.map((p) => [p.name, p]));
  const outer = new Map(layout.params.outer.map((p) => [p.name, p]));
  const factors = new Map(layout.params.factors.map((p) => [p.name, p]));
  return (v) => {
    const t = v.type;
    const placed = places.get(valueKey(v));
    if (placed !== undefined) return { cls: "arena", offset: placed, stride: t.kind === "rows" ? t.cols : 0 };
    const name = isInput(v) ? inputName(v) : stateOf(v.node);
    if (t.kind === "weight" || t.kind === "vector") {
      const p = layer.get(name) ?? outer.get(name);
      if (p) return { cls: "weights", offset: p.offset, stride: 0 };
    }
    if (t.kind === "factor") return { cls: "adapters", offset: factors.get(name)!.offset, stride: t.cols };
    if (t.kind === "kv") return { cls: "kv", offset: 0, stride: 0 };
    if (t.kind === "table") return { cls: "arena", offset: layout.homes.rotary, stride: t.cols };
    if (t.kind === "rows" && name === "h") return { cls: "arena", offset: layout.homes.h, stride: t.cols };
    if (t.kind === "field") {
      if (name === "dh" || name === "dkv" || name === "nll")
        return { cls: "arena", offset: layout.homes[name], stride: t.cols };
      const offset = layout.fieldOffsets.get(name);
      if (offset !== undefined) return { cls: "saved", offset, stride: t.cols };
    }
    throw new Error(`no address for ${v.node.label} (${t.kind} ${name})`);
  };
}

/** Every chamber must fit one binding; the error names the knob. */
export function checkLimits(layout: Layout, arenaWords: number, target: Target): void {
  const knobs = {
    weights: "the model (use --format f16)",
    kv: "capacities.blocks",
    saved: "capacities.savedRows",
    adapters: "capacities.slots or rank",
    accum: "capacities.jobs or rank",
    tables: "capacities.slots",
  };
  const check = (what: string, words: number, knob: string): void => {
    if (words * 4 > target.bindingBytes)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: `target ${target.name}: ${what}`,
        expected: `at most ${target.bindingBytes} bytes in one binding`,
        found: `${words * 4} bytes`,
        hint: `lower ${knob}`,
      });
  };
  for (const [cls, w] of Object.entries(layout.classes))
    check(cls, Math.max(w.layer, w.outer), knobs[cls as keyof typeof knobs]);
  check("arena", arenaWords, "capacities.tokens, headRows or savedRows");
}
