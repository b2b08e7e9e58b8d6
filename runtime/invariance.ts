/**
 * Law 4, checked on the device that will serve: the bits of a row depend on its sequence and its adapter, not
 * on the batch that it is in. Every kernel family runs rows alone, in pieces and in one step, and what they
 * leave is compared bit for bit. Layers of a kind share their kernels, so the first two stand for all, or as
 * many as it takes to have one of each kind: the check takes no longer for a deep model. It drives a host of
 * its own, which is thrown away. One file: what is played, and what is compared of it, for serving and for
 * training.
 */
import { AdapterStore, type Generation } from "./adapters.ts";
import {
  BLOCK,
  CANDIDATE_WORDS,
  COUNTER,
  EVENT,
  EVENT_WORDS,
  IGNORE,
  KIND,
  type Manifest,
  NONE,
  type ParamEntry,
  pagesAtMost,
  ROW_TILE,
  type Sizes,
  SPLIT,
  sizeNames,
} from "./bundle.ts";
import { type AdapterContent, defaultConfig, placedIn, virtualTokens } from "./content.ts";
import { chamberWords, type Device, type Families, type Range } from "./device.ts";
import { sha256 } from "./hash.ts";
import type { Host } from "./host.ts";
import { initialContent } from "./initial.ts";
import { writeConstants } from "./load.ts";
import { isNode } from "./node.ts";
import { mix } from "./random.ts";
import { startIn } from "./requests.ts";
import type { ModelView } from "./selectors.ts";
import { groupOf, groupsOf } from "./shards.ts";

/**
 * `verified`: every family gives a row the same bits. `single-family`: kernels for few and for many rows
 * differ on this device, so one of the two serves all steps, and with that the law holds. `off`: it does not
 * hold here.
 */
export type Invariance = "verified" | "single-family" | "off";

export interface Verdict {
  readonly invariance: Invariance;
  readonly families: Families;
  /** By class of training that was checked since the load: does the law hold? */
  readonly trained: Map<string, boolean>;
}
/** What was found, by bundle (its manifest names all other files by hash) and device. */
export type Verdicts = Map<string, Verdict>;

/** Layers that are played: the first two, or up to where there was one of each kind. */
const layersPlayed = ({ layers, perLayer: { kind = [] } }: Manifest["model"]): number =>
  Math.max(Math.min(2, layers), ...kind.map((of) => kind.indexOf(of) + 1));
/**
 * Rows of the short sequence: prime to the rows of a tile, so that copies of it side by side are at every
 * place of one.
 */
const SHORT = 5;
/** Words of a gradient that are compared. */
const SAMPLE = 4096;

/** A host for these capacities, with such families. */
export type OpenHost = (manifest: Manifest, device: Device, families: Families) => Promise<Host>;

/**
 * Check the device, unless `verdicts` knows it, and open the host that serves on it with such families.
 * Where kernels of training come later, so does their check.
 */
export async function settleInvariance(
  manifest: Manifest,
  device: Device,
  openHost: OpenHost,
  verdicts: Verdicts,
): Promise<{ verdict: Verdict; host: Host }> {
  const open = (families: Families): Promise<Host> => openHost(manifest, device, families);
  const { info, lanes, families } = device;
  const bundle = await sha256(JSON.stringify(manifest));
  const key = JSON.stringify([bundle, info, lanes, families]);
  let verdict = verdicts.get(key);
  if (!verdict) {
    verdict = await judge(manifest, device, open);
    if (isNode && device.tunes && verdict.invariance === "verified") {
      const { tuned } = await import("./tuning.ts");
      verdict = { ...verdict, families: { fewRows: await tuned(manifest, device, openHost, bundle) } };
    }
    verdicts.set(key, verdict);
  }
  return { verdict, host: await open(verdict.families) };
}
/** Is a class's training checked when its first job begins, and not at load? */
export const checkedLater = ({ train }: Manifest, device: Device): boolean =>
  device.later !== null && !train.includes("full");

/**
 * Does the law hold for the training of a class? Its kernels run on memory of their own, so what the engine
 * does meanwhile, and what it keeps, is not touched.
 */
