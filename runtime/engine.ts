/**
 * The step loop: schedule → upload → run → commit, over requests and jobs of any adapters; one loop a lane of
 * the device. What a list on its way may touch (blocks, slots, accumulators) is given back after its commit,
 * so what two lanes touch is always apart. The engine knows token ids only; text, files and servers are the
 * SDK's.
 */
import { type AdapterRef, AdapterStore, type Generation } from "./adapters.ts";
import { type BaseTensor, BaseWeights, otherBase } from "./base.ts";
import { COUNTER, EVENT, FINISH, KIND, type Manifest, NONE, type Sizes, WeftError } from "./bundle.ts";
import { virtualTokens } from "./content.ts";
import type { Device, DeviceInfo, LoadProgress, Range } from "./device.ts";
import { Host } from "./host.ts";
import { type Invariance, settleInvariance, type Verdicts } from "./invariance.ts";
import { readManifest, readVerified, uploadWeights } from "./load.ts";
import { type Change, mergeChanges } from "./merge.ts";
import { checked, EngineOptions, GenerateIds } from "./options.ts";
import type { BundleReader } from "./reader.ts";
import { Reports } from "./report.ts";
import {
  MAX_QUEUED,
  MAX_TOKENS,
  notFinite,
  type Request,
  roomAfter,
  type Score,
  seedOf,
  type TokenEvent,
  topOf,
  waitingRequest,
} from "./requests.ts";
import { abortable, onAbort, throwIfAborted } from "./signals.ts";
import { Stream } from "./stream.ts";
import { STEP_TIMEOUT, Supervised } from "./supervise.ts";
import { turn } from "./turn.ts";

export type { Finish, Score, TokenEvent } from "./requests.ts";
export type { GenerateIds };
export interface StepTrace {
  /** Whose list it was: requests have lane 0, jobs the device's last. */
  readonly lane: number;
  readonly rows: { readonly generate: number; readonly score: number; readonly train: number };
  /**
   * Requests, and jobs, with rows in this forward: more rows than requests means that a prompt chunk was
   * among them.
   */
  readonly requests: number;
  readonly jobs: number;
  readonly units: number;
  readonly commands: number;
  readonly ms: number;
}
export type { EngineOptions };

/** Engines that nobody holds any more and nobody disposed of: their devices are let go. */
const dropped = new FinalizationRegistry<Device>((device) => void device.dispose());

/** By the host's number. */
const kinds = Object.fromEntries(Object.entries(KIND).map(([name, n]) => [n, name as keyof typeof KIND]));

/** A job that the loop feeds and informs; the trainer implements it. */
export interface Feed {
  /** Give the host work if it can take some; called before every step. */
  feed(): void;
  microDone(): Promise<void>;
  fail(error: unknown): void;
}

export class Engine {
  readonly adapters: AdapterStore;
  readonly weights: BaseWeights;
  /** In arrival order. */
  private readonly waiting = new Set<Request>();
  /** Those of them that a job waits for: it evaluates. */
  private readonly ofJobs = new Set<Request>();
  private readonly live = new Map<number, Request>();
  private readonly jobs = new Map<number, Feed>();
  /**
   * Of each lane: does its loop run, may something have come since it last looked for work, and the step on
   * its way.
   */
  private readonly lanes: { running: boolean; kicked: boolean; step: Promise<boolean> | null }[];
  /** A list of requests is on its way, and what they leave behind that it may still touch. */
  private serving = false;
  private readonly leaving: (() => void)[] = [];
  private dead: WeftError | null = null;
  private released: Promise<void> = Promise.resolve();
  private close: (why: WeftError) => void = () => {};
  /** Resolves once, with why the engine ended: WEFT_DISPOSED, or the failure. Never rejects. */
  readonly closed = new Promise<WeftError>((resolve) => {
    this.close = resolve;
  });
  /** What changes the base weights now: nothing else may run. */
  exclusive: string | null = null;
  /** Who reads all of the base weights now: nothing may change them. */
  private readers = 0;
  /** The adapter that is part of the base weights now. */
  merged: string | null = null;

