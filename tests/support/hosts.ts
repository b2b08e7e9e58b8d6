/**
 * The host alone, without a device: asks it for things, does what it says, draws token 0 always, and checks
 * after every call what must always hold.
 */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import {
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
import { Host } from "../../runtime/host.ts";
import { bundle, configs, small } from "./engines.ts";

export interface Ask {
  readonly kind: "generate" | "score";
  readonly length: number;
  /** Tokens to draw. */
  readonly grows: number;
  readonly adapter: number;
  readonly job: PlayedJob | null;
  readonly ticket: number;
  /** Steps of its lane at which it was asked, started, had its last row, and ended; -1: not yet. */
  readonly asked: number;
  started: number;
  last: number;
  /** Rows computed. */
  rows: number;
  ended: number;
  /** Requests that waited when it came. */
  readonly ahead: number;
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
}
type Sizes = NonNullable<Parameters<typeof bundle>[1]>["capacities"];

export class Played {
  steps = [0, 0];
  readonly waiting = new Map<number, Ask>();
  readonly live = new Map<number, Ask>();
  readonly jobs = new Map<number, PlayedJob>();
  /** What is in each slot: an adapter, a job, nothing. */
  readonly slots: (number | PlayedJob | null)[];
  /** Layers that rows went through, forward or (twice) back: of requests, of each job. */
  work = { requests: 0, jobs: [] as number[] };
  /** Of each lane: is a list on its way? */
  private readonly flying = [false, false];
  private readonly stepWords: number;
  private readonly budget: number;
  private readonly idle: number;
  private constructor(
    readonly manifest: Manifest,
    readonly host: Host,
    readonly lanes: number,
    o: PlayOptions,
  ) {
    const { slots, jobs, tokens } = manifest.capacities;
    this.slots = [0, ...Array<null>(slots).fill(null)];
    this.work.jobs = Array<number>(jobs).fill(0);
    this.stepWords = planOf(manifest, "wasm", manifest.capacities).stepWords;
    this.budget = o.budget ?? 21;
    this.idle = o.idle ?? tokens;
    host.logits().fill(0);
  }
  static async open(capacities: Sizes = {}, o: PlayOptions = {}): Promise<Played> {
    // Compiled for what shapes a step alone: the rest is chosen at load.
    const isSize = (name: string): boolean => (sizeNames as readonly string[]).includes(name);
    const shape = Object.fromEntries(Object.entries(capacities).filter(([name]) => !isSize(name)));
    const dir = await bundle(configs.even, { capacities: { ...small, ...shape } });
    const compiled = JSON.parse(readFileSync(`${dir}/manifest.json`, "utf8")) as Manifest;
    const manifest: Manifest = { ...compiled, capacities: { ...compiled.capacities, ...capacities } };
    const lanes = o.lanes ?? 1;
    const host = await Host.open(
      manifest,
      planOf(manifest, "wasm", manifest.capacities).metaWords,
      { manyRows: 2 ** 30, lanes, queued: o.queued ?? 64 },
      readFileSync(`${dir}/host.wasm`),
    );
    return new Played(manifest, host, lanes, o);
  }

  ask(o: {
    length: number;
    grows?: number;
    adapter?: number;
    kind?: Ask["kind"];
    job?: PlayedJob;
  }): Ask | null {
    const { length, grows = 0, adapter = 0, kind = "generate", job = null } = o;
    const index = job ? job.index : NONE;
    const ticket = this.host.exports.submit(KIND[kind], length, length + grows, 0, adapter, index);
    if (ticket === NONE) return null;
    const ask: Ask = {
      ...{ kind, length, grows, adapter, job, ticket, seq: NONE, slot: NONE },
      ...{ asked: this.steps[0]!, started: -1, last: -1, rows: 0, ended: -1, ahead: this.waiting.size },
    };
    assert.not(this.waiting.has(ticket), "a ticket of two");
    this.waiting.set(ticket, ask);
    return ask;
  }
  drop(ask: Ask): void {
    if (ask.seq === NONE) {
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
    this.host.exports.jobSlot(index);
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
    this.each(lane, exports.plan(lane), (type, a, b) => this.decided(type, a, b));
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
    this.each(lane, this.host.exports.commit(lane), (type, a, b, c) => this.said(type, a, b, c));
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
      this.slots[b] = this.waiting.get(a)!.adapter;
    } else if (type === EVENT.start) {
      const ask = this.waiting.get(a)!;
      this.waiting.delete(a);
      ask.seq = b;
      ask.started = this.steps[0]!;
      ask.last = ask.started;
      ask.slot = ask.job ? ask.job.slot : this.slots.indexOf(ask.adapter);
      assert.ok(ask.slot >= 0, `adapter ${ask.adapter} runs in no slot`);
      assert.not(this.live.has(b), "a sequence of two");
      this.live.set(b, ask);
      this.host.tokens(b).fill(1, 0, ask.length);
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
    assert.is(type === EVENT.finished && b === FINISH.givenUp, ask.ended >= 0, "said of one that ended");
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

  private checkEmpty(slot: number): void {
    assert.ok(typeof this.slots[slot] !== "object" || this.slots[slot] === null, "a job's slot is taken");
    for (const ask of this.live.values()) assert.ok(ask.slot !== slot || ask.job, "a slot is taken in use");
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
      if (job) this.work.jobs[job.index]! += layers;
      else this.work.requests += layers;
      if (ask && !job) {
        assert.is(ask.ended, -1, "a row of a request that ended");
        ask.last = this.steps[lane]!;
        ask.rows++;
        if (!ask.job) assert.is(this.slots[ask.slot], ask.adapter, "the slot holds another adapter");
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
    const { blocks, sequences, slots } = manifest.capacities;
    const free = host.freeBlockIds();
    assert.is(new Set(free).size, free.length, "a block is free twice");
    const rows = [...this.jobs.values()].flatMap((j) => j.taken);
    const held =
      [...this.live.values()].reduce((n, a) => n + cacheBlocks(a.length + a.grows), 0) +
      rows.reduce((n, r) => n + cacheBlocks(r.length), 0);
    assert.is(free.length + held, blocks, "blocks are lost");
    const used = this.live.size + rows.length;
    assert.is(host.exports.counterOf(0, COUNTER.freeSequences) + used, sequences, "sequences are lost");
    const inUse = new Set([...this.live.values()].map((a) => a.slot).filter((s) => s > 0));
    for (const j of this.jobs.values()) if (j.slot > 0) inUse.add(j.slot);
    assert.is(host.exports.slotsInUse(), inUse.size);
    assert.ok(inUse.size <= slots);
  }
  /** Nothing is asked any more: all that runs and waits ends. */
  drain(most: number): void {
    for (const job of [...this.jobs.values()]) this.endJob(job);
    for (let i = 0; this.waiting.size + this.live.size > 0; i++) {
      assert.ok(i < most, `${this.waiting.size} wait and ${this.live.size} run after ${most} steps`);
      assert.ok(this.step(), "something waits and nothing runs");
    }
    this.checkWhole();
    assert.is(this.host.exports.freeBlocks(), this.manifest.capacities.blocks);
    assert.is(this.host.exports.slotsInUse(), 0);
  }
}
