/**
 * The step loop: schedule → upload → run → commit, over requests and jobs of any adapters; one loop a lane of the device. What a list on its way may
 * touch (blocks, slots, accumulators) is given back after its commit, so what two lanes touch is always apart. The engine knows token ids only; text,
 * files and servers are the SDK's.
 */
import { type AdapterRef, AdapterStore, type Generation } from "./adapters.ts";
import { type Manifest, WeftError } from "./bundle.ts";
import { virtualTokens } from "./content.ts";
import type { Device, DeviceInfo, Range } from "./device.ts";
import { COUNTER, EVENT, Host, KIND, NONE } from "./host.ts";
import { type Invariance, settleInvariance } from "./invariance.ts";
import { readManifest, readVerified, uploadWeights } from "./load.ts";
import { type Change, mergeChanges } from "./merge.ts";
import { checked, EngineOptions, GenerateIds } from "./options.ts";
import type { BundleReader } from "./reader.ts";
import { turn } from "./turn.ts";

export type { GenerateIds };
export interface TokenEvent {
  readonly id: number;
  /** Natural log of the model's probability, before temperature and penalties. */
  readonly logprob: number;
  readonly top: readonly { readonly id: number; readonly logprob: number }[];
  /** Which weights answered: `base`, or `name@generation`. */
  readonly adapter: string;
  readonly finish: "stop" | "length" | null;
}
export interface Score {
  /** Mean negative log-likelihood of ids[1…]. */
  readonly loss: number;
  /** logprob of ids[i + 1] after ids[0…i]. */
  readonly logprobs: Float64Array;
  /** Full logits [position][vocab], when asked for. */
  readonly logits: Float32Array[] | null;
}
export interface StepTrace {
  /** Whose list it was: requests have lane 0, jobs the device's last. */
  readonly lane: number;
  readonly rows: { readonly generate: number; readonly score: number; readonly train: number };
  /** Requests, and jobs, with rows in this forward: more rows than requests means that a prompt chunk was among them. */
  readonly requests: number;
  readonly jobs: number;
  readonly units: number;
  readonly commands: number;
  readonly ms: number;
}
export type { EngineOptions };
/** A job that the loop feeds and informs; the trainer implements it. */
export interface Feed {
  /** Give the host work if it can take some; called before every step. */
  feed(): void;
  microDone(): Promise<void>;
  fail(error: unknown): void;
}

interface Request {
  readonly kind: "generate" | "score";
  readonly options: GenerateIds;
  readonly generation: Generation | null;
  /** Tokens of the adapter's own before the prompt. */
  readonly virtual: number;
  readonly fixedSlot: number | null;
  seq: number;
  slot: number;
  readonly push: (e: TokenEvent) => void;
  readonly scored: (position: number, logits: Float32Array, logSum: number) => void;
  readonly end: (error: unknown) => void;
  done: boolean;
}

export class Engine {
  readonly adapters: AdapterStore;
  private readonly waiting: Request[] = [];
  private readonly live = new Map<number, Request>();
  private readonly jobs = new Map<number, Feed>();
  /** Of each lane: does its loop run, may something have come since it last looked for work, and the step on its way. */
  private readonly lanes: { running: boolean; kicked: boolean; step: Promise<boolean> | null }[];
  /** A list of requests is on its way, and what they leave behind that it may still touch. */
  private serving = false;
  private readonly leaving: (() => void)[] = [];
  private dead: WeftError | null = null;
  private idleWaiters: (() => void)[] = [];
  /** Base weights are being trained: nothing else may run. */
  exclusive = false;
  /** The adapter that is part of the base weights now. */
  merged: string | null = null;

  private constructor(
    readonly manifest: Manifest,
    readonly device: Device,
    readonly host: Host,
    private readonly options: EngineOptions,
    private readonly reader: BundleReader,
  ) {
    this.lanes = Array.from({ length: device.lanes }, () => ({ running: false, kicked: false, step: null }));
    this.adapters = new AdapterStore(manifest, device, host);
  }

