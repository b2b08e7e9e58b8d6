/**
 * Fine-tuning jobs: rows → optimizer steps → micro-batches that the host co-serves. What a job computes
 * depends on its options and data alone, never on load: batches come from seeds, sums from a fixed order.
 */
import { IGNORE, type Manifest, NONE, WeftError, wordsOf } from "./bundle.ts";
import {
  type AdapterContent,
  initialContent,
  type ModelView,
  trainableCount,
  virtualTokens,
} from "./content.ts";
import type { Engine, Feed } from "./engine.ts";
import { checked, TrainOptions as TrainOptionsSchema } from "./options.ts";
import { mix, shuffled } from "./random.ts";
import { AtRest } from "./rest.ts";
import { evalItems, type Item, trainItems } from "./rows.ts";
import {
  biasOf,
  channelsTaken,
  embeddingRow,
  matrix,
  rowSquares,
  statisticOf,
  weightSquares,
} from "./scores.ts";
import { onAbort, reasonOf, throwIfAborted } from "./signals.ts";
import {
  configOf,
  type Settings,
  settingsOf,
  type TrainEvent,
  type TrainOptions,
  type TrainResult,
  type TrainState,
} from "./training.ts";

export type { Row } from "./rows.ts";
export type { TrainEvent, TrainOptions, TrainResult, TrainState } from "./training.ts";

