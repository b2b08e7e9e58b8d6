/**
 * A fine-tuning job: rows → optimizer steps → micro-batches that the host co-serves. What a job computes
 * depends on its options and data alone, never on load: batches come from seeds, sums from a fixed order.
 */
import { accumulators } from "./accumulators.ts";
import { WeftError, wordsOf } from "./bundle.ts";
import { type AdapterShape, trainableCount, virtualTokens } from "./content.ts";
import type { Engine, Feed } from "./engine.ts";
import { initialContent } from "./initial.ts";
import { MicroBatches } from "./microbatches.ts";
import { mix, shuffled } from "./random.ts";
import { AtRest, jobEnded } from "./rest.ts";
import type { Item } from "./rows.ts";
import type { ModelView } from "./selectors.ts";
import { abortable, onAbort, reasonOf } from "./signals.ts";
import {
  configOf,
  learningRateAt,
  type Settings,
  settingsOf,
  type TrainEvent,
  type TrainOptions,
  type TrainResult,
  type TrainState,
} from "./training.ts";

/** What a job trains on and is evaluated on. */
export interface Data {
  readonly items: readonly Item[];
  readonly evalItems: readonly Item[];
  readonly skippedRows: number;
}
export class Job implements Feed {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "Job";
  readonly done: Promise<TrainResult>;
  readonly name: string;
  private readonly controller = new AbortController();
  private readonly micro: MicroBatches;
  private holding: { resolve: (slot: number) => void; reject: (e: unknown) => void } | null = null;
  /** The adapter that is trained; its numbers are in its slot. */
  private shape: AdapterShape | null = null;
  private slot = 0;
  private state = { step: 0, losses: [] as number[], updates: 0, best: null as TrainState["best"] };
  private readonly rest = new AtRest();
  private readonly settings: Settings;
  private readonly tell: (e: TrainEvent) => void;
  /** Identity of the base weights that it began with. */
  readonly base: string;
  private lastGeneration: string | null = null;
  finished = false;

  constructor(
    private readonly engine: Engine,
    private readonly index: number,
    private readonly o: TrainOptions,
    private readonly data: Data,
  ) {
    this.name = o.name;
    this.base = engine.base;
    this.settings = settingsOf(o, data.items.length);
    this.micro = new MicroBatches(engine, index, o.method === "full");
    this.tell = engine.reporting.guard(`onEvent of job ${o.name}`, o.onEvent);
    const forget = onAbort(o.signal, (reason) => this.cancel(reason));
    this.done = this.run().finally(() => {
      this.finished = true;
      forget();
      engine.detach(this.index);
      if (o.method === "full") engine.exclusive = null;
      engine.kick();
    });
    this.done.catch(() => {});
  }

  get step(): number {
    return this.state.step;
  }
  /** The slot being trained, for scoring what it knows right now. */
  get trainingSlot(): number {
    return this.slot;
  }
  /**
   * Stop at once; `done` rejects with an AbortError (or the reason given), and so does what was asked for and
   * has not begun.
   */
  cancel(reason: unknown = new DOMException("the job was cancelled", "AbortError")): void {
    this.fail(reasonOf(reason));
  }
  fail(error: unknown): void {
    this.controller.abort(error);
    this.rest.close(error);
    this.micro.fail(error);
    this.holding?.reject(error);
    this.holding = null;
  }
  /** A slot for its own weights, once the host has one to give. */
  private held(shape: AdapterShape): Promise<number> {
    return new Promise((resolve, reject) => {
      this.holding = { resolve, reject };
      this.engine.adapters.wantSlot(this.index, shape);
      this.engine.kick();
    });
  }
  hold(slot: number): void {
    this.holding?.resolve(slot);
    this.holding = null;
  }
  feed(n: number): void {
    this.micro.feed(n);
  }
  microDone(): Promise<void> {
    return this.micro.microDone();
  }