export async function trainsAlike(
  manifest: Manifest,
  device: Device,
  cls: string,
  families: Families,
  openHost: OpenHost,
): Promise<boolean> {
  const { capacities: c, branches, model } = manifest;
  const layers = layersPlayed(model);
  const virtual = Math.max(0, ...branches.map((b) => (b.method === cls ? b.capacity : 0)));
  const rows = 2 * (virtual + c.quantum + SHORT);
  const few = { blocks: Math.ceil(rows / BLOCK) + 2, sequences: 2, slots: 1, jobs: 1 };
  const most = { ...few, savedRows: rows, keptRows: rows, pages: pagesAtMost(manifest, device.plan) };
  const sizes = Object.fromEntries(sizeNames.map((n) => [n, Math.min(c[n], most[n])])) as Sizes;
  const own = { ...manifest, capacities: { ...c, ...sizes } };
  const apart = await device.later!.apart(sizes, layers);
  try {
    writeConstants(own, apart, layers);
    const host = await openHost(own, apart, families);
    return await new Check(own, apart, host).training([cls]);
  } finally {
    await apart.dispose();
  }
}
async function judge(
  manifest: Manifest,
  device: Device,
  open: (families: Families) => Promise<Host>,
): Promise<Verdict> {
  const holds = async (families: Families): Promise<boolean> =>
    new Check(manifest, device, await open(families)).holds(
      checkedLater(manifest, device) ? [] : manifest.train,
    );
  const { families } = device;
  if (await holds(families)) return { invariance: "verified", families, trained: new Map() };
  // Where rows of both kinds occur, one kind may do for all.
  const single: Families = { fewRows: 0 };
  if (families.fewRows && (await holds(single)))
    return { invariance: "single-family", families: single, trained: new Map() };
  return { invariance: "off", families, trained: new Map() };
}

/** A request of the check. */
interface Play {
  readonly ids: readonly number[];
  readonly adapter?: Generation | undefined;
  /** `score`: logits of every row; `generate`: of the last. */
  readonly kind: "score" | "generate";
}
/** What a request left: the last hidden state of each row, and logits by position. */
interface Left {
  readonly hidden: Float32Array[];
  readonly logits: Map<number, Float32Array>;
}
export const idsOf = (n: number, vocab: number): number[] =>
  Array.from({ length: n }, (_, i) => mix(n, i) % vocab);
const same = (a: Float32Array, b: Float32Array): boolean =>
  a.length === b.length && a.every((x, i) => Object.is(x, b[i]));
export const sameLeft = (a: Left, b: Left): boolean =>
  a.hidden.every((row, i) => same(row, b.hidden[i]!)) &&
  [...a.logits].every(([at, row]) => same(row, b.logits.get(at)!));

