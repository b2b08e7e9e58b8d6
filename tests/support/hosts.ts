/**
 * The host alone, without a device: asks it for things, does what it says, draws token 0 always, and checks
 * after every call what must always hold. In place of a cache there is a model of one: what a row leaves at
 * its position is a hash of whose it is and of all tokens up to there, as keys and values are in a model.
 * One file: what is done and what is checked of it share one state.
 */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import {
  BLOCK,
  COUNTER,
  cacheBlocks,
  EVENT,
  EVENT_WORDS,
  FINISH,
  headerWords,
  KIND,
  type Manifest,
  NONE,
  planOf,
  sizeNames,
} from "../../runtime/bundle.ts";
import { Host, type HostFiles, readHost } from "../../runtime/host.ts";
import { bundle, configs, small } from "./engines.ts";

/** The host of a bundle that was compiled into memory. */
export const hostFiles = (files: ReadonlyMap<string, Uint8Array>): Promise<HostFiles> =>
  readHost(async (name) => files.get(name)!);

export interface Ask {
  readonly kind: "generate" | "score";
  /** Tokens it is asked for with, and those to draw. */
  length: number;
  grows: number;
  /** Drawn since it was asked for; its reader has enough. */
  drawn: number;
  paused: boolean;
  /** Number of a generation: 0 the base. */
  readonly adapter: number;
  readonly salt: number;
  /** Adapters that it is a sum of; none where it is not. */
  readonly parts: readonly number[];
  readonly job: PlayedJob | null;
  ticket: number;
  /** Its tokens, and what the cache has to hold of each. */
  readonly ids: Int32Array;
  readonly kept: Int32Array;
  /** Steps of its lane at which it was asked, started, had its last row, and ended; -1: not yet. */
  asked: number;
  started: number;
  last: number;
  /** Rows computed for it; tokens that are in the cache. */
  rows: number;
  done: number;
  ended: number;
  /** Requests that waited when it came. */
  ahead: number;
  seq: number;
  slot: number;
}
/** A job as the trainer drives one: batches of rows, an evaluation now and then. */
export interface PlayedJob {
  readonly index: number;
  readonly rows: readonly number[];
  /** Lengths of the rows that are evaluated after each step. */
  readonly evaluates: readonly number[];
  readonly most: number;
  readonly keep: boolean;
  slot: number;
  /** Optimizer steps done, rows done of the next, and when the last step was done. */
  steps: number;
  at: number;
  told: number;
  taken: { readonly seq: number; readonly base: number; readonly length: number }[];
  evaluation: Ask | null;
  evaluated: number;
}
export interface PlayOptions {
  readonly lanes?: number;
  readonly queued?: number;
  readonly budget?: number;
  readonly idle?: number;
  /** Instead of a budget: microseconds that a step with requests should take, and those that one takes. */
  readonly pace?: { readonly want: number; readonly takes: (decoding: number, others: number) => number };
  /** Requests share prefixes. Default: yes. */
  readonly prefixes?: boolean;
  /** Who goes first. Default: coserve. */
  readonly policy?: string;
  /** Another host.wasm. */
  readonly module?: BufferSource;
}
/** Pages that adapters and jobs take, of the four that the largest does. */
const MOST_PAGES = 4;
export const pagesOf = (adapter: number): number => (adapter ? 1 + (adapter % MOST_PAGES) : 0);
type Sizes = NonNullable<Parameters<typeof bundle>[1]>["capacities"];

const mix = (a: number, b: number): number => {
  const h = Math.imul(a ^ Math.imul(b + 1, 0x9e3779b1), 0x85ebca6b);
  // 0: nothing was computed.
  return (h ^ (h >>> 13)) | 1;
};

