/**
 * Memory planning: a chamber offset for every parameter and saved field, an arena offset for every step
 * value. Pure arithmetic over lifetimes.
 */
import { inputName, isInput, type Value, valueKey } from "../ops/index.ts";
import {
  CANDIDATE_WORDS,
  type Chambers,
  hasCandidates,
  kindsOf,
  kvBlockWords,
  MOST_JOBS,
  matrixWords,
  mostStates,
  type ParamEntry,
  SPLIT,
  type TargetEntry,
} from "../runtime/bundle.ts";
import type { Address } from "./kernel.ts";
import type { Launch } from "./kernels/body.ts";
import { partsOf } from "./kernels/candidates.ts";
import { stateOf, storesResult } from "./kernels/index.ts";
import { partialWords } from "./kernels/text/wgsl_attend.ts";
import type { ParamSpec } from "./layers.ts";
import { splitsOf } from "./metadata.ts";
import type { Model } from "./models/model.ts";
import { placePages } from "./pages.ts";
import type { GraphProgram, Programs, TrainClass } from "./programs/index.ts";
import type { Rows } from "./programs/region.ts";
import type { Settings } from "./settings.ts";
import { align, type Capacities, type Target } from "./target.ts";

/** Of the outer matrices, those that devices may hold in shards: they have a row for each token. */
export const isAlone = (model: Model, { n }: { readonly n: number }): boolean => n === model.vocab;
/** Where the layers of each kind end: what only those of other kinds have may lie in the same place. */
class Ends {
  private readonly ends: number[];
  constructor(kinds: number) {
    this.ends = Array<number>(kinds).fill(0);
  }
  /** A place of so many words behind all else in layers of these kinds, or of all. */
  take(words: number, kinds: readonly number[] = [...this.ends.keys()]): number {
    const at = Math.max(...kinds.map((kind) => this.ends[kind]!));
    for (const kind of kinds) this.ends[kind] = at + words;
    return at;
  }
  get last(): number {
    return Math.max(...this.ends);
  }
}
/** `alone`: is a matrix a group of its own? */
function placeParams(
  specs: readonly ParamSpec[],
  panel: number,
  kinds: number,
  alone: (s: ParamSpec) => boolean,
): { params: ParamEntry[]; words: number; accumWords: number; own: Chambers[] } {
  const offsets = new Ends(kinds);
  const accums = new Ends(kinds);
  const own: Chambers[] = [];
  const params = specs.map((s): ParamEntry => {
    const p = { ...s, own: alone(s) ? own.length : null };
    const full = s.kind === "weight" ? matrixWords({ ...p, format: "f32" }, panel) : align(s.n, 8);
    const words = s.kind === "weight" ? matrixWords(p, panel) : full;
    const entry: ParamEntry = {
      ...s,
      branch: null,
      rows: "one",
      offset: 0,
      words: align(full, 4),
      accum: 0,
      own: p.own,
    };
    if (p.own !== null) {
      own.push({ weights: words, accum: (1 + mostStates) * full });
      return entry;
    }
    return {
      ...entry,
      offset: offsets.take(align(words), s.kinds),
      accum: accums.take((1 + mostStates) * align(full, 4), s.kinds),
    };
  });
  // Tiles read up to one panel past a tensor's last row.
  return { params, words: align(offsets.last + panel * 8), accumWords: align(accums.last), own };
}

export interface Layout {
  readonly params: {
    readonly layer: readonly ParamEntry[];
    readonly outer: readonly ParamEntry[];
    readonly factors: readonly ParamEntry[];
    readonly statistics: readonly ParamEntry[];
  };
  /** Of the arena, what outlives a program, and where it ends. */
  readonly homes: Omit<TargetEntry["homes"], "dh" | "dkv">;
  readonly persistent: number;
  /** What splits of attention leave, and parts of logits rows. */
  readonly partials: number;
  readonly candidateParts: number;
  readonly fields: ReadonlyMap<string, FieldPlace>;
  /** Of the arena, while a unit's backward runs: its rows of what a class keeps, by field. */
  readonly kept: ReadonlyMap<string, number>;
  /** By class of training: words of a row's records. */
  readonly records: Readonly<Record<string, { readonly boundary: number; readonly kept: number }>>;
  readonly slots: TargetEntry["slots"];
  readonly jobWords: number;
  readonly own: readonly Chambers[];
  readonly room: Omit<TargetEntry["room"], "arena">;
}