/** What a job trains on and is evaluated on. */
interface Data {
  readonly items: readonly Item[];
  readonly evalItems: readonly Item[];
  readonly skippedRows: number;
}
const CALIBRATION_TOKENS = 1000;
export class Job implements Feed {
  readonly done: Promise<TrainResult>;
  readonly name: string;
  private readonly controller = new AbortController();
  private resolveMicro: ((last: boolean) => void) | null = null;
  private rejectMicro: ((e: unknown) => void) | null = null;
  private pending: { start: number; items: readonly Item[]; last: boolean } | null = null;
  private inFlight = false;
  private added: { seq: number; base: number; item: Item }[] = [];
  private content: AdapterContent | null = null;
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
    // What the host has not taken yet it never gets: rolling back takes longer than the next step.
    this.pending = null;
    this.rejectMicro?.(error);
  }

  /**
   * Make what the job has learned so far a generation; resolves once new requests are served by it. Rejects,
   * and publishes nothing, when the job is cancelled or ends before its turn comes.
   */
  publish(): Promise<string> {
    return this.rest.ask(() => this.publishNow());
  }
  private async publishNow(): Promise<string> {
    if (!this.content)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "publish",
        expected: "an adapter job",
        found: "full training",
      });
    const content = await this.engine.adapters.download(this.slot, this.content);
    // Who cancelled meanwhile wants nothing published.
    this.controller.signal.throwIfAborted();
    this.content = content;
    const g = this.engine.adapters.publish(this.name, this.content);
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
    const { device, manifest, jobLane: lane } = this.engine;
    const layers = manifest.model.layers;
    const full = this.o.method === "full";
    const accum: Float32Array[] = [];
    const weights: Float32Array[] = [];
    for (let g = 0; g <= (full ? layers : layers - 1); g++) {
      const words = full ? device.plan.classes.accum[g === layers ? "outer" : "layer"] : device.plan.jobWords;
      accum.push(
        await device.read({
          cls: "accum",
          group: g,
          offset: full ? 0 : this.index * device.plan.jobWords,
          words,
          lane,
        }),
      );
      if (full)
        weights.push(
          await device.read({
            cls: "weights",
            group: g,
            offset: 0,
            words: device.plan.classes.weights[g === layers ? "outer" : "layer"],
            lane,
          }),
        );
    }
    const adapter = this.content ? await this.engine.adapters.download(this.slot, this.content) : null;
    return {
      step: this.state.step,
      losses: [...this.state.losses],
      adapter,
      accum,
      weights,
      updates: this.state.updates,
      best: this.state.best,
    };
  }

  private async run(): Promise<TrainResult> {
    const { engine, o, settings } = this;
    const { host, device, manifest, jobLane: lane } = engine;
    await null;
    const full = o.method === "full";
    const { items, skippedRows } = this.data;
    const { seed, steps, batchSize } = settings;
    const perEpoch = Math.ceil(items.length / batchSize);
    const config = configOf(manifest, o);
    let over = false;
    try {
      if (full) await engine.weights.keep();
      this.controller.signal.throwIfAborted();
      if (!full) {
        const { factors, slotWords } = device.plan;
        const model: ModelView = {
          embedding: (id) => embeddingRow(engine, id),
          bias: (layer, site) => biasOf(engine, layer, site),
          matrix: (layer, site) => matrix(engine, layer, site),
          tuned: o.tuned ?? null,
          taken: (layer, site) => channelsTaken(manifest, factors, o.disjointFrom ?? [], layer, site),
          scores: async (what, layer, site) => {
            if (what === "row") return rowSquares(engine, layer, site);
            if (what === "weight") return weightSquares(engine, layer, site);
            this.statistics[what] ??= await this.calibrate(what === "gradient");
            const i = device.plan.statistics.findIndex((s) => s.name.endsWith(`.${site.coupling!.group}`));
            return statisticOf(engine, layer, this.statistics[what][layer]![i]!, site);
          },
        };
        this.content =
          o.resume?.adapter ??
          o.from ??
          (await initialContent(manifest, factors, slotWords, config, mix(seed, 1), model));
        const slot = engine.adapters.acquireTraining(this.content);
        if (slot === null)
          throw new WeftError({
            code: "WEFT_CAPACITY",
            where: "slots",
            expected: "a free adapter slot for training",
            found: "all in use",
            retryable: true,
          });
        this.slot = slot;
      }
      const layers = manifest.model.layers;
      for (let g = 0; g <= layers; g++) {
        const words = full
          ? device.plan.classes.accum[g === layers ? "outer" : "layer"]
          : g === layers
            ? 0
            : device.plan.jobWords;
        const at = {
          cls: "accum" as const,
          group: g,
          offset: full ? 0 : this.index * device.plan.jobWords,
          lane,
        };
        if (words && o.resume?.accum[g]) device.write(at, o.resume.accum[g]!);
        else if (words) device.clear({ ...at, words });
        if (full && o.resume?.weights[g])
          device.write({ cls: "weights", group: g, offset: 0, lane }, o.resume.weights[g]!);
      }
      if (o.resume)
        this.state = {
          step: o.resume.step,
          losses: [...o.resume.losses],
          updates: o.resume.updates,
          best: o.resume.best,
        };
      host.exports.jobOpen(
        this.index,
        this.slot,
        manifest.train.indexOf(o.method),
        manifest.updates.optimizers.indexOf(settings.optimizer.name),
      );

      const trainable = full ? manifest.model.parameters : trainableCount(manifest, this.content!.branches);
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
        const learningRate = this.learningRate(step);
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
      over = true;
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
      this.rest.close(
        new WeftError({
          code: "WEFT_CONFLICT",
          where: `job ${this.name}`,
          expected: "a running job",
          found: "one that ended",
        }),
      );
      // What its list on the way may touch is given back after it.
      await engine.jobsAtRest();
      if (!engine.disposed) host.exports.jobClose(this.index);
      if (!full && this.slot) engine.adapters.releaseTraining(this.slot);
      // Nobody is served by weights that were trained half.
      if (full && !over && !engine.disposed) await engine.weights.restore().catch((e) => engine.fail(e));
    }
  }

  /** [layer][group of coupled channels]: sums of squares over the first rows of the data. */
  private statistics: Partial<Record<"activation" | "gradient", Float32Array[][]>> = {};
  /**
   * Run rows of the data (a thousand tokens, or all) through the layers, and back where gradients are asked
   * for, and read what their channels carry.
   */
  private async calibrate(gradients: boolean): Promise<Float32Array[][]> {
    const { device, manifest, host } = this.engine;
    const { plan } = device;
    const at = (group: number) => ({
      cls: "accum" as const,
      group,
      offset: this.index * plan.jobWords,
      lane: this.engine.jobLane,
    });
    const { layers } = manifest.model;
    for (let l = 0; l < layers; l++) device.clear({ ...at(l), words: plan.jobWords });
    // The classes after the trained ones have no update, and keep only what bounds a layer; the first of them
    // has no loss either.
    host.exports.jobOpen(this.index, 0, manifest.train.length + (gradients ? 1 : 0), 0);
    this.keeping = false;
    const rows: Item[] = [];
    for (let i = 0, tokens = 0; i < this.data.items.length && tokens < CALIBRATION_TOKENS; i++) {
      rows.push(this.data.items[i]!);
      tokens += this.data.items[i]!.ids.length;
    }
    // Losses are means over all the labels that are looked at.
    const labels = rows.reduce((n, x) => n + x.labels, 0);
    const weighted = rows.map((x): Item => ({ ...x, weight: 1 / labels }));
    for (let start = 0; start < rows.length; ) start += await this.micro(weighted.slice(start), false);
    this.keeping = true;
    const out: Float32Array[][] = [];
    for (let l = 0; l < layers; l++) {
      const all = await device.read({ ...at(l), words: plan.jobWords });
      out.push(plan.statistics.map((s) => all.slice(s.accum, s.accum + s.n)));
    }
    return out;
  }
  private keeping = true;

  private learningRate(step: number): number {
    const { learningRate: lr, warmupSteps, schedule, steps } = this.settings;
    if (step < warmupSteps) return (lr * (step + 1)) / warmupSteps;
    const t = steps > warmupSteps ? (step - warmupSteps) / (steps - warmupSteps) : 0;
    if (schedule === "linear") return lr * (1 - t);
    if (schedule === "cosine") return lr * 0.5 * (1 + Math.cos(Math.PI * t));
    return lr;
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
    while (start < batch.length) {
      const items = batch.slice(start, start + (o.microBatch ?? batch.length)).map(
        (x, i): Item => ({
          ...x,
          weight: 1 / labels,
          dropKey: dropout > 0 ? mix(mix(settings.seed, 3), mix(step, start + i)) | 1 : 0,
          dropP: dropout,
        }),
      );
      const taken = await this.micro(items, start + items.length >= batch.length);
      const nll = this.said.nll;
      for (const { base, item } of this.added)
        for (let i = 0; i < item.ids.length; i++)
          if (item.next[i] !== IGNORE) loss += nll[base + i]! / labels;
      start += taken;
    }
    const [scale, norm] = this.said.norms;
    return { loss, gradNorm: norm!, skipped: scale! < 0 };
  }
  /**
   * Hand sequences to the host and wait until their backward (and, for the last of a step, the update) ran.
   * Returns how many it took.
   */
  private micro(items: readonly Item[], last: boolean): Promise<number> {
    this.controller.signal.throwIfAborted();
    return new Promise<number>((resolve, reject) => {
      this.pending = { start: 0, items, last };
      this.resolveMicro = () => resolve(this.added.length);
      this.rejectMicro = reject;
      this.engine.kick();
    });
  }
  feed(): void {
    const p = this.pending;
    if (!p) return;
    const { exports } = this.engine.host;
    this.added = [];
    for (const item of p.items) {
      const keep = this.keeping && this.o.keep !== "boundary" ? 1 : 0;
      const seq = exports.jobAdd(this.index, item.ids.length, item.weight, item.dropKey, item.dropP, keep);
      if (seq === NONE) break;
      this.engine.host.tokens(seq).set(item.ids);
      this.engine.host.labels(seq).set(item.next);
      this.added.push({ seq, base: exports.saveBase(seq), item });
    }
    if (!this.added.length) return;
    this.pending = null;
    this.inFlight = true;
    exports.jobStart(this.index, p.last && this.added.length === p.items.length ? 1 : 0);
  }
  /**
   * What the last micro-batch left: loss of each saved row; scale and norm of the gradient after an update.
   */
  private said: { nll: Float32Array; norms: Float32Array } = {
    nll: new Float32Array(0),
    norms: new Float32Array(2),
  };
  async microDone(): Promise<void> {
    // The last word of a job that was dropped while its step ran is not for its successor.
    if (!this.inFlight) return;
    this.inFlight = false;
    const { device, manifest, jobLane: lane } = this.engine;
    const { homes } = device.plan;
    const groups = manifest.model.layers + 1;
    const at = { cls: "arena", group: 0, lane } as const;
    const norms = homes.norms + (this.o.method === "full" ? 0 : this.index) * (groups + 2) + groups;
    const [nll, ofNorms] = await device.readAll([
      { ...at, offset: homes.nll, words: manifest.capacities.savedRows },
      { ...at, offset: norms, words: 2 },
    ]);
    this.said = { nll: nll!, norms: ofNorms! };
    this.resolveMicro?.(true);
    this.resolveMicro = null;
    this.rejectMicro = null;
  }

  private async evaluate(): Promise<void> {
    const { engine, state } = this;
    let sum = 0;
    let n = 0;
    for (const { ids, next, labels } of this.data.evalItems) {
      const { logprobs } = await engine.score(ids, {
        slot: { index: this.slot, virtual: virtualTokens(engine.manifest, this.content) },
        next,
        signal: this.controller.signal,
      });
      sum -= logprobs.reduce((a, b) => a + b, 0);
      n += labels;
    }
    const loss = sum / n;
    const best = state.best === null || loss < state.best.loss;
    if (best) {
      const keep = this.content && this.settings.select === "best";
      const adapter = keep ? await engine.adapters.download(this.slot, this.content!) : null;
      state.best = { step: state.step, loss, adapter };
    }
    this.tell({ type: "eval", step: state.step, loss, best });
  }
}