export class Played {
  steps = [0, 0];
  readonly waiting = new Map<number, Ask>();
  readonly live = new Map<number, Ask>();
  /** Those that gave way while they were paused; how many did. */
  readonly preempted = new Set<Ask>();
  gaveWay = 0;
  readonly jobs = new Map<number, PlayedJob>();
  /** What is in each slot: an adapter, a job, nothing. */
  readonly slots: (number | PlayedJob | null)[];
  /** Layers that rows went through, forward or (twice) back: of requests, of each job. */
  work = { requests: 0, jobs: [] as number[] };
  /** Tokens that requests found computed; idle blocks that gave way to others. */
  found = 0;
  evicted = 0;
  private asked = 0;
  /** The base weights that requests run on. */
  private base = 0;
  private readonly pool: Int32Array;
  /** Blocks that were shared when what they hold became void: those who hold them go on. */
  private readonly voided = new Set<number>();
  /** Who held how many blocks, and which, before the host decided. */
  private holders = new Int32Array();
  private tables = new Map<number, number[]>();
  /** Of each lane: is a list on its way? */
  private readonly flying = [false, false];
  private readonly stepWords: number;
  private readonly budget: number;
  private readonly idle: number;
  /** Microseconds of steps in which some decode. */
  readonly timed: number[] = [];
  private constructor(
    readonly manifest: Manifest,
    readonly host: Host,
    readonly lanes: number,
    private readonly o: PlayOptions,
  ) {
    const { slots, jobs, tokens } = manifest.capacities;
    this.slots = [0, ...Array<null>(slots).fill(null)];
    this.work.jobs = Array<number>(jobs).fill(0);
    this.stepWords = planOf(manifest, "wasm", manifest.capacities).stepWords;
    this.budget = o.pace ? 0 : (o.budget ?? 21);
    host.exports.want(o.pace?.want ?? 0);
    this.idle = o.idle ?? tokens;
    this.pool = new Int32Array(manifest.capacities.blocks * BLOCK);
    host.logits().fill(0);
    if (o.prefixes ?? true)
      host.share((ticket) => {
        const { ids, length } = this.waiting.get(ticket)!;
        return { prompt: [...ids.subarray(0, length)], virtual: 0 };
      });
  }
  static async open(capacities: Sizes = {}, o: PlayOptions = {}): Promise<Played> {
    // Compiled for what shapes a step alone: the rest is chosen at load.
    const isSize = (name: string): boolean => (sizeNames as readonly string[]).includes(name);
    const shape = Object.fromEntries(Object.entries(capacities).filter(([name]) => !isSize(name)));
    const dir = await bundle(configs.even, {
      ...(o.policy !== undefined && { policy: o.policy }),
      capacities: { ...small, rank: 4 * MOST_PAGES, ...shape },
    });
    const compiled = JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8")) as Manifest;
    const sizes = { ...compiled.capacities, ...capacities };
    const pages = capacities.pages ?? sizes.slots * MOST_PAGES;
    const manifest: Manifest = { ...compiled, capacities: { ...sizes, pages } };
    const lanes = o.lanes ?? 1;
    const host = await Host.open(
      manifest,
      planOf(manifest, "wasm", manifest.capacities).metaWords,
      { families: { fewRows: null }, lanes, queued: o.queued ?? 64 },
      {
        ...(await readHost(async (name) => readFileSync(`${dir}/${name}`))),
        ...(o.module && { wasm: o.module }),
      },
    );
    return new Played(manifest, host, lanes, o);
  }