  /** Load a bundle onto a device that `open` makes from its manifest. */
  static async open(
    reader: BundleReader,
    open: (m: Manifest, file: (name: string) => Promise<Uint8Array>) => Promise<Device>,
    options: EngineOptions = {},
  ): Promise<Engine> {
    checked(EngineOptions, options);
    const progress = options.onProgress ?? (() => {});
    options.signal?.throwIfAborted();
    progress({ phase: "fetch", done: 0, total: 1 });
    const manifest = await readManifest(reader);
    const device = await open(manifest, (name) => readVerified(reader, manifest, name));
    try {
      options.signal?.throwIfAborted();
      const module = (await readVerified(reader, manifest, "host.wasm")) as BufferSource;
      await uploadWeights(reader, manifest, device, progress);
      progress({ phase: "check", done: 0, total: 1 });
      const { invariance, host } = await settleInvariance(manifest, device, (manyRows) =>
        Host.open(manifest, device.plan.metaWords, { manyRows, lanes: device.lanes }, module),
      );
      const engine = new Engine(manifest, device, host, options, reader);
      engine.invariance = invariance;
      progress({ phase: "ready", done: 1, total: 1 });
      return engine;
    } catch (e) {
      device.dispose();
      throw e;
    }
  }

  /** Is a row's result the same bits whatever batch it is in? Checked on this device at load; told, never hidden. */
  invariance: Invariance = "off";

  get info(): DeviceInfo {
    return this.device.info;
  }
  /** Row-equivalents of a step with requests. A unit's cost is counted in arithmetic; on WebGPU it is mostly launches, so the default is smaller there. */
  get budget(): number {
    return this.options.budget ?? (this.info.target === "wasm" ? 21 : 18);
  }

  /** Stream tokens of one request. Leaving the loop early, or aborting, frees its cache. */
  generate(options: GenerateIds): AsyncGenerator<TokenEvent, void, void> {
    checked(GenerateIds, options);
    const generation = this.named(options.adapter);
    const virtual = virtualTokens(this.manifest, generation?.content ?? null);
    this.check(options.prompt, options.maxTokens ?? 1, virtual);
    const queue: TokenEvent[] = [];
    let wake: (() => void) | null = null;
    let ended = false;
    let failure: unknown = null;
    const request = this.enqueue({
      kind: "generate",
      options,
      generation,
      virtual,
      fixedSlot: null,
      push: (e) => {
        queue.push(e);
        wake?.();
      },
      scored: () => {},
      end: (error) => {
        ended = true;
        failure = error;
        wake?.();
      },
    });
    const cancel = (): void => this.cancel(request);
    const onAbort = (): void => {
      this.cancel(request, options.signal?.reason ?? new DOMException("aborted", "AbortError"));
    };
    if (options.signal?.aborted) onAbort();
    options.signal?.addEventListener("abort", onAbort, { once: true });
    return (async function* () {
      try {
        for (;;) {
          const e = queue.shift();
          if (e) {
            yield e;
            if (e.finish) return;
            continue;
          }
          if (failure) throw failure;
          if (ended) return;
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
          wake = null;
        }
      } finally {
        options.signal?.removeEventListener("abort", onAbort);
        cancel();
      }
    })();
  }

  /** Loss and log-probabilities of given ids under an adapter (or a slot being trained). */
  async score(
    ids: readonly number[],
    o: {
      adapter?: AdapterRef | undefined;
      slot?: { readonly index: number; readonly virtual: number };
      logits?: boolean;
      signal?: AbortSignal | undefined;
    } = {},
  ): Promise<Score> {
    const generation = this.named(o.adapter);
    const virtual = o.slot?.virtual ?? virtualTokens(this.manifest, generation?.content ?? null);
    this.check(ids, 0, virtual);
    const logprobs = new Float64Array(Math.max(0, ids.length - 1));
    const logits: Float32Array[] | null = o.logits ? [] : null;
    let forget = (): void => {};
    await new Promise<void>((resolve, reject) => {
      const request = this.enqueue({
        kind: "score",
        options: { prompt: ids, maxTokens: 0 },
        generation,
        virtual,
        fixedSlot: o.slot?.index ?? null,
        push: () => {},
        scored: (position, row, logSum) => {
          if (logits) logits[position] = row.slice();
          if (position + 1 < ids.length) logprobs[position] = row[ids[position + 1]!]! - logSum;
        },
        end: (error) => (error ? reject(error) : resolve()),
      });
      const stop = (): void => this.cancel(request, o.signal!.reason);
      if (o.signal?.aborted) stop();
      else o.signal?.addEventListener("abort", stop, { once: true });
      forget = () => o.signal?.removeEventListener("abort", stop);
    }).finally(() => forget());
    return {
      loss: logprobs.length ? -logprobs.reduce((a, b) => a + b, 0) / logprobs.length : 0,
      logprobs,
      logits,
    };
  }