  private constructor(
    readonly manifest: Manifest,
    readonly device: Supervised,
    readonly host: Host,
    private readonly options: EngineOptions,
    reader: BundleReader,
    /** What the caller's own functions threw. */
    readonly reporting: Reports,
  ) {
    this.lanes = Array.from({ length: device.lanes }, () => ({ running: false, kicked: false, step: null }));
    this.weights = new BaseWeights(manifest, device, reader);
    this.adapters = new AdapterStore(manifest, device, host, () => this.base);
    this.onStep = reporting.guard("onStep", options.onStep);
    void device.lost.then((e) => this.fail(e));
  }
  /**
   * The last errors that functions of the caller (`onStep`, `onProgress`, `onEvent`) threw: reported, never
   * fatal.
   */
  get reports(): readonly WeftError[] {
    return this.reporting.kept;
  }

  /**
   * Load a bundle onto a device that `open` makes from its manifest. An abort rejects at once, in every
   * phase. What `verdicts` says of a bundle on a device is not checked again.
   */
  static open(
    reader: BundleReader,
    open: (
      m: Manifest,
      file: (name: string) => Promise<Uint8Array>,
      onProgress: (p: LoadProgress) => void,
    ) => Promise<Device>,
    options: EngineOptions = {},
    verdicts: Verdicts = new Map(),
  ): Promise<Engine> {
    checked(EngineOptions, options);
    return abortable(
      options.signal,
      () => Engine.opening(reader, open, options, verdicts),
      (late) => late.dispose(),
    );
  }
  private static async opening(
    reader: BundleReader,
    open: Parameters<typeof Engine.open>[1],
    options: EngineOptions,
    verdicts: Verdicts,
  ): Promise<Engine> {
    const reporting = new Reports(options.onError);
    const told = reporting.guard("onProgress", options.onProgress);
    // Who gave up is not told, and what it gave up goes no further.
    const progress = (p: LoadProgress): void => {
      throwIfAborted(options.signal);
      told(p);
    };
    progress({ phase: "fetch", done: 0, total: 1 });
    const bundle = await readManifest(reader);
    const opened = await open(bundle, (name) => readVerified(reader, bundle, name), told);
    // From here on its capacities are those that the device has room for.
    const manifest = { ...bundle, capacities: { ...bundle.capacities, ...opened.sizes } };
    const device = new Supervised(opened, options.stepTimeout ?? STEP_TIMEOUT);
    try {
      throwIfAborted(options.signal);
      const module = (await readVerified(reader, manifest, "host.wasm")) as BufferSource;
      await uploadWeights(reader, manifest, device, progress);
      progress({ phase: "check", done: 0, total: 1 });
      const { invariance, host } = await settleInvariance(
        manifest,
        device,
        (manyRows) => Host.open(manifest, device.plan.metaWords, { manyRows, lanes: device.lanes }, module),
        verdicts,
      );
      const engine = new Engine(manifest, device, host, options, reader, reporting);
      dropped.register(engine, opened, engine);
      engine.invariance = invariance;
      progress({ phase: "ready", done: 1, total: 1 });
      return engine;
    } catch (e) {
      await device.dispose();
      throw e;
    }
  }

  /**
   * Is a row's result the same bits whatever batch it is in? Checked on this device at load; told, never
   * hidden.
   */
  invariance: Invariance = "off";

  /** Identity of the base weights, by value: the bundle's, or of what full training made of them. */
  get base(): string {
    return this.weights.id;
  }
  get info(): DeviceInfo {
    return this.device.info;
  }
  /**
   * Row-equivalents of a step with requests. A unit's cost is counted in arithmetic; on WebGPU it is mostly
   * launches, so the default is smaller there.
   */
  get budget(): number {
    return this.options.budget ?? (this.info.target === "wasm" ? 21 : 18);
  }

