/**
 * An engine of token ids: requests and jobs of any adapters over one base, and whose the base is. The host
 * decides, the loops play; text, files and servers are the SDK's. Longer than most files, and one thing: what
 * may be asked of a base, and what excludes what.
 */
import { type AdapterRef, AdapterStore, type Generation, readyForSlots } from "./adapters.ts";
import { Arrivals } from "./arrivals.ts";
import { type BaseTensor, BaseWeights, otherBase, type StoredTensor } from "./base.ts";
import { CORRECTION, disposed, type Manifest, NONE, type Sizes, WeftError } from "./bundle.ts";
import { virtualTokens } from "./content.ts";
import type { Device, DeviceInfo, LoadProgress } from "./device.ts";
import { Host, MAX_QUEUED, readHost } from "./host.ts";
import { type Invariance, type OpenHost, settleInvariance, type Verdicts } from "./invariance.ts";
import { Contents, type Holder } from "./kept.ts";
import { readManifest, readVerified, uploadWeights } from "./load.ts";
import { type Feed, Loops, type StepTrace } from "./loops.ts";
import type { Merged } from "./merge.ts";
import { checked, EngineOptions, GenerateIds, MergeOptions } from "./options.ts";
import type { BundleReader } from "./reader.ts";
import { Reports } from "./report.ts";
import { checkBiases, MAX_TOKENS, roomAfter, type Score, type TokenEvent } from "./requests.ts";
import type { Spill } from "./resident.ts";
import { seedOf } from "./sampling.ts";
import { Serving } from "./serving.ts";
import { abortable, onAbort, throwIfAborted } from "./signals.ts";
import { type Producer, Stream } from "./stream.ts";
import { STEP_TIMEOUT, Supervised } from "./supervise.ts";

export type { Finish, Score, TokenEvent } from "./requests.ts";
export type { EngineOptions, Feed, GenerateIds, Merged, MergeOptions, StepTrace };

/** Engines that nobody holds any more and nobody disposed of: their devices are let go. */
const dropped = new FinalizationRegistry<Device>((device) => void device.dispose());

/**
 * What a step with requests has: rows, or (0) as many as take so many milliseconds. A CPU decodes a row in no
 * less time than it takes a few others, so that a wanted time would leave prompts next to nothing there.
 */