  ask(o: {
    length: number;
    grows?: number;
    adapter?: number;
    parts?: readonly number[];
    kind?: Ask["kind"];
    job?: PlayedJob;
    salt?: number;
    /** How its prompt begins; what follows is like no other's. */
    prefix?: readonly number[];
  }): Ask | null {
    const { length, grows = 0, adapter = 0, kind = "generate", job = null, salt = 0, prefix = [] } = o;
    const { parts = [] } = o;
    const index = job ? job.index : NONE;
    const ticket = this.submit({ length, grows, adapter, kind, job, salt, parts });
    if (ticket === NONE) return null;
    const ids = new Int32Array(this.manifest.capacities.context);
    const own = [++this.asked, this.asked >> 6, this.asked >> 12, this.asked >> 18].map((x) => x & 63);
    ids.set([...prefix, ...own].slice(0, length));
    const kept = new Int32Array(length + grows);
    for (let i = 0; i < kept.length; i++)
      kept[i] = mix(i ? kept[i - 1]! : mix(mix(this.base, adapter), mix(salt, index)), ids[i]!);
    const ask: Ask = {
      ...{
        kind,
        length,
        grows,
        adapter,
        parts,
        salt,
        job,
        ticket,
        ids,
        kept,
        seq: NONE,
        slot: NONE,
        done: 0,
        drawn: 0,
        paused: false,
      },
      ...{ asked: this.steps[0]!, started: -1, last: -1, rows: 0, ended: -1, ahead: this.waiting.size },
    };
    assert.not(this.waiting.has(ticket), "a ticket of two");
    this.waiting.set(ticket, ask);
    return ask;
  }
  private submit(a: Pick<Ask, "kind" | "length" | "grows" | "adapter" | "parts" | "job" | "salt">): number {
    this.host.parts().set(a.parts.flatMap((p) => [p, pagesOf(p)]));
    const of = [a.adapter, a.parts.length ? 0 : pagesOf(a.adapter), a.parts.length] as const;
    const index = a.job ? a.job.index : NONE;
    return this.host.exports.submit(KIND[a.kind], a.length, a.length + a.grows, 0, ...of, index, a.salt);
  }
  /** Its reader has enough for now, or (false) wants more again. */
  pause(ask: Ask, on: boolean): void {
    ask.paused = on;
    ask.last = this.steps[0]!;
    if (ask.seq !== NONE) this.host.exports.pause(ask.seq, on ? 1 : 0);
  }
  /** Those that gave way and are wanted again, as far as there are places. */
  private comeBack(): void {
    for (const ask of this.preempted) {
      if (ask.paused) continue;
      ask.ticket = this.submit(ask);
      if (ask.ticket === NONE) return;
      this.preempted.delete(ask);
      Object.assign(ask, { asked: this.steps[0]!, started: -1, ahead: this.waiting.size });
      this.waiting.set(ask.ticket, ask);
    }
  }
  drop(ask: Ask): void {
    if (this.preempted.delete(ask)) {
      // The host knows it no more.
    } else if (ask.seq === NONE) {
      this.host.exports.withdraw(ask.ticket);
      this.waiting.delete(ask.ticket);
    } else {
      // What a list on its way has of it stays its own until then.
      const closed = this.host.exports.cancel(ask.seq);
      assert.is(Boolean(closed), !this.flying[0]);
      if (closed) this.live.delete(ask.seq);
    }
    ask.ended = this.steps[0]!;
  }
  /** Nobody asks for a generation any more. */
  forget(adapter: number): void {
    this.void(() => this.host.exports.forget(adapter));
  }
  /** The base weights are others; nobody is served meanwhile. */
  change(): void {
    assert.is(this.waiting.size, 0);
    for (const a of this.live.values()) assert.ok(a.ended >= 0, "only what was given up is left");
    this.void(() => this.host.exports.forgetAll());
    this.base++;
  }
  private void(forget: () => void): void {
    const { exports } = this.host;
    const held = [...this.host.holders().keys()].filter((b) => exports.isPrefix(b));
    forget();
    for (const b of held) if (!exports.isPrefix(b)) this.voided.add(b);
    this.clear();
  }
  /** What is free holds nothing. */
  private clear(): void {
    for (const b of this.host.freeBlockIds()) {
      this.pool.fill(0, b * BLOCK, (b + 1) * BLOCK);
      this.voided.delete(b);
    }
  }
  startJob(
    index: number,
    rows: readonly number[],
    o: { evaluates?: readonly number[]; most?: number; keep?: boolean } = {},
  ): PlayedJob {
    const job: PlayedJob = {
      ...{ index, rows, evaluates: o.evaluates ?? [], most: o.most ?? rows.length, keep: o.keep ?? true },
      ...{ slot: NONE, steps: 0, at: 0, told: this.steps[this.lanes - 1]!, taken: [], evaluation: null },
      evaluated: 0,
    };
    this.jobs.set(index, job);
    this.host.exports.jobOpen(index, 0, 0);
    this.host.exports.jobSlot(index, 1 + (rows.length % MOST_PAGES));
    return job;
  }
  /** Between two lists of its lane. */
  endJob(job: PlayedJob): void {
    if (job.evaluation && job.evaluation.ended < 0) this.drop(job.evaluation);
    this.host.exports.jobClose(job.index);
    if (job.slot !== NONE) this.slots[job.slot] = null;
    this.jobs.delete(job.index);
  }
  private offer(job: PlayedJob): void {
    const rest = job.rows.slice(job.at, job.at + this.host.offer(job.index).length);
    this.host.offer(job.index).set(rest);
    const last = job.at + rest.length === job.rows.length;
    this.host.exports.jobOffer(job.index, rest.length, job.most, job.keep ? 1 : 0, last ? 1 : 0);
  }
  private goOn(job: PlayedJob): void {
    if (job.at < job.rows.length) this.offer(job);
    else if (job.evaluated < job.evaluates.length)
      job.evaluation = this.ask({ kind: "score", length: job.evaluates[job.evaluated]!, job });
    else {
      job.steps++;
      job.told = this.steps[this.lanes - 1]!;
      job.at = 0;
      job.evaluated = 0;
      this.offer(job);
    }
  }