  /**
   * Stream tokens of one request. It is queued, and checked, by the first `next()`; leaving the loop early,
   * `return()` or an abort ends it at once, waiting or running, and frees its cache. A stream that is not
   * read runs on to its end and then holds its tokens only.
   */
  generate(options: GenerateIds): AsyncGenerator<TokenEvent, void, void> {
    checked(GenerateIds, options);
    return new Stream<TokenEvent>((stream) => this.begin(options, stream));
  }
  private begin(o: GenerateIds, stream: Stream<TokenEvent>): () => void {
    throwIfAborted(o.signal);
    const generation = this.named(o.adapter);
    const virtual = virtualTokens(this.manifest, generation?.content ?? null);
    const asked = o.maxTokens ?? MAX_TOKENS;
    const room = roomAfter(this.manifest, o.prompt, virtual, Math.min(asked, 1));
    if (asked === 0) {
      stream.end(null);
      return () => {};
    }
    let forget = (): void => {};
    const request = this.enqueue({
      kind: "generate",
      prompt: o.prompt,
      maxTokens: Math.min(asked, room),
      clipped: asked > room,
      sampling: o,
      seed: seedOf(o),
      generation,
      virtual,
      fixedSlot: null,
      push: (e) => stream.push(e),
      scored: () => {},
      end: (error) => {
        forget();
        stream.end(error);
      },
    });
    forget = onAbort(o.signal, (reason) => this.cancel(request, reason));
    return () => this.cancel(request);
  }

  /**
   * Loss and log-probabilities of given ids under an adapter (or a slot being trained). `next` are the ids to
   * score at each position, where they are not those that follow: -100 for none.
   */
  async score(
    ids: readonly number[],
    o: {
      adapter?: AdapterRef | undefined;
      slot?: { readonly index: number; readonly virtual: number };
      next?: readonly number[];
      logits?: boolean;
      signal?: AbortSignal | undefined;
    } = {},
  ): Promise<Score> {
    throwIfAborted(o.signal);
    const generation = this.named(o.adapter);
    const virtual = o.slot?.virtual ?? virtualTokens(this.manifest, generation?.content ?? null);
    roomAfter(this.manifest, ids, virtual, 0);
    const next = o.next ?? ids.slice(1);
    const logprobs = new Float64Array(next.length);
    const logits: Float32Array[] | null = o.logits ? [] : null;
    let forget = (): void => {};
    await new Promise<void>((resolve, reject) => {
      const request = this.enqueue({
        kind: "score",
        prompt: ids,
        maxTokens: 0,
        clipped: false,
        sampling: {},
        seed: null,
        generation,
        virtual,
        fixedSlot: o.slot?.index ?? null,
        push: () => {},
        scored: (position, row, logSum) => {
          if (logits) logits[position] = row.slice();
          const id = next[position] ?? NONE;
          if (id >= 0) logprobs[position] = row[id]! - logSum;
        },
        end: (error) => (error === null ? resolve() : reject(error)),
      });
      forget = onAbort(o.signal, (reason) => this.cancel(request, reason));
    }).finally(() => forget());
    return {
      loss: logprobs.length ? -logprobs.reduce((a, b) => a + b, 0) / logprobs.length : 0,
      logprobs,
      logits,
    };
  }