/** Offsets of everything that outlives one program, for one target. */
export function layoutOf(
  model: Model,
  programs: Programs,
  { capacities: c, kv, train }: Pick<Settings, "capacities" | "kv" | "train">,
  target: Target,
): Layout {
  const layer = placeParams(programs.layerParams, target.panel, kindsOf(model), () => false);
  // On a CPU a tensor of any size is one.
  const inShards = (s: ParamSpec): boolean =>
    target.name === "webgpu" && s.kind === "weight" && isAlone(model, s);
  const outer = placeParams(programs.outerParams, target.panel, 1, inShards);
  const { factors, slots, ...pages } = placePages(programs.branches, train);
  let statAt = 0;
  const statistics = programs.statistics.map((s): ParamEntry => {
    const words = align(s.channels, 4);
    statAt += words;
    return {
      name: s.name,
      kind: "vector",
      n: s.channels,
      k: 1,
      format: "f32",
      branch: null,
      rows: "one",
      offset: 0,
      words,
      accum: statAt - words,
      own: null,
    };
  });
  // A job trains one method, or looks at what channels carry.
  const jobWords = Math.max(pages.jobWords, align(statAt));
  const d = model.hiddenSize;
  const kvDim = model.kvHeads * model.headDim;
  const training = train.length > 0;
  const saved = savedRecords(programs, train, kindsOf(model));
  let at = 0;
  const home = (words: number): number => {
    const offset = at;
    at += align(words);
    return offset;
  };
  const homes = {
    h: home(c.tokens * d),
    logits: home(c.headRows * model.vocab),
    rotary: home(model.ropes.length * c.context * 2 * (model.ropes[0]?.inverseFrequencies.length ?? 0)),
    norms: home(MOST_JOBS * (model.layers + 3)),
    candidates:
      target.name === "webgpu" && hasCandidates(model.vocab) ? home(c.headRows * CANDIDATE_WORDS) : null,
  };
  const parts = partsOf(model.vocab);
  const ofParts = homes.candidates === null || parts < 2 ? 0 : c.headRows * parts * CANDIDATE_WORDS;
  const candidateParts = home(ofParts);
  const perHead = target.name === "webgpu" && c.context > SPLIT ? partialWords(model.headDim) : 0;
  const partials = home(splitsOf(c) * model.heads * perHead);
  const full = train.includes("full");
  return {
    params: { layer: layer.params, outer: outer.params, factors, statistics },
    homes,
    persistent: at,
    partials,
    candidateParts,
    fields: saved.fields,
    kept: keptPlaces(programs, train, kindsOf(model), at, c),
    records: saved.records,
    slots,
    jobWords,
    own: outer.own.map((words) => ({ ...words, accum: full ? words.accum : 0 })),
    room: {
      weights: { layer: layer.words, outer: outer.words },
      accum: { layer: full ? layer.accumWords : 0, outer: full ? outer.accumWords : 0 },
      block: kvBlockWords(model, kv),
      hidden: training ? align(d, 4) : 0,
      work: training ? align(d, 4) + align(2 * kvDim, 4) : 0,
    },
  };
}

/** A field of saved rows: where it lies in the record of its row, and how long that record is. */
interface FieldPlace {
  readonly offset: number;
  readonly stride: number;
}
/**
 * Saved rows are records, so that their number may be chosen at load. Two of a row: what bounds a unit, which
 * adapters of all classes share, and what its class alone keeps; full training, which runs alone, has both
 * for itself. Words are multiples of four.
 */
function savedRecords(
  programs: Programs,
  train: readonly TrainClass[],
  kinds: number,
): { fields: ReadonlyMap<string, FieldPlace>; records: Layout["records"] } {
  const places = new Map<string, { offset: number; record: string }>();
  const records = new Map<string, Ends>();
  const recordOf = (cls: TrainClass, index: string): string =>
    index === "save_row" ? (cls === "full" ? "full boundary" : "boundary") : `${cls} kept`;
  for (const cls of train)
    for (const f of programs.saved[cls]!.fields) {
      const record = recordOf(cls, f.index);
      if (places.has(f.name)) continue;
      const ends = records.get(record) ?? new Ends(kinds);
      records.set(record, ends);
      places.set(f.name, { offset: ends.take(align(f.cols, 4), f.kinds), record });
    }
  const words = (record: string): number => records.get(record)?.last ?? 0;
  return {
    fields: new Map([...places].map(([name, p]) => [name, { offset: p.offset, stride: words(p.record) }])),
    records: Object.fromEntries(
      train.map((cls) => [
        cls,
        { boundary: words(recordOf(cls, "save_row")), kept: words(recordOf(cls, "ext_row")) },
      ]),
    ),
  };
}

const rowsOf = (c: Capacities, domain: "T" | "R" | "W"): number =>
  ({ T: c.tokens, R: c.headRows, W: c.unitRows })[domain];
/** Of the arena: a tile may read a panel past the last row. */
const wordsOf = ({ domain, cols }: Pick<Rows, "domain" | "cols">, c: Capacities): number =>
  align(rowsOf(c, domain) * cols + 32);