/** Tokens of its own that the job's adapter puts before every row. */
function virtualOf(manifest: Manifest, o: TrainOptions): number {
  if (!manifest.methods[o.method]?.virtual) return 0;
  return (
    configOf(manifest, o).rank ??
    Math.max(...manifest.branches.map((b) => (b.method === o.method ? b.capacity : 0)))
  );
}

/** Options that the method would ignore are refused: WEFT_OPTION. */
function checkUsed(manifest: Manifest, o: TrainOptions): void {
  const refuse = (where: string, expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_OPTION", where, expected, found });
  };
  if (o.method === "full") {
    const { publishEvery, disjointFrom, tuned } = o;
    for (const [key, value] of Object.entries({ ...o.adapter, publishEvery, disjointFrom, tuned }))
      if (value !== undefined && value !== null)
        refuse(key, "none: full training has no adapter", JSON.stringify(value) ?? typeof value);
    return;
  }
  const { dropout } = configOf(manifest, o);
  if (dropout > 0 && !manifest.methods[o.method]!.dropout)
    refuse("dropout", `0: ${o.method} has none`, String(dropout));
}

/**
 * Start a job on an engine. Throws at once for what is wrong in options or rows, and for a conflict: no free
 * job, a name in use, weights owned by another, requests that full training would change the weights of.
 */