  /** Throws why the engine ended, if it did. */
  check(): void {
    if (this.dead) throw this.dead;
  }
  /**
   * The generation a reference means, of these base weights. Throws WEFT_NOT_FOUND, or WEFT_ADAPTER_MISMATCH
   * for one of others.
   */
  adapter(ref: AdapterRef): Generation {
    const generation = this.adapters.find(ref);
    if (generation.base !== this.base) throw otherBase(generation.ref, generation.base, this.base);
    return generation;
  }
  private named(ref: AdapterRef | undefined): Generation | null {
    this.check();
    const generation = ref ? this.adapter(ref) : null;
    if (generation?.content.replaces)
      throw new WeftError({
        code: "WEFT_ADAPTER",
        where: `adapter ${generation.name}`,
        expected: "an adapter that shares the base",
        found: `one with modules of its own (${[...generation.content.replaces.keys()].join(", ")})`,
        hint: "engine.merge(name) serves it on the base alone",
      });
    return generation;
  }
  private taken(where: string): WeftError {
    return new WeftError({
      code: "WEFT_CONFLICT",
      where,
      expected: "base weights that nobody changes",
      found: String(this.exclusive),
      retryable: true,
    });
  }
  private enqueue(r: Omit<Request, "seq" | "slot" | "done">): Request {
    this.check();
    if (this.exclusive && r.fixedSlot === null) throw this.taken(r.kind);
    if (this.merged && r.generation)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: r.kind,
        expected: "a base without a merged adapter",
        found: `${this.merged} merged into it`,
        hint: "merge(null) first",
      });
    const most = this.options.maxQueued ?? MAX_QUEUED;
    if (this.waiting.size >= most && r.fixedSlot === null)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: r.kind,
        expected: `at most ${most} requests that wait`,
        found: "one more",
        hint: "try again when some have ended; load({ maxQueued }) allows more",
        retryable: true,
      });
    const request = waitingRequest(r);
    // An admitted request finishes on the generation it asked for, even while it waits for a slot.
    if (request.generation) this.adapters.pin(request.generation);
    this.waiting.add(request);
    if (request.fixedSlot !== null) this.ofJobs.add(request);
    this.kick();
    return request;
  }
  private finish(r: Request, error: unknown): void {
    if (r.done) return;
    r.done = true;
    if (r.seq !== NONE) {
      this.live.delete(r.seq);
      this.whenServed(() => {
        if (r.generation) {
          this.adapters.release(r.generation);
          this.adapters.unpin(r.generation);
        }
        // Jobs may have waited for its blocks.
        this.kick();
      });
    } else {
      this.unqueue(r);
      if (r.generation) this.adapters.unpin(r.generation);
    }
    r.end(error);
  }
  private cancel(r: Request, error: unknown = null): void {
    if (r.done) return;
    if (r.seq !== NONE) this.whenServed(() => this.host.exports.cancel(r.seq));
    this.finish(r, error);
  }
  /** Run `f` once no list of requests is on its way. */
  private whenServed(f: () => void): void {
    if (this.serving) this.leaving.push(f);
    else f();
  }
  /** The lane of jobs, and the end of the list that it has on its way. */
  get jobLane(): number {
    return this.device.lanes - 1;
  }
  async jobsAtRest(): Promise<void> {
    await this.lanes[this.jobLane]!.step?.catch(() => {});
  }

  /**
   * Admit waiting requests in order; one that finds no room or slot lets none overtake it, but for a job's
   * own: the slot that is waited for may be the job's.
   */
  private admit(): void {
    for (const r of this.waiting) {
      const missing = this.place(r);
      if (missing === "slot") for (const own of this.ofJobs) if (this.place(own)) break;
      if (missing) return;
    }
  }
  /** Give a request its slot and its room; what is missing, null where nothing is. */
  private place(r: Request): "slot" | "room" | null {
    let slot = r.fixedSlot ?? 0;
    if (r.generation) {
      const got = this.adapters.acquire(r.generation);
      if (got === null) return "slot";
      slot = got;
    }
    const length = r.virtual + r.prompt.length;
    const seq = this.host.exports.addRequest(KIND[r.kind], length, length + r.maxTokens, slot, r.virtual);
    if (seq === NONE) {
      if (r.generation) this.adapters.release(r.generation);
      return "room";
    }
    this.host.tokens(seq).fill(0, 0, r.virtual);
    this.host.tokens(seq).set(r.prompt, r.virtual);
    if (r.kind === "generate") {
      const o = r.sampling;
      const stops = o.stopIds ?? [];
      this.host.exports.setSampling(
        seq,
        o.temperature ?? 0,
        o.topK ?? 0,
        o.topP ?? 1,
        o.minP ?? 0,
        o.repetitionPenalty ?? 1,
        (r.seed ?? 0) | 0,
        stops.length,
      );
      this.host.stops(seq).set(stops);
    }
    r.seq = seq;
    r.slot = slot;
    this.live.set(seq, r);
    this.unqueue(r);
    return null;
  }
  private unqueue(r: Request): void {
    this.waiting.delete(r);
    this.ofJobs.delete(r);
  }

  /**
   * Make an adapter part of the base weights, or (null) take them back as they were before: nothing is ever
   * subtracted. The engine must be at rest. Returns how long the switch took. Throws WEFT_CONFLICT while
   * anything runs, WEFT_ADAPTER for a method that cannot merge.
   */
  async merge(ref: AdapterRef | null): Promise<{ ms: number }> {
    this.check();
    const found = this.inUse;
    if (found)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: "merge",
        expected: "an engine at rest",
        found,
        retryable: true,
      });
    const t0 = performance.now();
    const generation = ref === null ? null : this.adapter(ref);
    const { manifest, device } = this;
    // A method that cannot merge is refused before anything changes.
    const changes = generation
      ? mergeChanges(manifest, device.plan, generation.content)
      : new Map<string, Change>();
    this.exclusive = "a merge";
    try {
      await this.weights.keep();
      await this.weights.restore(changes);
      this.merged = generation?.ref ?? null;
    } catch (e) {
      // Some weights may be new and some old: nothing right could be computed with them.
      this.fail(e);
      throw e;
    } finally {
      this.exclusive = null;
    }
    return { ms: performance.now() - t0 };
  }

  /**
   * Every base tensor as it is now, under its checkpoint name. Throws WEFT_CONFLICT while something changes
   * them.
   */
  async baseTensors(): Promise<BaseTensor[]> {
    this.check();
    if (this.exclusive) throw this.taken("base weights");
    this.readers++;
    try {
      return await this.weights.tensors();
    } finally {
      this.readers--;
    }
  }

  /** Attach a job's feed under an index the host knows. */
  attach(job: number, feed: Feed): void {
    this.jobs.set(job, feed);
    this.kick();
  }
  detach(job: number): void {
    this.jobs.delete(job);
  }
  freeJob(): number | null {
    for (let j = 0; j < this.manifest.capacities.jobs; j++) if (!this.jobs.has(j)) return j;
    return null;
  }
  /** Requests run or wait. */
  get busy(): boolean {
    return this.live.size + this.waiting.size > 0;
  }
  get jobsRunning(): number {
    return this.jobs.size;
  }
  /** Why the base weights cannot change now; null where nothing uses them. */
  get inUse(): string | null {
    if (this.exclusive) return this.exclusive;
    if (this.jobs.size) return "a job that runs";
    if (this.busy) return "requests that run or wait";
    return this.readers ? "a model that is being saved: its weights are read" : null;
  }

  /** Start the loops that sleep. */
  kick(): void {
    for (const [i, lane] of this.lanes.entries()) {
      lane.kicked = true;
      if (lane.running || this.dead) continue;
      lane.running = true;
      queueMicrotask(() => void this.loop(i));
    }
  }
  private async loop(index: number): Promise<void> {
    const lane = this.lanes[index]!;
    try {
      while (!this.dead) {
        lane.kicked = false;
        if (index === 0) this.admit();
        if (index === this.jobLane) for (const feed of this.jobs.values()) feed.feed();
        lane.step = this.step(index);
        const worked = await lane.step.finally(() => {
          lane.step = null;
        });
        if (!worked && !lane.kicked) break;
        // Consumers and timers run between steps.
        await turn();
      }
    } catch (e) {
      this.fail(e);
    } finally {
      lane.running = false;
      this.device.rest(index);
    }
  }

  private readonly onStep: (t: StepTrace) => void;
  private async step(lane: number): Promise<boolean> {
    const t0 = performance.now();
    const { host, device, manifest } = this;
    const count = host.exports.schedule(
      lane,
      this.budget,
      this.options.idleBudget ?? manifest.capacities.tokens,
    );
    const heads = host.exports.counterOf(lane, COUNTER.head);
    const units = host.exports.counterOf(lane, COUNTER.units);
    if (count === 0 && units === 0) return false;
    const reads: Range[] = heads
      ? [
          {
            cls: "arena",
            group: 0,
            offset: device.plan.homes.logits,
            words: heads * manifest.model.vocab,
            lane,
          },
        ]
      : [];
    if (lane === 0) this.serving = true;
    const [logits] = await device.run(lane, host.commands(lane, count), host.meta(lane), reads);
    if (logits) host.logits().set(logits);
    const trace = this.options.onStep && this.traceRows(lane);
    const events = host.events(lane, host.exports.commit(lane)).slice();
    if (lane === 0) {
      this.serving = false;
      for (const f of this.leaving.splice(0)) f();
    }
    await this.handle(events, logits ?? new Float32Array(0));
    if (trace) this.onStep({ lane, ...trace, units, commands: count, ms: performance.now() - t0 });
    return true;
  }
  private traceRows(lane: number): Pick<StepTrace, "rows" | "requests" | "jobs"> {
    const rows = { generate: 0, score: 0, train: 0 };
    const requests = new Set<number>();
    const jobs = new Set<number>();
    for (const s of this.host.rowSequences(lane)) {
      // As the host knows it: who was aborted under this list is no longer live.
      const kind = kinds[this.host.exports.kindOf(s)]!;
      rows[kind]++;
      if (kind === "train") jobs.add(this.host.exports.jobOf(s));
      else requests.add(s);
    }
    return { rows, requests: requests.size, jobs: jobs.size };
  }

  private async handle(events: Int32Array, logits: Float32Array): Promise<void> {
    const { vocab } = this.manifest.model;
    const rowOf = (h: number): Float32Array => logits.subarray(h * vocab, (h + 1) * vocab);
    const logSums = this.host.logSums();
    const pending: { r: Request; e: Omit<TokenEvent, "finish"> }[] = [];
    const wrong = new Set<Request>();
    const sound = (r: Request, logSum: number): boolean => {
      if (!Number.isFinite(logSum)) wrong.add(r);
      return !wrong.has(r);
    };
    const flush = (): void => {
      for (const { r, e } of pending.splice(0)) r.push({ ...e, finish: null });
    };
    for (let i = 0; i < events.length; i += 4) {
      const [type, a, b, c] = [events[i]!, events[i + 1]!, events[i + 2]!, events[i + 3]!];
      if (type === EVENT.token) {
        flush();
        const r = this.live.get(a);
        if (!r || r.done) continue;
        const row = rowOf(c);
        const logSum = logSums[c]!;
        if (!sound(r, logSum)) continue;
        pending.push({
          r,
          e: {
            id: b,
            logprob: row[b]! - logSum,
            top: topOf(row, r.sampling.logprobs ?? 0, logSum),
            adapter: r.generation?.ref ?? this.merged ?? "base",
            seed: r.seed,
          },
        });
      } else if (type === EVENT.scored) {
        const r = this.live.get(a);
        if (r && !r.done && b >= r.virtual && sound(r, logSums[c]!))
          r.scored(b - r.virtual, rowOf(c), logSums[c]!);
      } else if (type === EVENT.finished) {
        const r = this.live.get(a);
        if (!r) continue;
        const last = pending.findIndex((p) => p.r === r);
        const finish = b === FINISH.stop ? "stop" : r.clipped ? "context" : "length";
        if (last >= 0) r.push({ ...pending.splice(last, 1)[0]!.e, finish });
        this.finish(r, wrong.has(r) ? notFinite(r) : null);
      } else if (type === EVENT.microDone) {
        await this.jobs.get(a)?.microDone();
        // Requests may have waited for its blocks.
        this.kick();
      }
    }
    flush();
    for (const r of wrong) this.cancel(r, notFinite(r));
  }

  /**
   * Everything in flight ends with `error`, the device is let go; the engine is unusable after. The first
   * reason stays.
   */
  fail(error: unknown): void {
    if (this.dead) return;
    this.dead =
      error instanceof WeftError
        ? error
        : new WeftError({
            code: "WEFT_DEVICE",
            where: "step",
            expected: "a step that runs",
            found: (error as Error)?.message ?? String(error),
            cause: error,
          });
    dropped.unregister(this);
    this.released = this.device.end(this.dead);
    for (const r of [...this.live.values(), ...this.waiting]) this.finish(r, this.dead);
    for (const feed of [...this.jobs.values()]) feed.fail(this.dead);
    this.close(this.dead);
  }

  /** Bytes by purpose, what was chosen at load, and blocks and slots in use. */
  memory(): {
    bytes: Readonly<Record<string, number>>;
    capacities: Sizes;
    blocks: { total: number; free: number };
    slots: { total: number; used: number };
  } {
    return {
      bytes: this.device.memory,
      capacities: this.device.sizes,
      blocks: { total: this.host.exports.blocksTotal(), free: this.host.exports.freeBlocks() },
      slots: { total: this.manifest.capacities.slots, used: this.adapters.slotsInUse() },
    };
  }
  get disposed(): boolean {
    return this.dead !== null;
  }
  /**
   * Reject what runs, waits or comes, and let the device go: resolves when its threads and memory are free.
   * Again and again, if need be.
   */
  dispose(): Promise<void> {
    this.fail(
      new WeftError({
        code: "WEFT_DISPOSED",
        where: "engine",
        expected: "an engine in use",
        found: "dispose() was called",
      }),
    );
    return this.released;
  }
}