function paceOf(target: DeviceInfo["target"], { budget, latency }: EngineOptions) {
  if (budget !== undefined && latency !== undefined)
    throw new WeftError({
      ...{ code: "WEFT_OPTION", where: "latency" },
      ...{ expected: "a step's rows or its time, not both", found: `budget ${budget}, latency ${latency}` },
    });
  const rows = budget ?? (target === "wasm" && latency === undefined ? 21 : 0);
  return { rows, ms: rows ? 0 : (latency ?? 25) };
}
const residentOf = async (most: number, spill: (() => Promise<Spill>) | null): Promise<Holder> => {
  const { Resident } = await import("./resident.ts");
  return new Resident(most, spill && (await spill()));
};
export class Engine {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "Engine";
  readonly adapters: AdapterStore;
  readonly weights: BaseWeights;
  private readonly serving: Serving;
  private readonly jobs = new Map<number, Feed>();
  private readonly loops: Loops;
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
    options: EngineOptions,
    reader: BundleReader,
    /** What the caller's own functions threw. */
    readonly reporting: Reports,
    contents: Contents,
    private readonly arrivals: Arrivals,
  ) {
    this.weights = new BaseWeights(manifest, device, reader);
    this.adapters = new AdapterStore(manifest, device, host, () => this.base, contents);
    this.serving = new Serving(
      manifest,
      host,
      this.adapters,
      options.maxQueued ?? MAX_QUEUED,
      () => this.merged,
      () => this.kick(),
      options.prefixCache ?? true,
    );
    const pace = paceOf(device.info.target, options);
    host.exports.want(Math.round(1000 * pace.ms));
    this.loops = new Loops(
      { manifest, device, host, serving: this.serving, adapters: this.adapters, jobs: this.jobs },
      {
        budget: pace.rows,
        idle: options.idleBudget ?? manifest.capacities.tokens,
        onStep: options.onStep ? reporting.guard("onStep", options.onStep) : null,
      },
      (e) => this.fail(e),
    );
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
   * phase. What `verdicts` says of a bundle on a device is not checked again. `spill` opens a place for
   * adapters that there is no room for in memory.
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
    spill: (() => Promise<Spill>) | null = null,
  ): Promise<Engine> {
    checked(EngineOptions, options);
    return abortable(
      options.signal,
      () => Engine.opening(reader, open, options, verdicts, spill),
      (late) => late.dispose(),
    );
  }
  private static async opening(
    reader: BundleReader,
    open: Parameters<typeof Engine.open>[1],
    options: EngineOptions,
    verdicts: Verdicts,
    spill: (() => Promise<Spill>) | null,
  ): Promise<Engine> {
    const reporting = new Reports(options.onError);
    const told = reporting.guard("onProgress", options.onProgress);
    // Who gave up is not told, and what it gave up goes no further.
    const progress = (p: LoadProgress): void => {
      throwIfAborted(options.signal);
      told(p);
    };
    progress({ phase: "fetch", done: 0, total: 0 });
    const bundle = await readManifest(reader);
    const opened = await open(bundle, (name) => readVerified(reader, bundle, name), told);
    // From here on its capacities are those that the device has room for.
    const manifest = { ...bundle, capacities: { ...bundle.capacities, ...opened.sizes } };
    const device = new Supervised(opened, options.stepTimeout ?? STEP_TIMEOUT);
    try {
      throwIfAborted(options.signal);
      const files = await readHost((name) => readVerified(reader, manifest, name));
      await uploadWeights(reader, manifest, device, progress);
      progress({ phase: "check", done: 0, total: 1 });
      const openHost: OpenHost = (manifest, { plan, lanes, picks }, families) => {
        const queued = options.maxQueued ?? MAX_QUEUED;
        return Host.open(manifest, plan.metaWords, { families, lanes, queued, picks }, files);
      };
      await readyForSlots(manifest);
      const { verdict, host } = await settleInvariance(manifest, device, openHost, verdicts);
      const arrivals = new Arrivals(manifest, device, verdict, openHost);
      const most = options.adapters?.memory;
      const holder = most === undefined ? undefined : await residentOf(most, spill);
      const contents = new Contents(manifest, holder);
      const engine = new Engine(manifest, device, host, options, reader, reporting, contents, arrivals);
      dropped.register(engine, opened, engine);
      engine.invariance = verdict.invariance;
      await reader.loaded?.();
      progress({ phase: "ready", done: 1, total: 1 });
      return engine;
    } catch (e) {
      await device.dispose();
      throw e;
    }
  }

  /**
   * Is a row's result the same bits whatever batch it is in? Checked on this device at load, of a class's
   * training at the latest when its first job begins; told, never hidden.
   */
  invariance: Invariance = "off";

  /** A job's kernels are there and checked when this resolves. Throws WEFT_DEVICE for one that is refused. */
  async readyToTrain(method: string, optimizer: string): Promise<void> {
    if (!(await this.arrivals.training(method, optimizer))) this.invariance = "off";
  }

  /** Identity of the base weights, by value: the bundle's, or of what full training made of them. */
  get base(): string {
    return this.weights.id;
  }
  get info(): DeviceInfo {
    return this.device.info;
  }

  /**
   * Stream tokens of one request. It is queued, and checked, by the first `next()`; leaving the loop early,
   * `return()` or an abort ends it at once, waiting or running, and frees its cache. A stream with 16 unread
   * tokens is paused until half of them are read: it costs nobody anything, and where others need the room it
   * gives way, to compute what it knew again before it goes on, with the same tokens.
   */
  generate(options: GenerateIds): AsyncGenerator<TokenEvent, void, void> {
    checked(GenerateIds, options);
    return new Stream<TokenEvent>((stream) => {
      const needs = this.adapters.needs(options.adapter);
      if (!needs) return this.begin(options, stream);
      let left = false;
      let begun: Producer | null = null;
      needs
        .then(() => {
          if (!left) begun = this.begin(options, stream);
        })
        .catch((e) => stream.end(e));
      return {
        leave: () => {
          left = true;
          begun?.leave();
        },
        pause: (on) => begun?.pause?.(on),
      };
    });
  }
  private begin(o: GenerateIds, stream: Stream<TokenEvent>): Producer {
    throwIfAborted(o.signal);
    checkBiases(this.manifest, o);
    const generation = this.named(o.adapter);
    const virtual = virtualTokens(this.manifest, generation?.shape ?? null);
    const said = o.said?.length ?? 0;
    const asked = (o.maxTokens ?? MAX_TOKENS) - said;
    const prompt = said ? [...o.prompt, ...o.said!] : o.prompt;
    const room = roomAfter(this.manifest, prompt, virtual, asked > 0 ? 1 : 0);
    if (asked <= 0) {
      stream.end(null);
      return { leave: () => {} };
    }
    let forget = (): void => {};
    const request = this.enqueue({
      kind: "generate",
      prompt,
      said,
      maxTokens: Math.min(asked, room),
      clipped: asked > room,
      sampling: o,
      seed: seedOf(o),
      generation,
      virtual,
      salt: o.salt ?? null,
      job: NONE,
      push: (e) => stream.push(e),
      scored: () => {},
      end: (error) => {
        forget();
        stream.end(error);
      },
    });
    forget = onAbort(o.signal, (reason) => this.serving.cancel(request, reason));
    return {
      leave: () => this.serving.cancel(request),
      pause: (on) => this.serving.pause(request, on),
    };
  }

  /**
   * Loss and log-probabilities of given ids under an adapter (or what a job trains). `next` are the ids to
   * score at each position, where they are not those that follow: -100 for none.
   */
  async score(
    ids: readonly number[],
    o: {
      adapter?: AdapterRef | undefined;
      job?: { readonly index: number; readonly virtual: number };
      next?: readonly number[];
      logits?: boolean;
      signal?: AbortSignal | undefined;
    } = {},
  ): Promise<Score> {
    await this.adapters.needs(o.adapter);
    throwIfAborted(o.signal);
    const generation = o.job ? null : this.named(o.adapter);
    const virtual = o.job?.virtual ?? virtualTokens(this.manifest, generation?.shape ?? null);
    roomAfter(this.manifest, ids, virtual, 0);
    const next = o.next ?? ids.slice(1);
    const logprobs = new Float64Array(next.length);
    const logits: Float32Array[] | null = o.logits ? [] : null;
    let forget = (): void => {};
    await new Promise<void>((resolve, reject) => {
      const request = this.enqueue({
        kind: "score",
        prompt: ids,
        said: 0,
        maxTokens: 0,
        clipped: false,
        sampling: {},
        seed: null,
        generation,
        virtual,
        salt: null,
        job: o.job?.index ?? NONE,
        push: () => {},
        scored: (position, row, logSum) => {
          if (logits) logits[position] = row.slice();
          const id = next[position] ?? NONE;
          if (id >= 0) logprobs[position] = row[id]! - logSum;
        },
        end: (error) => (error === null ? resolve() : reject(error)),
      });
      forget = onAbort(o.signal, (reason) => this.serving.cancel(request, reason));
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
  /**
   * The adapter that answers, and that jobs of its method start from, where none is named: the one that
   * corrects the bundle's rounding, while it is there and the base is the bundle's. Undefined: the base
   * itself.
   */
  get standard(): string | undefined {
    const { manifest, merged, base, adapters } = this;
    const own = manifest.correction && !merged && base === manifest.base && adapters.has(CORRECTION);
    return own ? CORRECTION : undefined;
  }
  private named(ref: AdapterRef | undefined = this.standard): Generation | null {
    this.check();
    const generation = ref ? this.adapter(ref) : null;
    if (generation?.shape.replaces)
      throw new WeftError({
        code: "WEFT_ADAPTER",
        where: `adapter ${generation.name}`,
        expected: "an adapter that shares the base",
        found: `one with modules of its own (${[...generation.shape.replaces.keys()].join(", ")})`,
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
  private enqueue(r: Parameters<Serving["enqueue"]>[0]): ReturnType<Serving["enqueue"]> {
    this.check();
    if (this.exclusive && r.job === NONE) throw this.taken(r.kind);
    if (this.merged && r.generation)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: r.kind,
        expected: "a base with nothing merged",
        found: this.merged,
        hint: "merge(null) first",
      });
    return this.serving.enqueue(r);
  }
  /** The lane of jobs, and the end of the list that it has on its way. */
  get jobLane(): number {
    return this.device.lanes - 1;
  }
  jobsAtRest(): Promise<void> {
    return this.loops.atRest(this.jobLane);
  }

  /**
   * Make an adapter part of the base weights, or (null) take them back as they were before: nothing is ever
   * subtracted. The engine must be at rest. Throws WEFT_CONFLICT while anything runs, WEFT_ADAPTER for a
   * method that cannot merge, and for matrices in blocks unless they may be rounded again.
   */
  async merge(ref: AdapterRef | null, options: MergeOptions = {}): Promise<Merged> {
    checked(MergeOptions, options);
    const [{ merge }] = await Promise.all([import("./merge.ts"), this.adapters.needs(ref)]);
    return merge(this, ref, options.requantise);
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

  /** The same one by one, as they are stored. Throws as `baseTensors`. */
  async *storedTensors(): AsyncGenerator<StoredTensor, void, void> {
    this.check();
    if (this.exclusive) throw this.taken("base weights");
    this.readers++;
    try {
      yield* this.weights.stored();
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
    return this.serving.size > 0;
  }
  get jobsRunning(): number {
    return this.jobs.size;
  }
  /** From now on only `what` may use the base weights, and change them: what was computed is void. */
  own(what: string): void {
    this.exclusive = what;
    this.host.exports.forgetAll();
  }
  /** Why the base weights cannot change now; null where nothing uses them. */
  get inUse(): string | null {
    if (this.exclusive) return this.exclusive;
    if (this.jobs.size) return "a job that runs";
    if (this.busy) return "requests that run or wait";
    return this.readers ? "a model that is being saved: its weights are read" : null;
  }

  /** Something may be done now that could not before. */
  kick(): void {
    this.loops.kick();
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
    this.loops.end();
    this.released = this.device.end(this.dead);
    this.serving.endAll(this.dead);
    this.adapters.close();
    for (const feed of [...this.jobs.values()]) feed.fail(this.dead);
    this.close(this.dead);
  }

  /**
   * Bytes by purpose, what was chosen at load, and blocks, slots and their pages in use. Of the free blocks,
   * those that are `cached` keep the prefix of an ended request until somebody needs room.
   */
  memory(): {
    bytes: Readonly<Record<string, number>>;
    capacities: Sizes;
    blocks: { total: number; free: number; cached: number };
    slots: { total: number; used: number };
    pages: { total: number; used: number };
  } {
    const { exports } = this.host;
    return {
      bytes: this.device.memory,
      capacities: this.device.sizes,
      blocks: {
        total: exports.blocksTotal(),
        free: exports.freeBlocks(),
        cached: exports.keptBlocks(),
      },
      slots: { total: this.manifest.capacities.slots, used: exports.slotsInUse() },
      pages: { total: this.manifest.capacities.pages, used: exports.pagesInUse() },
    };
  }
  get disposed(): boolean {
    return this.dead !== null;
  }
  /** Why it ended; null while it lives. */
  get ended(): WeftError | null {
    return this.dead;
  }
  /**
   * Reject what runs, waits or comes, and let the device go: resolves when its threads and memory are free.
   * Again and again, if need be.
   */
  dispose(): Promise<void> {
    this.fail(disposed("engine"));
    return this.released;
  }
}