/** One unit runs at a time, of one class and one kind of layers: places of others may be the same. */
function keptPlaces(
  programs: Programs,
  train: readonly TrainClass[],
  kinds: number,
  start: number,
  c: Capacities,
): ReadonlyMap<string, number> {
  const places = new Map<string, number>();
  for (const cls of train) {
    const ends = new Ends(kinds);
    for (const { name, cols, index, kinds: of } of programs.saved[cls]!.fields)
      if (index === "ext_row") places.set(name, start + ends.take(wordsOf({ domain: "W", cols }, c), of));
  }
  return places;
}

/** Arena offsets of a program's step values: two values overlap only if their lifetimes do not. */
export function placeValues(
  program: GraphProgram,
  launches: readonly Launch[],
  c: Capacities,
  layout: Layout,
): { places: ReadonlyMap<string, number>; end: number } {
  const homeOf = (name: string): number => layout.kept.get(name) ?? layout.homes[name as "h" | "logits"];
  const homes = new Map(program.homes.map((h) => [valueKey(h.value), homeOf(h.name)]));
  const kept = program.homes.filter((h) => layout.kept.has(h.name)).map((h) => h.value);
  const born = new Map<string, { v: Value; from: number; to: number }>();
  // What another program left is there up to its last reader.
  for (const v of kept) if (isInput(v)) born.set(valueKey(v), { v, from: -1, to: -1 });
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
  // What it makes for another program stays to its end.
  const taken = kept.map((v) => {
    const [start, { from, to }] = [homes.get(valueKey(v))!, born.get(valueKey(v))!];
    const end = start + wordsOf(v.type as Rows, c);
    return { start, end, from, to: isInput(v) ? to : launches.length };
  });
  let end = Math.max(layout.persistent, ...taken.map((t) => t.end));
  for (const [key, { v, from, to }] of born) {
    if (places.has(key)) continue;
    const words = wordsOf(v.type as Rows, c);
    const busy = taken.filter((x) => x.from <= to && from <= x.to).sort((x, y) => x.start - y.start);
    let start = layout.persistent;
    for (const x of busy) if (x.start < start + words && start < x.end) start = x.end;
    taken.push({ start, end: start + words, from, to });
    places.set(key, start);
    end = Math.max(end, start + words);
  }
  return { places, end };
}

/**
 * Address of any value a kernel of `program` touches. `work`: where, behind all step values, the rows of
 * gradients that cross units begin in the arena (the hidden state's, then the keys' and values').
 */
export function addresser(
  places: ReadonlyMap<string, number>,
  layout: Layout,
  work: { readonly dh: number; readonly dkv: number },
): (v: Value) => Address {
  const layer = new Map(layout.params.layer.map((p) => [p.name, p]));
  const outer = new Map(layout.params.outer.map((p) => [p.name, p]));
  const factors = new Map(layout.params.factors.map((p) => [p.name, p]));
  return (v) => {
    const t = v.type;
    const placed = places.get(valueKey(v));
    if (placed !== undefined)
      return { space: "arena", offset: placed, stride: t.kind === "rows" ? t.cols : 0 };
    const name = isInput(v) ? inputName(v) : stateOf(v.node);
    if (t.kind === "weight" || t.kind === "vector") {
      const p = layer.get(name) ?? outer.get(name);
      if (p) return { space: "weights", offset: p.offset, stride: 0, own: p.own };
    }
    if (t.kind === "experts") {
      const at = (e: number): number => layer.get(name.replace("{e}", String(e)))!.offset;
      return { space: "weights", offset: at(0), stride: t.count > 1 ? at(1) - at(0) : 0 };
    }
    if (t.kind === "factor") return { space: "adapters", offset: factors.get(name)!.offset, stride: t.cols };
    if (t.kind === "kv") return { space: "kv", offset: 0, stride: 0 };
    if (t.kind === "table") return { space: "arena", offset: layout.homes.rotary, stride: t.cols };
    if (t.kind === "rows" && name === "h") return { space: "arena", offset: layout.homes.h, stride: t.cols };
    if (t.kind === "field") {
      if (name === "dh" || name === "dkv")
        return { space: "arena", offset: work[name], stride: layout.room.work };
      // Losses of rows, one after another, lie behind full training's accumulators.
      if (name === "nll") return { space: "accum", offset: layout.room.accum.outer, stride: 1 };
      if (name === "hidden") return { space: "saved", offset: 0, stride: layout.room.hidden };
      const field = layout.fields.get(name);
      if (field) return { space: "saved", ...field };
    }
    throw new Error(`no address for ${v.node.label} (${t.kind} ${name})`);
  };
}
