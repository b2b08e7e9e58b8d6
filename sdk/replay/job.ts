/**
 * A job that outlives the engine it runs on: it goes on from its last checkpoint, and tells nothing twice.
 */

import type { Published } from "../../runtime/adapters.ts";
import type { Place } from "../../runtime/folders.ts";
import { jobEnded } from "../../runtime/rest.ts";
import { onAbort, reasonOf } from "../../runtime/signals.ts";
import type { TrainEvent, TrainResult } from "../../runtime/training.ts";
import type { Checkpoint } from "../checkpoint.ts";
import type { FinetuneOptions } from "../options.ts";
import type { Backend, BackendJob, Learned } from "./backend.ts";
import { type Deferred, deferred } from "./deferred.ts";
import type { Journal } from "./journal.ts";

/** What is told of each kind so far: of a step no more than once. */
type Told = Record<TrainEvent["type"], number>;

interface Live {
  readonly backend: Backend;
  readonly job: BackendJob;
}

export class ReplayJob {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "ReplayJob";
  private readonly result = deferred<TrainResult>();
  private readonly taken = deferred<void>();
  private live: Live | null = null;
  /** It has ended; what is asked of it then is rejected with. */
  private over: { readonly error: unknown } | null = null;
  private cancelled: { readonly reason: unknown } | null = null;
  private readonly published = new Map<number, number>();
  private last: Checkpoint | null = null;
  private readonly told: Told = { start: -1, step: 0, eval: 0, checkpoint: -1, publish: 0, done: -1 };
  /** The last step of the job that runs, which goes again through those that were told. */
  private at = 0;
  /** Who waits for a job that runs and has come as far as was told. */
  private readonly waiting: Deferred<Live>[] = [];
  private began = false;
  private readonly releases: (() => void)[] = [];

  constructor(
    private o: FinetuneOptions,
    private readonly journal: Journal,
    private readonly every: number,
    private readonly tell: (e: TrainEvent) => void,
    private readonly ended: (job: ReplayJob, learned: Learned | null) => void,
  ) {
    const { signal, onEvent: _, ...rest } = o;
    this.o = rest;
    this.releases.push(onAbort(signal, (reason) => this.cancel(reason)));
  }
  /** As of a job; losses of the engine under it do not reject it. */
  get done(): Promise<TrainResult> {
    return this.result.promise;
  }
  /** Resolves once an engine took it, rejects when one refused. */
  get started(): Promise<void> {
    return this.taken.promise;
  }
  get name(): string {
    return this.o.name;
  }
  /** Optimizer steps that were told. */
  get step(): number {
    return this.told.step;
  }
  /** Start it on an engine, or go on there. Resolves when it runs, or has ended, or the engine has. */
  async start(backend: Backend): Promise<void> {
    if (this.over) return;
    this.at = this.last?.state.step ?? 0;
    try {
      const again = { from: this.last, published: this.published, every: this.every };
      const job = await backend.finetune(this.o, again, {
        event: (e) => this.hear(e),
        published: (p, step) => this.hearOf(p, step),
        kept: (c) => {
          this.last = c;
        },
      });
      if (this.over) {
        job.cancel();
        return;
      }
      if (!this.began) this.begun(job);
      this.live = { backend, job };
      void job.done.then(
        (learned) => this.finish(learned),
        (e) => this.failed(backend, e),
      );
      this.taken.resolve();
      this.caughtUp();
    } catch (e) {
      this.failed(backend, e);
    }
  }
  /** From here on it is the same job whatever its names come to mean. */
  private begun({ learnsFrom }: BackendJob): void {
    this.began = true;
    const { from, disjointFrom } = learnsFrom;
    this.o = { ...this.o, ...(from && { from }), ...(disjointFrom && { disjointFrom }) };
    for (const ref of [from, ...(disjointFrom ?? [])]) this.releases.push(this.journal.hold(ref));
  }
  private failed(backend: Backend, error: unknown): void {
    if (!backend.ended || this.cancelled) this.fail(error);
    else this.left(backend);
  }
  /** It goes on with the next engine. */
  private left(backend: Backend): void {
    if (this.live?.backend === backend) this.live = null;
  }
  private checkRuns(): void {
    if (this.over) throw this.over.error;
  }
  private hear(e: TrainEvent): void {
    if (this.over) return;
    const step = "step" in e ? e.step : 0;
    if (e.type === "step") this.at = step;
    // A generation is published once; of a step that comes again the rest was told.
    if (e.type === "publish" || step > this.told[e.type]) {
      this.told[e.type] = step;
      this.tell(e);
    }
    this.caughtUp();
  }
  private hearOf(p: Published, step: number): void {
    this.published.set(step, p.number);
    this.journal.published(p);
  }
  private caughtUp(): void {
    if (!this.live || this.at < this.told.step) return;
    for (const { resolve } of this.waiting.splice(0)) resolve(this.live);
  }
  /** What is asked between two steps, of a job that has come as far as was told. */
  private async ask<T>(what: (job: BackendJob) => Promise<T>): Promise<T> {
    for (;;) {
      this.checkRuns();
      const ready = deferred<Live>();
      this.waiting.push(ready);
      this.caughtUp();
      const { backend, job } = await ready.promise;
      try {
        return await what(job);
      } catch (e) {
        this.checkRuns();
        if (!backend.ended) throw e;
        this.left(backend);
      }
    }
  }
  /** Resolves with the generation (`name@n`) that new requests get from now on. */
  publish(): Promise<string> {
    return this.ask((job) => job.publish());
  }
  /** Make what the job is now the current version in `dir`, as `Job.checkpoint`. */
  checkpoint(dir: Place): Promise<void> {
    return this.ask((job) => job.checkpoint(dir));
  }
  /** Stop at once; `done` rejects with an AbortError, or the reason given. */
  cancel(reason: unknown = new DOMException("the job was cancelled", "AbortError")): void {
    if (this.over || this.cancelled) return;
    this.cancelled = { reason: reasonOf(reason) };
    if (this.live) this.live.job.cancel();
    else this.fail(this.cancelled.reason);
  }
  fail(error: unknown): void {
    if (this.over) return;
    const why = this.cancelled?.reason ?? error;
    this.end({ error: why }, null);
    this.taken.reject(why);
    this.result.reject(why);
  }
  private finish(learned: Learned): void {
    if (this.over) return;
    this.end({ error: jobEnded(this.name) }, learned);
    this.result.resolve(learned.result);
  }
  private end(over: { readonly error: unknown }, learned: Learned | null): void {
    this.over = over;
    for (const release of this.releases) release();
    for (const { reject } of this.waiting.splice(0)) reject(over.error);
    this.ended(this, learned);
  }
  /** What it takes to come to its end again. */
  get again(): { readonly options: FinetuneOptions; readonly end: Checkpoint } {
    return { options: this.o, end: this.last! };
  }
}