  /**
   * Make what the job has learned so far a generation; resolves once new requests are served by it. Rejects,
   * and publishes nothing, when the job is cancelled or ends before its turn comes.
   */
  publish(): Promise<string> {
    return this.rest.ask(() => this.publishNow());
  }
  private async publishNow(): Promise<string> {
    if (!this.shape)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "publish",
        expected: "an adapter job",
        found: "full training",
      });
    const before = this.o.published?.get(this.state.step);
    if (before !== undefined) return (this.lastGeneration = `${this.name}@${before}`);
    const content = await this.engine.adapters.download(this.slot, this.shape);
    // Who cancelled meanwhile wants nothing published.
    this.controller.signal.throwIfAborted();
    const g = this.engine.adapters.publish(this.name, content);
    this.lastGeneration = g.ref;
    this.tell({ type: "publish", step: this.state.step, generation: this.lastGeneration });
    return this.lastGeneration;
  }
  /**
   * Everything needed to resume, taken between two optimizer steps. Rejects when the job is cancelled or ends
   * before its turn comes.
   */
  checkpoint(): Promise<TrainState> {
    return this.rest.ask(() => this.snapshot());
  }
  private async snapshot(): Promise<TrainState> {
    const { readTrained } = await import("./trained.ts");
    const kept = await readTrained(this.engine, this.index, this.shape?.branches ?? null);
    const adapter = this.shape ? await this.engine.adapters.download(this.slot, this.shape) : null;
    return {
      step: this.state.step,
      losses: [...this.state.losses],
      adapter,
      ...kept,
      updates: this.state.updates,
      best: this.state.best,
    };
  }

  private async run(): Promise<TrainResult> {
    const { engine, o, settings } = this;
    const { host, manifest, jobLane: lane } = engine;
    await null;
    const full = o.method === "full";
    const { items, skippedRows } = this.data;
    const { seed, steps, batchSize } = settings;
    const perEpoch = Math.ceil(items.length / batchSize);
    const config = configOf(manifest, o);
    /** Are the base's weights this job's to change? */
    let owns = false;
    try {
      const ready = (): Promise<void> => engine.readyToTrain(o.method, settings.optimizer.name);
      await abortable(this.controller.signal, ready, () => {});
      if (full) {
        await engine.weights.keep();
        owns = true;
      }
      this.controller.signal.throwIfAborted();
      if (!full) {
        // Most methods begin without a look at the model.
        let seen: Promise<ModelView> | undefined;
        const view = (): Promise<ModelView> => (seen ??= this.view());
        const content =
          o.resume?.adapter ?? o.from ?? (await initialContent(manifest, config, mix(seed, 1), view));
        this.controller.signal.throwIfAborted();
        const { tensors: _, ...shape } = content;
        this.shape = shape;
        this.slot = await this.held(shape);
        engine.adapters.fill(this.slot, content, lane);
      }
      const branches = this.shape?.branches ?? null;
      for (const range of accumulators(engine, this.index, branches).flat()) engine.device.clear(range);
      if (o.resume) {
        const { writeTrained } = await import("./trained.ts");
        this.controller.signal.throwIfAborted();
        writeTrained(engine, this.index, branches, o.resume);
        this.state = {
          step: o.resume.step,
          losses: [...o.resume.losses],
          updates: o.resume.updates,
          best: o.resume.best,
        };
      }
      host.exports.jobOpen(
        this.index,
        manifest.train.indexOf(o.method),
        manifest.updates.optimizers.indexOf(settings.optimizer.name),
      );

      const trainable = full ? manifest.model.parameters : trainableCount(manifest, this.shape!.branches);
      this.tell({
        type: "start",
        steps,
        trainable,
        rows: items.length,
        skippedRows,
        labelTokens: items.reduce((n, x) => n + x.labels, 0),
      });
      let bad = 0;
      while (this.state.step < steps) {
        const t0 = performance.now();
        const step = this.state.step;
        const epoch = Math.floor(step / perEpoch);
        const order = settings.shuffle
          ? shuffled(items.length, mix(mix(seed, 2), epoch))
          : items.map((_, i) => i);
        const batch = order
          .slice((step % perEpoch) * batchSize, ((step % perEpoch) + 1) * batchSize)
          .map((i) => items[i]!);
        const learningRate = learningRateAt(settings, step);
        const { loss, gradNorm, skipped } = await this.optimizerStep(
          batch,
          step,
          learningRate,
          config.dropout,
        );
        if (skipped) {
          bad++;
          if (bad >= 3)
            throw new WeftError({
              code: "WEFT_NUMERICS",
              where: `job ${this.name}, step ${step + 1}`,
              expected: "finite gradients",
              found: "three steps in a row that were not",
              hint: "lower the learning rate",
            });
        } else {
          bad = 0;
          this.state.updates++;
        }
        this.state.step++;
        this.state.losses.push(loss);
        const tokens = batch.reduce((n, x) => n + x.ids.length, 0);
        this.tell({
          type: "step",
          step: this.state.step,
          loss,
          learningRate,
          gradNorm,
          tokens,
          skipped,
          tokensPerSecond: (tokens / (performance.now() - t0)) * 1000,
        });
        if (
          this.data.evalItems.length &&
          (this.state.step % settings.evalEvery === 0 || this.state.step === steps)
        )
          await this.evaluate();
        if (!full && o.publishEvery && this.state.step % o.publishEvery === 0 && this.state.step < steps)
          await this.publishNow();
        await this.rest.run();
        this.controller.signal.throwIfAborted();
      }
      await this.rest.run();
      this.controller.signal.throwIfAborted();
      const { best } = this.state;
      const chosen = settings.select === "best" && best?.adapter ? best : null;
      if (chosen) engine.adapters.restore(this.slot, chosen.adapter!);
      if (full) await engine.weights.renew();
      else await this.publishNow();
      owns = false;
      const kept = chosen?.step ?? this.state.step;
      this.tell({ type: "done", step: this.state.step, loss: this.state.losses.at(-1) ?? 0, kept });
      // What was asked for since the last step.
      await this.rest.run();
      return {
        steps: this.state.step,
        losses: this.state.losses,
        generation: this.lastGeneration,
        bestLoss: best?.loss ?? null,
        kept,
      };
    } finally {
      this.rest.close(jobEnded(this.name));
      // What its list on the way may touch is given back after it.
      await engine.jobsAtRest();
      if (!engine.disposed) host.exports.jobClose(this.index);
      // Nobody is served by weights that were trained half.
      if (owns && !engine.disposed) await engine.weights.restore().catch((e) => engine.fail(e));
    }
  }

  /** What its adapter may begin from. */
  private async view(): Promise<ModelView> {
    const { engine, index, micro, o, data } = this;
    const [{ viewOf }, { calibrate }] = await Promise.all([
      import("./scores.ts"),
      import("./calibration.ts"),
    ]);
    return viewOf(engine, o, (gradients) => calibrate(engine, index, micro, data.items, gradients));
  }
  private async optimizerStep(
    batch: readonly Item[],
    step: number,
    learningRate: number,
    dropout: number,
  ): Promise<{ loss: number; gradNorm: number; skipped: boolean }> {
    const { engine, o, settings } = this;
    const labels = batch.reduce((n, x) => n + x.labels, 0);
    const words: Readonly<Record<string, number>> = {
      ...wordsOf(settings.optimizer, learningRate, this.state.updates + 1),
      decay: settings.weightDecay,
      max_norm: settings.maxGradNorm,
    };
    engine.host.hyper(this.index).set(engine.manifest.updates.words.map((word) => words[word] ?? 0));
    let start = 0;
    let loss = 0;
    let norms: Float32Array = new Float32Array(2);
    while (start < batch.length) {
      const items = batch.slice(start).map(
        (x, i): Item => ({
          ...x,
          weight: 1 / labels,
          dropKey: dropout > 0 ? mix(mix(settings.seed, 3), mix(step, start + i)) | 1 : 0,
          dropP: dropout,
        }),
      );
      const most = o.microBatch ?? items.length;
      const ran = await this.micro.run(items, { last: true, most, keep: o.keep !== "boundary" });
      for (const nll of ran.losses) loss += nll / labels;
      norms = ran.norms;
      start += ran.rows;
    }
    const [scale, norm] = norms;
    return { loss, gradNorm: norm!, skipped: scale! < 0 };
  }
  private async evaluate(): Promise<void> {
    const { engine, state } = this;
    let sum = 0;
    let n = 0;
    for (const { ids, next, labels } of this.data.evalItems) {
      const { logprobs } = await engine.score(ids, {
        job: { index: this.index, virtual: virtualTokens(engine.manifest, this.shape) },
        next,
        signal: this.controller.signal,
      });
      sum -= logprobs.reduce((a, b) => a + b, 0);
      n += labels;
    }
    const loss = sum / n;
    const best = state.best === null || loss < state.best.loss;
    if (best) {
      const keep = this.shape && this.settings.select === "best";
      const adapter = keep ? await engine.adapters.download(this.slot, this.shape!) : null;
      state.best = { step: state.step, loss, adapter };
    }
    this.tell({ type: "eval", step: state.step, loss, best });
  }
}