  private named(ref: AdapterRef | undefined): Generation | null {
    if (this.dead) throw this.dead;
    const generation = ref ? this.adapters.find(ref) : null;
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
  private check(ids: readonly number[], more: number, virtual: number): void {
    const { vocab } = this.manifest.model;
    const { context, blocks } = this.manifest.capacities;
    if (!ids.length)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "prompt",
        expected: "at least one token",
        found: "none",
      });
    const wrong = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocab);
    if (wrong >= 0)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: `prompt[${wrong}]`,
        expected: `a token id below ${vocab}`,
        found: String(ids[wrong]),
      });
    if (!Number.isInteger(more) || more < 0)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "maxTokens",
        expected: "a positive integer",
        found: String(more),
      });
    if (virtual + ids.length + more > Math.min(context, blocks * 32))
      throw new WeftError({
        code: "WEFT_CONTEXT_OVERFLOW",
        where: "prompt",
        expected: `prompt + maxTokens of at most ${context} tokens`,
        found: `${virtual ? `${virtual} of the adapter's own + ` : ""}${ids.length} + ${more}`,
        hint: "shorten the prompt or maxTokens, or compile with a larger context",
      });
  }

  private enqueue(r: Omit<Request, "seq" | "slot" | "done">): Request {
    if (this.dead) throw this.dead;
    if (this.exclusive && r.fixedSlot === null)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: r.kind,
        expected: "no full training in progress",
        found: "a job that owns the base weights",
        retryable: true,
      });
    if (this.merged && r.generation)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: r.kind,
        expected: "a base without a merged adapter",
        found: `${this.merged} merged into it`,
        hint: "merge(null) first",
      });
    const request: Request = { ...r, seq: NONE, slot: 0, done: false };
    // An admitted request finishes on the generation it asked for, even while it waits for a slot.
    if (request.generation) this.adapters.pin(request.generation);
    this.waiting.push(request);
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
      this.waiting.splice(this.waiting.indexOf(r), 1);
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

  /** Admit waiting requests in order; one that finds no room or slot lets none overtake it. */
  private admit(): void {
    while (this.waiting.length) {
      const r = this.waiting[0]!;
      const { prompt, maxTokens = 1 } = r.options;
      let slot = r.fixedSlot ?? 0;
      if (r.generation) {
        const got = this.adapters.acquire(r.generation);
        if (got === null) return;
        slot = got;
      }
      const length = r.virtual + prompt.length;
      const limit = length + (r.kind === "generate" ? maxTokens : 0);
      const seq = this.host.exports.addRequest(KIND[r.kind], length, limit, slot, r.virtual);
      if (seq === NONE) {
        if (r.generation) this.adapters.release(r.generation);
        return;
      }
      this.host.tokens(seq).fill(0, 0, r.virtual);
      this.host.tokens(seq).set(prompt, r.virtual);
      if (r.kind === "generate") {
        const o = r.options;
        const stops = o.stopIds ?? [];
        this.host.exports.setSampling(
          seq,
          o.temperature ?? 0,
          o.topK ?? 0,
          o.topP ?? 1,
          o.minP ?? 0,
          o.repetitionPenalty ?? 1,
          (o.seed ?? 0) | 0,
          stops.length,
        );
        this.host.stops(seq).set(stops);
      }
      r.seq = seq;
      r.slot = slot;
      this.live.set(seq, r);
      this.waiting.shift();
    }
  }

  /**
   * Make an adapter part of the base weights, or (null) take them from the bundle again: nothing is ever subtracted. The engine must be at rest.
   * Returns how long the switch took. Throws WEFT_CONFLICT while anything runs, WEFT_ADAPTER for a method that cannot merge.
   */
  async merge(ref: AdapterRef | null): Promise<{ ms: number }> {
    if (this.dead) throw this.dead;
    if (this.exclusive || this.jobs.size || this.live.size || this.waiting.length)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: "merge",
        expected: "an engine at rest",
        found: "requests or jobs in flight",
        retryable: true,
      });
    const t0 = performance.now();
    const generation = ref === null ? null : this.adapters.find(ref);
    const { manifest, device } = this;
    // A method that cannot merge is refused before anything changes.
    const changes = generation
      ? mergeChanges(manifest, device.plan, generation.content)
      : new Map<string, Change>();
    this.exclusive = true;
    try {
      await uploadWeights(
        this.reader,
        manifest,
        device,
        () => {},
        (layer, name, values) => changes.get(`${layer} ${name}`)?.(values),
      );
      this.merged = generation?.ref ?? null;
    } catch (e) {
      // Some weights may be new and some old: nothing right could be computed with them.
      this.fail(e);
      throw e;
    } finally {
      this.exclusive = false;
    }
    return { ms: performance.now() - t0 };
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
  get jobsRunning(): number {
    return this.jobs.size;
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
      if (!this.lanes.some((l) => l.running)) for (const w of this.idleWaiters.splice(0)) w();
    }
  }

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
    if (trace) this.options.onStep!({ lane, ...trace, units, commands: count, ms: performance.now() - t0 });
    return true;
  }
  private traceRows(lane: number): Pick<StepTrace, "rows" | "requests" | "jobs"> {
    const rows = { generate: 0, score: 0, train: 0 };
    const requests = new Set<number>();
    const jobs = new Set<number>();
    for (const s of this.host.rowSequences(lane)) {
      const kind = this.live.get(s)?.kind ?? "train";
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
        pending.push({
          r,
          e: {
            id: b,
            logprob: row[b]! - logSum,
            top: topOf(row, r.options.logprobs ?? 0, logSum),
            adapter: r.generation?.ref ?? this.merged ?? "base",
          },
        });
      } else if (type === EVENT.scored) {
        const r = this.live.get(a);
        if (r && !r.done && b >= r.virtual) r.scored(b - r.virtual, rowOf(c), logSums[c]!);
      } else if (type === EVENT.finished) {
        const r = this.live.get(a);
        const last = pending.findIndex((p) => p.r === r);
        if (last >= 0) r!.push({ ...pending.splice(last, 1)[0]!.e, finish: b === 1 ? "stop" : "length" });
        if (r) this.finish(r, null);
      } else if (type === EVENT.microDone) {
        await this.jobs.get(a)?.microDone();
        // Requests may have waited for its blocks.
        this.kick();
      }
    }
    flush();
  }

  /** Everything in flight ends with `error`; the engine is unusable after. */
  private fail(error: unknown): void {
    this.dead ??=
      error instanceof WeftError
        ? error
        : new WeftError({
            code: "WEFT_DEVICE",
            where: "step",
            expected: "a step that runs",
            found: (error as Error)?.message ?? String(error),
            cause: error,
          });
    for (const r of [...this.live.values(), ...this.waiting]) this.finish(r, this.dead);
    for (const feed of [...this.jobs.values()]) feed.fail(this.dead);
  }

  /** Bytes by purpose, and blocks and slots in use. */
  memory(): {
    bytes: Readonly<Record<string, number>>;
    blocks: { total: number; free: number };
    slots: { total: number; used: number };
  } {
    return {
      bytes: this.device.memory,
      blocks: { total: this.host.exports.blocksTotal(), free: this.host.exports.freeBlocks() },
      slots: { total: this.manifest.capacities.slots, used: this.adapters.slotsInUse() },
    };
  }
  get disposed(): boolean {
    return this.dead !== null;
  }
  /** Reject what runs, let the current step finish, release the device. */
  async dispose(): Promise<void> {
    const running = (): boolean => this.lanes.some((l) => l.running);
    if (!this.dead || running()) {
      this.fail(
        new WeftError({
          code: "WEFT_DISPOSED",
          where: "engine",
          expected: "an engine in use",
          found: "dispose() was called",
        }),
      );
      if (running()) await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
    }
    this.device.dispose();
  }
}

/** The `n` largest of a row, the lower id first where two are equal. */
function topOf(row: Float32Array, n: number, logSum: number): { id: number; logprob: number }[] {
  const ids: number[] = [];
  for (let i = 0; n > 0 && i < row.length; i++) {
    if (ids.length === n && !(row[i]! > row[ids[n - 1]!]!)) continue;
    const at = ids.findIndex((id) => row[i]! > row[id]!);
    ids.splice(at < 0 ? ids.length : at, 0, i);
    if (ids.length > n) ids.pop();
  }
  return ids.map((id) => ({ id, logprob: row[id]! - logSum }));
}