/** What a device was given to play: of all layers. */
export interface List {
  readonly commands: Int32Array;
  readonly meta: Uint32Array;
}
export class Check {
  /** The last list. */
  list: List | null = null;
  private readonly store: AdapterStore;
  private readonly layers: number;
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly host: Host,
  ) {
    this.store = new AdapterStore(manifest, device, host, () => manifest.base);
    this.layers = layersPlayed(manifest.model);
  }

  async holds(train: readonly string[]): Promise<boolean> {
    try {
      return (
        (await this.rows()) &&
        (await this.lengths()) &&
        (await this.adapters()) &&
        (await this.training(train))
      );
    } finally {
      this.clean();
    }
  }

  /** Rows alone, in pieces, and beside copies of themselves: each place of a tile, each tail. */
  private async rows(): Promise<boolean> {
    const { context, tokens, headRows, sequences } = this.manifest.capacities;
    const n = Math.min(SHORT, context);
    const one: Play = { ids: idsOf(n, this.manifest.model.vocab), kind: "score" };
    const [alone] = await this.play([one], 1);
    for (const budget of [2, 3, n]) {
      const [pieces] = await this.play([one], budget);
      if (!sameLeft(alone!, pieces!)) return false;
    }
    const copies = Math.max(1, Math.min(Math.floor(Math.min(tokens, headRows) / n), sequences, 8));
    const together = await this.play(Array<Play>(copies).fill(one), tokens);
    return together.every((left) => sameLeft(alone!, left));
  }

  /**
   * One prompt in the largest steps and in small ones, whose last has one row: kernels for few rows and for
   * many, and contexts past a split of attention.
   */
  private async lengths(): Promise<boolean> {
    const { context, tokens, blocks } = this.manifest.capacities;
    const most = Math.min(context, blocks * BLOCK) - 1;
    const rows = Math.min(tokens, 37);
    const tile = this.device.families.fewRows === null ? 0 : ROW_TILE;
    const wanted = Math.min(most, (context > SPLIT ? SPLIT : 0) + tile + SHORT);
    const over = (wanted - 1) % rows;
    const n = over && wanted + rows - over <= most ? wanted + rows - over : wanted - over;
    if (n < 1) return true;
    const one: Play = { ids: idsOf(n, this.manifest.model.vocab), kind: "generate" };
    // Large steps of equal size, so that the last rows are in one too.
    const [large] = await this.play([one], Math.ceil(n / Math.ceil(n / tokens)));
    const [small] = await this.play([one], rows);
    return sameLeft(large!, small!);
  }

  /** An adapter of random numbers of each method: alone row by row, and all in one batch with the base. */
  private async adapters(): Promise<boolean> {
    const { capacities, model, methods } = this.manifest;
    const names = Object.keys(methods);
    for (let at = 0; at < names.length; at += capacities.slots) {
      const group: Generation[] = [];
      for (const name of names.slice(at, at + capacities.slots))
        group.push(this.store.publish(name, await randomContent(this.manifest, name)));
      const plays = [undefined, ...group].map(
        (adapter): Play => ({ ids: idsOf(SHORT, model.vocab), adapter, kind: "generate" }),
      );
      const alone: Left[] = [];
      for (const p of plays) alone.push((await this.play([p], 1))[0]!);
      const mixed = await this.play([...plays, ...plays], capacities.tokens);
      if (!mixed.every((left, i) => sameLeft(alone[i % plays.length]!, left))) return false;
      for (const g of group) this.store.remove(g.name);
    }
    return true;
  }

  /**
   * Gradients of classes: whole windows, packed units and all kept; and pieces, single quanta and
   * recomputing.
   */
  async training(classes: readonly string[]): Promise<boolean> {
    for (const cls of classes) {
      const index = this.manifest.train.indexOf(cls);
      // A budget of more rows than a step has: a unit takes all that there is.
      const whole = await this.gradients(index, cls, 1e6, true);
      const pieces = await this.gradients(index, cls, 7, false);
      if (!whole.every((g, i) => same(g, pieces[i]!))) return false;
    }
    return true;
  }
  private async gradients(
    index: number,
    cls: string,
    budget: number,
    keep: boolean,
  ): Promise<Float32Array[]> {
    const { manifest, device, host, store } = this;
    const { capacities: c, model, methods } = manifest;
    const { exports } = host;
    const lane = device.lanes - 1;
    const content = cls === "full" ? null : await randomContent(manifest, cls);
    const ranges = this.gradientRanges(cls);
    for (const r of ranges) device.clear(r);
    exports.jobOpen(0, index, 0);
    if (content) store.wantSlot(0, content);
    const virtual = virtualTokens(manifest, content);
    const longest = Math.min(c.context, c.savedRows, c.blocks * BLOCK);
    // One sequence of several quanta, and a short one beside it where there is room.
    const lengths = [Math.min(longest, virtual + c.quantum + SHORT), virtual + SHORT].slice(0, c.sequences);
    host.offer(0).set(lengths);
    exports.jobOffer(0, lengths.length, lengths.length, keep ? 1 : 0, 0);
    const dropout = content && methods[cls]!.dropout ? 0.1 : 0;
    const events = host.events(lane, exports.decide(lane)).slice();
    for (let i = 0; i < events.length; i += EVENT_WORDS) {
      if (events[i] === EVENT.hold) store.fill(events[i + 2]!, content!, lane);
      if (events[i] !== EVENT.feed) continue;
      lengths.slice(0, events[i + 2]).forEach((n, row) => {
        const seq = host.micro(0)[row]!;
        const ids = idsOf(n, model.vocab);
        host.tokens(seq).set(ids.map((id, i) => (i < virtual ? 0 : id)));
        host.labels(seq).set(ids.map((id, i) => (i < virtual ? IGNORE : (id + 1) % model.vocab)));
        exports.setRow(seq, 1 / n, dropout ? 1 + n : 0, dropout);
      });
    }
    for (let done = false; !done; ) {
      const { events } = await this.step(lane, budget);
      for (let i = 0; i < events.length; i += 4) done ||= events[i] === EVENT.microDone;
    }
    exports.jobClose(0);
    return device.readAll(ranges);
  }
  /** Where a class's gradients gather, or the first words of them. */
  private gradientRanges(cls: string): Range[] {
    const { plan, lanes } = this.device;
    const { layers } = this.manifest.model;
    const of = (params: readonly ParamEntry[], group: number): Range[] =>
      params
        .filter((p) => p.accum >= 0)
        .map((p) => ({
          space: "accum",
          group: groupOf(p, group),
          offset: p.accum,
          words: Math.min(SAMPLE, p.words),
          lane: lanes - 1,
        }));
    const own = plan.factors.filter((p) => this.manifest.branches[p.branch!]!.method === cls);
    const inner = cls === "full" ? plan.layerParams : own;
    const outer = cls === "full" ? of(plan.outerParams, layers) : [];
    return [...outer, ...Array.from({ length: this.layers }, (_, l) => of(inner, l)).flat()];
  }

  /** Play requests to their end, in steps of at most `budget` rows. */
  async play(plays: readonly Play[], budget: number): Promise<Left[]> {
    const { manifest, host, store } = this;
    const { exports } = host;
    const live = new Map<number, Left>();
    const left = plays.map((): Left => ({ hidden: [], logits: new Map() }));
    /** Those that wait, by ticket. */
    const waiting = new Map<number, number>();
    plays.forEach(({ ids, adapter, kind }, i) => {
      const virtual = virtualTokens(manifest, adapter?.shape ?? null);
      const length = virtual + ids.length;
      const limit = length + (kind === "generate" ? 1 : 0);
      waiting.set(store.submit(KIND[kind], length, limit, virtual, adapter ?? null, NONE, 0), i);
      if (adapter) store.pin(adapter);
    });
    /** Those that the host lets in. */
    const admit = (): void => {
      const events = host.events(0, exports.decide(0)).slice();
      for (let i = 0; i < events.length; i += EVENT_WORDS) {
        const [type, a, at] = [events[i], events[i + 1]!, events[i + 2]!];
        if (type === EVENT.load) store.load(a, at, 0);
        else {
          const { ids: prompt, adapter, kind } = plays[waiting.get(a)!]!;
          const virtual = virtualTokens(manifest, adapter?.shape ?? null);
          startIn(host, at, { kind, prompt, said: 0, virtual, sampling: {}, seed: null });
          live.set(at, left[waiting.get(a)!]!);
          waiting.delete(a);
        }
      }
    };
    for (admit(); live.size; admit()) {
      const { rows, hidden, logits, events } = await this.step(0, budget);
      rows.forEach((seq, r) => {
        live.get(seq)!.hidden.push(hidden[r]!);
      });
      const { vocab } = manifest.model;
      for (let i = 0; i < events.length; i += 4) {
        const [type, seq, at, row] = [events[i], events[i + 1]!, events[i + 2]!, events[i + 3]!];
        const values = (): Float32Array => logits.slice(row * vocab, (row + 1) * vocab);
        if (type === EVENT.scored) live.get(seq)!.logits.set(at, values());
        if (type === EVENT.token) live.get(seq)!.logits.set(NONE, values());
        if (type === EVENT.finished) live.delete(seq);
      }
    }
    for (const { adapter } of plays) if (adapter) store.unpin(adapter);
    return left;
  }
  /** One step of a lane: the sequence and last hidden state of each row, logits, and what the host says. */
  private async step(
    lane: number,
    budget: number,
  ): Promise<{ rows: number[]; hidden: Float32Array[]; logits: Float32Array; events: Int32Array }> {
    const { host, device, manifest } = this;
    const { hiddenSize: d, vocab } = manifest.model;
    const { homes } = device.plan;
    const commands = host.exports.schedule(lane, budget, budget);
    const rows = [...host.rowSequences(lane)];
    const heads = host.exports.counterOf(lane, COUNTER.head);
    if (!commands) throw new Error("the check of batch invariance has nothing left to run and has not ended");
    const at = { space: "arena", group: 0, lane } as const;
    const reads: Range[] = [
      { ...at, offset: homes.h, words: rows.length * d },
      { ...at, offset: homes.logits, words: heads * vocab },
    ];
    if (device.picks && homes.candidates !== null)
      reads.push({ ...at, offset: homes.candidates, words: heads * CANDIDATE_WORDS });
    this.list = { commands: host.commands(lane, commands).slice(), meta: host.meta(lane).slice() };
    const [h, logits, picked] = await device.run(
      lane,
      this.shallow(this.list.commands),
      this.list.meta,
      reads,
    );
    host.logits().set(logits!);
    if (picked) host.picked()!.set(picked);
    // What candidates do not tell is there.
    host.exports.settle(lane);
    const events = host.events(lane, host.exports.commit(lane)).slice();
    return { rows, hidden: rows.map((_, r) => h!.subarray(r * d, (r + 1) * d)), logits: logits!, events };
  }

  /** Of a command list, what the first layers and the outer region do: a model of so many layers. */
  private shallow(commands: Int32Array): Int32Array {
    const outer = this.manifest.model.layers;
    const kept: number[] = [];
    for (let i = 0; i < commands.length; i += 6)
      if (commands[i + 1]! < this.layers || commands[i + 1] === outer)
        kept.push(...commands.subarray(i, i + 6));
    return Int32Array.from(kept);
  }

  /** Slots and accumulators as they were: empty. */
  private clean(): void {
    const { device, manifest } = this;
    const { plan, lanes } = device;
    const { layers } = manifest.model;
    const lane = lanes - 1;
    const { adapters, tables, accum } = plan.spaces;
    const full = manifest.train.includes("full");
    const clear = (space: Range["space"], group: number, offset: number, words: number): void => {
      if (words > 0) device.clear({ space, group, offset, words, lane });
    };
    for (let group = 0; group < this.layers; group++) {
      clear("adapters", group, 0, adapters.layer);
      clear("tables", group, 64, tables.layer - 64);
      clear("accum", group, 0, full ? accum.layer : plan.jobWords);
    }
    if (!full) return;
    for (let group = layers; group < groupsOf(plan, layers); group++)
      clear("accum", group, 0, chamberWords(plan, layers, "accum", group));
  }
}