  /** Plan and schedule a step of a lane; false where there is nothing to do. */
  begin(lane: number): boolean {
    const { exports } = this.host;
    assert.not(this.flying[lane], "one list of a lane at a time");
    this.comeBack();
    this.clear();
    const idle = this.idleBlocks();
    this.holders = this.host.holders().slice();
    this.tables = new Map([...this.live.keys()].map((seq) => [seq, [...this.host.table(seq)]]));
    const decided = exports.decide(lane);
    for (const b of idle)
      if (!exports.isPrefix(b)) {
        this.pool.fill(0, b * BLOCK, (b + 1) * BLOCK);
        this.evicted++;
      }
    this.each(lane, decided, (type, a, b) => this.decided(type, a, b));
    this.steps[lane]!++;
    const commands = exports.schedule(lane, this.budget, this.idle);
    const units = exports.counterOf(lane, COUNTER.units);
    this.checkStep(lane, units);
    if (!commands && !units) return false;
    this.flying[lane] = true;
    return true;
  }
  /** The step ran. */
  end(lane: number): void {
    this.flying[lane] = false;
    this.each(lane, this.host.exports.commit(lane, this.takes(lane)), (type, a, b, c) =>
      this.said(type, a, b, c),
    );
  }
  private takes(lane: number): number {
    if (!this.o.pace) return 0;
    const of = (name: "head" | "spent"): number => this.host.exports.counterOf(lane, COUNTER[name]);
    const [decoding, others] = [of("head"), of("spent") - of("head")];
    const micros = this.o.pace.takes(decoding, others);
    if (decoding) this.timed.push(micros);
    return micros;
  }
  /** A whole step of each lane. */
  step(): boolean {
    let worked = false;
    for (let lane = 0; lane < this.lanes; lane++)
      if (this.begin(lane)) {
        this.end(lane);
        worked = true;
      }
    return worked;
  }
  private each(lane: number, n: number, f: (type: number, a: number, b: number, c: number) => void): void {
    const events = this.host.events(lane, n).slice();
    for (let i = 0; i < events.length; i += EVENT_WORDS)
      f(events[i]!, events[i + 1]!, events[i + 2]!, events[i + 3]!);
  }
  private decided(type: number, a: number, b: number): void {
    if (type === EVENT.load) {
      this.checkEmpty(b);
      this.slots.forEach((x, s) => x === a && (this.slots[s] = null));
      this.slots[b] = a;
    } else if (type === EVENT.start) {
      const ask = this.waiting.get(a)!;
      this.waiting.delete(a);
      ask.seq = b;
      ask.started = this.steps[0]!;
      ask.last = ask.started;
      ask.slot = ask.job ? ask.job.slot : this.slots.indexOf(ask.adapter);
      assert.ok(ask.slot >= 0, `adapter ${ask.adapter} runs in no slot`);
      for (const p of ask.parts)
        assert.is(this.slots[this.host.exports.slotOf(p)], p, `part ${p} is in no slot`);
      assert.not(this.live.has(b), "a sequence of two");
      this.live.set(b, ask);
      this.host.tokens(b).set(ask.ids.subarray(0, ask.length));
      if (ask.paused) this.host.exports.pause(b, 1);
    } else if (type === EVENT.preempt) {
      const ask = this.live.get(a)!;
      assert.ok(
        ask.paused && ask.ended < 0 && !this.flying[0],
        "one gives way that is paused, between lists",
      );
      this.live.delete(a);
      this.preempted.add(ask);
      // Others may have its blocks already: what was its own alone holds nothing any more.
      for (const block of this.tables.get(a)!)
        if (!--this.holders[block]! && !this.host.exports.isPrefix(block))
          this.pool.fill(0, block * BLOCK, (block + 1) * BLOCK);
      this.gaveWay++;
      const [length, grows] = [ask.length + ask.drawn, ask.grows - ask.drawn];
      Object.assign(ask, { length, grows, drawn: 0, done: 0, seq: NONE, slot: NONE });
    } else if (type === EVENT.hold) {
      const job = this.jobs.get(a)!;
      this.checkEmpty(b);
      job.slot = b;
      this.slots[b] = job;
      this.goOn(job);
    } else {
      assert.is(type, EVENT.feed);
      const job = this.jobs.get(a)!;
      job.taken = job.rows.slice(job.at, job.at + b).map((length, i) => {
        const seq = this.host.micro(a)[i]!;
        this.host.tokens(seq).fill(1, 0, length);
        this.host.labels(seq).fill(1, 0, length);
        this.host.exports.setRow(seq, 1, 0, 0);
        return { seq, base: this.host.exports.saveBase(seq), length };
      });
      this.checkRuns();
    }
  }
  private said(type: number, a: number, b: number, _c: number): void {
    if (type === EVENT.microDone) {
      const job = this.jobs.get(a);
      if (!job) return;
      job.at += job.taken.length;
      job.taken = [];
      this.goOn(job);
      return;
    }
    const ask = this.live.get(a)!;
    if (type === EVENT.finished) this.found += this.host.exports.foundOf(a);
    assert.is(type === EVENT.finished && b === FINISH.givenUp, ask.ended >= 0, "said of one that ended");
    if (type === EVENT.token) ask.drawn++;
    if (type !== EVENT.finished) return;
    if (ask.ended >= 0) {
      this.live.delete(a);
      return;
    }
    assert.ok(ask.kind === "score" || b > 0);
    ask.ended = this.steps[0]!;
    this.live.delete(a);
    if (ask.job) {
      ask.job.evaluated++;
      ask.job.evaluation = null;
      this.goOn(ask.job);
    }
  }