export function startJob(engine: Engine, o: TrainOptions, running: Iterable<Job>): Job {
  checked(TrainOptionsSchema, o);
  const { manifest } = engine;
  engine.check();
  throwIfAborted(o.signal);
  if (!manifest.train.includes(o.method))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "method",
      expected: manifest.train.join(", ") || "a bundle compiled for training",
      found: o.method,
      hint: `compile with --train ${o.method}`,
    });
  const optimizer = o.optimizer ?? "adamw";
  if (!manifest.updates.optimizers.includes(optimizer))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "optimizer",
      expected: manifest.updates.optimizers.join(", "),
      found: optimizer,
      hint: "compile the bundle anew",
    });
  for (const j of running)
    if (!j.finished && j.name === o.name)
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: `job ${o.name}`,
        expected: "a name no running job has",
        found: "one that is running",
      });
  if (o.from && o.from.config.method !== o.method)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "from",
      expected: `an adapter of method ${o.method}`,
      found: `one of method ${o.from.config.method}`,
    });
  if (o.from?.replaces)
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where: "from",
      expected: "an adapter that shares the base",
      found: `one with modules of its own (${[...o.from.replaces.keys()][0]}, …)`,
      hint: "merge it and save the model to go on from it",
    });
  if (engine.merged)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: "a base without a merged adapter",
      found: `${engine.merged} merged into it`,
      hint: "merge(null) first",
    });
  const full = o.method === "full";
  const found = full ? engine.inUse : engine.exclusive;
  if (found)
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: full
        ? "exclusive use of the base weights for full training"
        : "base weights that nobody changes",
      found,
      retryable: true,
    });
  if (o.select === "best" && (full || !o.evalRows))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "select",
      expected: full ? "last: full training keeps no other weights" : "evalData to choose the best step by",
      found: "best",
    });
  checkUsed(manifest, o);
  const virtual = virtualOf(manifest, o);
  const data: Data = {
    ...trainItems(manifest, o.rows, virtual),
    evalItems: o.evalRows ? evalItems(manifest, o.evalRows, virtual) : [],
  };
  const index = engine.freeJob();
  if (index === null)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "jobs",
      expected: `at most ${manifest.capacities.jobs} jobs at once`,
      found: "one more",
      retryable: true,
    });
  if (full) engine.exclusive = "full training";
  const job = new Job(engine, index, o, data);
  engine.attach(index, job);
  return job;
}