/**
 * An adapter of a method as it may come out of training: no tensor of zeros, which would hide what its
 * kernels do.
 */
async function randomContent(all: Manifest, method: string): Promise<AdapterContent> {
  const layers = layersPlayed(all.model);
  const manifest: Manifest = { ...all, model: { ...all.model, layers } };
  const config = defaultConfig(manifest, method);
  const room = Math.min(...manifest.branches.filter((b) => b.method === method).map((b) => b.capacity));
  const rank = config.rank === null ? null : Math.min(config.rank, room);
  const noise = (n: number, seed: number): Float32Array =>
    Float32Array.from({ length: n }, (_, i) => (mix(seed, i) / 2 ** 32 - 0.5) / 8);
  const view = async (): Promise<ModelView> => ({
    scores: async (_what, _layer, site) => new Float64Array(site.outFeatures).fill(1),
    taken: () => new Set(),
    matrix: async (_layer, site) => noise(site.outFeatures * site.inFeatures, 2),
    bias: async (_layer, site) => noise(site.outFeatures, 3),
    tuned: null,
    embedding: async (id) => noise(manifest.model.hiddenSize, id),
  });
  const content = await initialContent(manifest, { ...config, rank }, 1, view);
  content.tensors.forEach((data, layer) => {
    const states = content.branches[layer]!;
    states.forEach((_, i) => {
      for (const { t, values } of placedIn(manifest, states, data, layer, i))
        if (t.init === "zeros") values.set(noise(values.length, mix(layer, i)));
    });
  });
  return content;
}