  /** Blocks that are kept for nobody in particular. */
  private idleBlocks(): number[] {
    const holders = this.host.holders();
    return [...holders.keys()].filter((b) => !holders[b] && this.host.exports.isPrefix(b));
  }
  /** Where in the pool a row's position lies, or an earlier one. */
  private cellOf(meta: Uint32Array, r: number, pos: number): number {
    const { table } = this.manifest.targets.wasm!.blocks.step.arrays;
    return meta[meta[table! + r]! + Math.floor(pos / BLOCK)]! * BLOCK + (pos % BLOCK);
  }
  /** A row of a request: every position before it is as its own tokens make it, and its own is empty. */
  private compute(ask: Ask, meta: Uint32Array, r: number): void {
    const { pos, ids } = this.manifest.targets.wasm!.blocks.step.arrays;
    const at = meta[pos! + r]!;
    assert.is(meta[ids! + r], ask.ids[at], "a row of another token");
    assert.ok(at >= ask.done, "a row twice");
    // Rows of one step follow each other: all before the first of them were looked at with it.
    for (let i = ask.last === this.steps[0] && at === ask.done ? at - 1 : 0; i < at; i++)
      if (this.pool[this.cellOf(meta, r, i)] !== ask.kept[i])
        assert.unreachable(`position ${i} of ${ask.length}, read by ${at}, is not its own`);
    const cell = this.cellOf(meta, r, at);
    assert.ok(
      this.host.holders()[Math.floor(cell / BLOCK)]! > 0,
      "a row goes into a block that nobody holds",
    );
    assert.is(this.pool[cell], 0, "a row is written over another");
    this.pool[cell] = ask.kept[at]!;
    ask.done = at + 1;
  }
  /** A row in training: nobody else reads its block. */
  private checkOwn(meta: Uint32Array, r: number): void {
    const { pos } = this.manifest.targets.wasm!.blocks.step.arrays;
    const cell = this.cellOf(meta, r, meta[pos! + r]!);
    const b = Math.floor(cell / BLOCK);
    assert.ok(this.host.holders()[b] === 1 && !this.host.exports.isPrefix(b), "training in a shared block");
    this.pool[cell] = 1;
  }
  private checkEmpty(slot: number): void {
    assert.ok(typeof this.slots[slot] !== "object" || this.slots[slot] === null, "a job's slot is taken");
    for (const ask of this.live.values())
      assert.ok(ask.job || !this.slotsOf(ask).includes(slot), "a slot is taken in use");
  }
  /** Slots that a request reads: its own, and those of what it is a sum of. */
  private slotsOf({ slot, parts }: Ask): number[] {
    return [slot, ...parts.map((p) => this.slots.indexOf(p))];
  }
  private checkRuns(): void {
    const runs = [...this.jobs.values()].flatMap((j) => j.taken).sort((a, b) => a.base - b.base);
    runs.forEach((r, i) => {
      const end = runs[i + 1]?.base ?? this.manifest.capacities.savedRows;
      assert.ok(r.base >= 0 && r.base + r.length <= end, "saved rows of two");
    });
  }
  private checkStep(lane: number, units: number): void {
    const { host, manifest } = this;
    const { tokens, headRows } = manifest.capacities;
    const { blocks } = manifest.targets.wasm!;
    const { layers } = manifest.model;
    const meta = host.meta(lane);
    const rows = host.rowSequences(lane);
    assert.ok(rows.length <= tokens && host.exports.counterOf(lane, COUNTER.head) <= headRows);
    const jobOf = new Map([...this.jobs.values()].flatMap((j) => j.taken.map((t) => [t.seq, j] as const)));
    rows.forEach((seq, r) => {
      const job = jobOf.get(seq);
      const ask = this.live.get(seq);
      assert.ok(job || ask, "a row of nobody");
      assert.is(meta[blocks.step.arrays.slot! + r], (job ?? ask)!.slot, "a row reads another's slot");
      if (!ask) this.checkOwn(meta, r);
      if (job) this.work.jobs[job.index]! += layers;
      else this.work.requests += layers;
      if (ask && !job) {
        assert.is(ask.ended, -1, "a row of a request that ended");
        assert.not(ask.paused, "a row of a request that is paused");
        this.compute(ask, meta, r);
        ask.last = this.steps[lane]!;
        ask.rows++;
        if (!ask.job) assert.is(this.slots[ask.slot], ask.adapter, "the slot holds another adapter");
        for (const p of ask.parts) {
          const s = host.exports.slotOf(p);
          assert.ok(this.slots[s] === p && host.exports.pagesOf(s) === pagesOf(p), "a part is gone");
        }
      }
    });
    const word = (u: number, name: (typeof headerWords)[number]): number =>
      meta[this.stepWords + u * blocks.unit.words + headerWords.indexOf(name)]!;
    for (let u = 0; u < units; u++)
      if (!word(u, "n_head")) this.work.jobs[word(u, "job")]! += 2 * word(u, "n_rows");
  }
  /** Everything that is held, and everything that is free, is all there is. */
  checkWhole(): void {
    const { host, manifest } = this;
    const { blocks, sequences, slots, pages } = manifest.capacities;
    const rows = [...this.jobs.values()].flatMap((j) => j.taken);
    const held = [
      ...[...this.live.values()].map((a) => ({ seq: a.seq, tokens: a.length + a.grows })),
      ...rows.map((r) => ({ seq: r.seq, tokens: r.length })),
    ];
    const holders = new Int32Array(blocks);
    for (const { seq, tokens } of held) {
      const table = host.table(seq);
      assert.is(table.length, cacheBlocks(tokens));
      for (const b of table) holders[b]!++;
    }
    assert.equal([...host.holders()], [...holders]);
    const free = new Set(host.freeBlockIds());
    assert.is(free.size, host.freeBlockIds().length, "a block is free twice");
    const idle = this.idleBlocks().length;
    for (let b = 0; b < blocks; b++) {
      const kept = Boolean(host.exports.isPrefix(b));
      assert.is(free.has(b), !holders[b] && !kept, "a block is free, or is held, or is kept");
      const before = kept ? host.exports.prefixBefore(b) : NONE;
      if (before !== NONE) {
        assert.ok(host.exports.isPrefix(before), "what a prefix goes on from is one");
        assert.ok(holders[before]! >= holders[b]!, "who holds a block holds those before it");
      }
      assert.ok(holders[b]! <= 1 || kept || this.voided.has(b), "a block of two is not full");
    }
    assert.is(host.exports.keptBlocks(), idle);
    assert.is(host.exports.freeBlocks(), free.size + idle);
    const used = this.live.size + rows.length;
    assert.is(host.exports.counterOf(0, COUNTER.freeSequences) + used, sequences, "sequences are lost");
    const inUse = new Set([...this.live.values()].flatMap((a) => this.slotsOf(a)).filter((s) => s > 0));
    for (const j of this.jobs.values()) if (j.slot > 0) inUse.add(j.slot);
    assert.is(host.exports.slotsInUse(), inUse.size);
    assert.ok(inUse.size <= slots);
    const given = Array.from({ length: slots + 1 }, (_, s) => [...host.pages(s)]).flat();
    assert.ok(
      new Set(given).size === given.length && given.every((p) => p >= 0 && p < pages),
      "a page of two",
    );
    assert.is(host.exports.freePages() + given.length, pages, "pages are lost");
  }
  /** Nothing is asked any more: all that runs and waits ends. */
  drain(most: number): void {
    for (const job of [...this.jobs.values()]) this.endJob(job);
    for (const ask of [...this.live.values(), ...this.waiting.values(), ...this.preempted])
      this.pause(ask, false);
    for (let i = 0; this.waiting.size + this.live.size + this.preempted.size > 0; i++) {
      assert.ok(i < most, `${this.waiting.size} wait and ${this.live.size} run after ${most} steps`);
      assert.ok(this.step(), "something waits and nothing runs");
    }
    this.checkWhole();
    assert.is(this.host.exports.freeBlocks(), this.manifest.capacities.blocks);
    assert.is(this.host.exports.slotsInUse(), 0);
  }
}
