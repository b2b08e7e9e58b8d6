/**
 * An engine that survives. It knows what was wanted of it; when the engine under it ends (its device is lost,
 * its worker gone), it opens another, makes it what the last one was, and lets jobs and answers go on where
 * they were, with the same bits. Who uses it sees an event and a pause.
 */
import type { AdapterRef } from "../../runtime/adapters.ts";
import type { Merged, MergeOptions } from "../../runtime/engine.ts";
import { disposed, WeftError } from "../../runtime/errors.ts";
import type { Reports } from "../../runtime/report.ts";
import { abortable, throwIfAborted } from "../../runtime/signals.ts";
import type { AsyncAdapter, AsyncEngine, AsyncJob } from "../async.ts";
import type { Completion, FinetuneOptions, GenerateOptions, Piece } from "../engine.ts";
import { gather } from "../pieces.ts";
import type { Backend, Facts, Learned } from "./backend.ts";
import type { AdapterFacts, ArgsOf, CallName, ResultOf } from "./calls.ts";
import { type Deferred, deferred } from "./deferred.ts";
import { ReplayJob } from "./job.ts";
import { Journal } from "./journal.ts";
import type { RecoverEvent, ReplayOptions } from "./options.ts";
import { ReplayStream, seeded } from "./stream.ts";

/** Opens an engine: the first, or one that computes as `like` does. */
export type Open = (like: Facts | null) => Promise<Backend>;

const LOSSES = 3;
/** Seconds. */
const WITHIN = 60;
const CHECKPOINT = 30;
/** Milliseconds before another try, where no engine could be opened. */
const PAUSE = 250;

export class ReplayEngine implements AsyncEngine {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "ReplayEngine";
  private readonly journal = new Journal();
  private readonly jobs = new Set<ReplayJob>();
  /** Null while there is none that lives. */
  private backend: Backend | null = null;
  private over: WeftError | null = null;
  private readonly waiting = new Set<Deferred<Backend>>();
  /** When engines were lost, in ms. */
  private losses: number[] = [];
  private readonly end = deferred<WeftError>();
  private gone: Promise<void> = Promise.resolve();
  private readonly tell: (e: RecoverEvent) => void;

  private constructor(
    private facts: Facts,
    private readonly open: Open,
    private readonly o: ReplayOptions,
    private readonly reporting: Reports,
  ) {
    this.tell = reporting.guard("onRecover", o.onRecover);
  }
  /** Throws what the first engine does not open for. */
  static async open(open: Open, o: ReplayOptions, reporting: Reports): Promise<ReplayEngine> {
    const backend = await open(null);
    const engine = new ReplayEngine(backend.facts, open, o, reporting);
    engine.attach(backend);
    return engine;
  }

  get manifest(): Facts["manifest"] {
    return this.facts.manifest;
  }
  get generationDefaults(): Facts["manifest"]["generation"] {
    return this.manifest.generation;
  }
  get device(): Facts["device"] {
    return this.facts.device;
  }
  get invariance(): Facts["invariance"] {
    return this.facts.invariance;
  }
  get base(): string {
    return this.facts.base;
  }
  get reports(): readonly WeftError[] {
    return this.reporting.kept;
  }
  get closed(): Promise<WeftError> {
    return this.end.promise;
  }

  encode(...a: ArgsOf<"encode">): Promise<ResultOf<"encode">> {
    return this.call(undefined, "encode", ...a);
  }
  decode(...a: ArgsOf<"decode">): Promise<ResultOf<"decode">> {
    return this.call(undefined, "decode", ...a);
  }
  promptIds(...a: ArgsOf<"promptIds">): Promise<ResultOf<"promptIds">> {
    return this.call(undefined, "promptIds", ...a);
  }
  memory(): Promise<ResultOf<"memory">> {
    return this.call(undefined, "memory");
  }
  score(...a: ArgsOf<"score">): Promise<ResultOf<"score">> {
    return this.call(a[1]?.signal, "score", ...a);
  }
  saveModel(...a: ArgsOf<"saveModel">): Promise<ResultOf<"saveModel">> {
    return this.call(undefined, "saveModel", ...a);
  }
  async merge(ref: AdapterRef | null, options?: MergeOptions): Promise<Merged> {
    const { merged, fixed } = await this.call(undefined, "merge", ref, options);
    this.journal.merged(fixed, options);
    return merged;
  }
  generate(o: GenerateOptions): AsyncGenerator<Piece, void, void> {
    return new ReplayStream(
      seeded(o),
      () => this.current(o.signal),
      ({ adapter }) => this.journal.hold(adapter),
    );
  }
  complete(o: GenerateOptions): Promise<Completion> {
    return gather(this.generate(o));
  }
  async finetune(o: FinetuneOptions): Promise<AsyncJob> {
    throwIfAborted(o.signal);
    const backend = await this.current(o.signal);
    const job = new ReplayJob(
      o,
      this.journal,
      this.o.recover?.checkpoint ?? CHECKPOINT,
      this.reporting.guard(`onEvent of job ${o.name}`, o.onEvent),
      (ended, learned) => this.ended(ended, learned),
    );
    this.jobs.add(job);
    void job.start(backend);
    await job.started;
    return job;
  }
  private ended(job: ReplayJob, learned: Learned | null): void {
    this.jobs.delete(job);
    if (!learned) return;
    // Of training it is known when a job has run.
    this.facts = { ...this.facts, invariance: learned.invariance };
    if (learned.base === this.base) return;
    // Full training: another base from now on.
    this.facts = { ...this.facts, base: learned.base };
    this.journal.learned(job.again.options, job.again.end);
  }

  readonly adapters = {
    load: async (...a: ArgsOf<"load">): Promise<AsyncAdapter> =>
      this.made(await this.call(undefined, "load", ...a)),
    combine: async (...a: ArgsOf<"combine">): Promise<AsyncAdapter> =>
      this.made(await this.call(undefined, "combine", ...a)),
    get: async (ref: string): Promise<AsyncAdapter> =>
      this.handle(await this.call(undefined, "adapter", ref)),
    list: (): Promise<ResultOf<"list">> => this.call(undefined, "list"),
    remove: async (name: string): Promise<void> => {
      await this.call(undefined, "remove", name);
      this.journal.removed(name);
    },
  };
  private made({ facts, published }: ResultOf<"load">): AsyncAdapter {
    this.journal.published(published);
    return this.handle(facts);
  }
  private handle(facts: AdapterFacts): AsyncAdapter {
    return {
      ...facts,
      save: (...a) => this.call(undefined, "save", facts.ref, ...a),
      compress: (...a) => this.call(undefined, "compress", facts.ref, ...a),
      toBlobs: (...a) => this.call(undefined, "toBlobs", facts.ref, ...a),
      // To the user of this page: a worker has none.
      download: async (...a) => {
        const files = await this.call(undefined, "toBlobs", facts.ref, ...a);
        const { download } = await import("../download.ts");
        await download(facts.ref.replace("@", "-"), files);
      },
    };
  }

  /** An engine that lives, once there is one. */
  private current(signal: AbortSignal | undefined): Promise<Backend> {
    return abortable(
      signal,
      async () => {
        if (this.over) throw this.over;
        if (this.backend) return this.backend;
        const ready = deferred<Backend>();
        this.waiting.add(ready);
        return ready.promise;
      },
      () => {},
    );
  }
  /** Asked again of the next engine when this one ends before it answers. */
  private async call<K extends CallName>(
    signal: AbortSignal | undefined,
    name: K,
    ...args: ArgsOf<K>
  ): Promise<ResultOf<K>> {
    for (;;) {
      const backend = await this.current(signal);
      try {
        return await backend.call(name, ...args);
      } catch (e) {
        if (!backend.ended) throw e;
        this.lost(backend, backend.ended);
      }
    }
  }

  private attach(backend: Backend): void {
    this.backend = backend;
    void backend.closed.then((why) => this.lost(backend, why));
    for (const ready of this.waiting) ready.resolve(backend);
    this.waiting.clear();
  }
  private lost(backend: Backend, why: WeftError): void {
    if (this.over || this.backend !== backend) return;
    this.backend = null;
    this.gone = this.recover(why, backend);
  }
  /** May it be tried once more? Ends everything where it may not. */
  private again(why: WeftError): boolean {
    const { losses = LOSSES, within = WITHIN } = this.o.recover ?? {};
    const now = performance.now();
    this.losses = [...this.losses.filter((t) => t > now - within * 1000), now];
    const attempt = this.losses.length;
    this.tell({ type: "lost", why, attempt });
    if (attempt < losses) return true;
    this.close(
      new WeftError({
        code: "WEFT_DEVICE_LOST",
        where: "engine",
        expected: `fewer than ${losses} losses within ${within} seconds`,
        found: `${attempt}, the last: ${why.message}`,
        hint: "the device or its memory may not be up to the model: try less memory, or another device",
        cause: why,
      }),
    );
    return false;
  }
  private async recover(lost: WeftError, last: Backend): Promise<void> {
    const t0 = performance.now();
    await last.dispose();
    for (let why = lost; this.again(why); ) {
      let backend: Backend | null = null;
      try {
        backend = await this.open(this.facts);
        if (!this.over) await this.bringBack(backend);
        if (this.over) await backend.dispose();
        else if (backend.ended) throw backend.ended;
        else {
          this.attach(backend);
          this.tell({ type: "recovered", ms: performance.now() - t0, attempt: this.losses.length });
        }
        return;
      } catch (e) {
        const ended = backend?.ended;
        await backend?.dispose();
        const error = ended ?? WeftError.from(e);
        if (this.over) return;
        if (!error || !(ended || mayPass(error))) return this.close(error ?? failed(e));
        why = error;
        if (!backend) await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    }
  }
  private async bringBack(backend: Backend): Promise<void> {
    const { facts } = backend;
    const same = (f: Facts): string => JSON.stringify([f.manifest.files, f.device.numerics]);
    if (same(facts) !== same(this.facts))
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: "engine",
        expected: `the bundle as it was, in numerics ${this.facts.device.numerics}`,
        found: `another, or numerics ${facts.device.numerics}`,
        hint: "load it anew: answers and jobs would not be the same",
      });
    this.facts = { ...facts, base: this.base };
    await this.journal.bringBack(backend);
    for (const job of [...this.jobs]) await job.start(backend);
  }

  /** Everything ends with `why`. The first reason stays. */
  private close(why: WeftError): void {
    if (this.over) return;
    this.over = why;
    for (const ready of this.waiting) ready.reject(why);
    this.waiting.clear();
    for (const job of [...this.jobs]) job.fail(why);
    this.end.resolve(why);
  }
  /** Reject what runs and let go of all: resolves when threads and memory are free. */
  async dispose(): Promise<void> {
    const { backend } = this;
    this.close(disposed("engine"));
    await backend?.dispose();
    await this.gone;
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}
/** Of an engine that could not be opened: is it worth another try? */
const mayPass = (e: WeftError): boolean =>
  e.retryable || e.code === "WEFT_DEVICE" || e.code === "WEFT_DEVICE_LOST";
const failed = (e: unknown): WeftError =>
  new WeftError({
    code: "WEFT_DEVICE",
    where: "engine",
    expected: "an engine that opens again",
    found: (e as Error)?.message ?? String(e),
    cause: e,
  });
