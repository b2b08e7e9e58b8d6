/**
 * Fine-tuning jobs: rows → optimizer steps → micro-batches that the host co-serves. What a job computes depends on its options and data alone,
 * never on load: batches come from seeds, sums from a fixed order.
 */
import { type Manifest, WeftError } from "./bundle.ts";
import {
  type AdapterConfig,
  type AdapterContent,
  defaultConfig,
  initialContent,
  type ModelView,
  trainableCount,
  virtualTokens,
} from "./content.ts";
import type { Engine, Feed } from "./engine.ts";
import { packedWords, unpack } from "./formats.ts";
import { NONE } from "./host.ts";
import { adapterEntries, checked, picked, TrainOptions as TrainOptionsSchema } from "./options.ts";
import { reorder, siteOfParam } from "./order.ts";
import { mix, shuffled } from "./random.ts";
import type { Of } from "./schema.ts";
import {
  biasOf,
  channelsTaken,
  embeddingRow,
  matrix,
  rowSquares,
  statisticOf,
  weightSquares,
} from "./scores.ts";

/** One training sequence; labels[i] is the id to predict at position i of input_ids (Hugging Face convention: the same index, shifted inside), -100 ignored. */
export interface Row {
  readonly input_ids: readonly number[];
  readonly labels: readonly number[];
}
export type TrainOptions = Of<typeof TrainOptionsSchema>;
export type TrainEvent =
  | {
      readonly type: "start";
      readonly steps: number;
      readonly trainable: number;
      readonly rows: number;
      readonly skippedRows: number;
      readonly labelTokens: number;
    }
  | {
      readonly type: "step";
      readonly step: number;
      readonly loss: number;
      readonly learningRate: number;
      readonly gradNorm: number;
      readonly tokens: number;
      readonly skipped: boolean;
      readonly tokensPerSecond: number;
    }
  | { readonly type: "eval"; readonly step: number; readonly loss: number; readonly best: boolean }
  | { readonly type: "publish"; readonly step: number; readonly generation: string }
  | { readonly type: "done"; readonly step: number; readonly loss: number };
/** Everything a job needs to go on as if it had never stopped (same device and bundle: bit for bit). */
export interface TrainState {
  readonly step: number;
  readonly losses: readonly number[];
  readonly adapter: AdapterContent | null;
  /** Moments of each group, in accumulator layout. */
  readonly accum: readonly Float32Array[];
  /** Base weights chambers, for full training. */
  readonly weights: readonly Float32Array[];
  readonly updates: number;
  readonly best: {
    readonly step: number;
    readonly loss: number;
    readonly adapter: AdapterContent | null;
  } | null;
}
export interface TrainResult {
  readonly steps: number;
  readonly losses: readonly number[];
  readonly generation: string | null;
  readonly bestLoss: number | null;
}

const IGNORE = -100;
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
  private tasks: (() => Promise<void>)[] = [];
  private lastGeneration: string | null = null;
  finished = false;

  constructor(
    private readonly engine: Engine,
    private readonly index: number,
    private readonly o: TrainOptions,
    private readonly data: { readonly items: readonly Item[]; readonly skippedRows: number },
  ) {
    this.name = o.name;
    const abort = (): void => this.cancel(o.signal!.reason);
    this.done = this.run().finally(() => {
      this.finished = true;
      o.signal?.removeEventListener("abort", abort);
      engine.detach(this.index);
      if (o.method === "full") engine.exclusive = false;
      engine.kick();
    });
    this.done.catch(() => {});
    o.signal?.addEventListener("abort", abort, { once: true });
  }

  get step(): number {
    return this.state.step;
  }
  /** The slot being trained, for scoring what it knows right now. */
  get trainingSlot(): number {
    return this.slot;
  }
  /** Stop at once; `done` rejects with an AbortError (or the reason given). */
  cancel(reason: unknown = new DOMException("the job was cancelled", "AbortError")): void {
    this.controller.abort(reason);
    this.rejectMicro?.(reason);
  }
  fail(error: unknown): void {
    this.controller.abort(error);
    this.rejectMicro?.(error);
  }

  /** Run `f` between two optimizer steps, when weights are at rest. */
  private atRest<T>(f: () => Promise<T>): Promise<T> {
    if (this.finished)
      return Promise.reject(
        new WeftError({
          code: "WEFT_CONFLICT",
          where: `job ${this.name}`,
          expected: "a running job",
          found: "one that ended",
        }),
      );
    return new Promise<T>((resolve, reject) => {
      this.tasks.push(async () => {
        try {
          resolve(await f());
        } catch (e) {
          reject(e);
        }
      });
    });
  }
  /** Make what the job has learned so far a generation; resolves once new requests are served by it. */
  publish(): Promise<string> {
    return this.atRest(() => this.publishNow());
  }
  private async publishNow(): Promise<string> {
    if (!this.content)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "publish",
        expected: "an adapter job",
        found: "full training",
      });
    this.content = await this.engine.adapters.download(this.slot, this.content);
    const g = this.engine.adapters.publish(this.name, this.content);
    this.lastGeneration = g.ref;
    this.o.onEvent?.({ type: "publish", step: this.state.step, generation: this.lastGeneration });
    return this.lastGeneration;
  }
  /** Everything needed to resume, taken between two optimizer steps. */
  checkpoint(): Promise<TrainState> {
    return this.atRest(() => this.snapshot());
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
    const { engine, o } = this;
    const { host, device, manifest, jobLane: lane } = engine;
    await null;
    const full = o.method === "full";
    const { items, skippedRows } = this.data;

    const seed = o.seed ?? 0;
    const config = configOf(manifest, o);
    if (config.dropout > 0 && manifest.methods[o.method] && !manifest.methods[o.method]!.dropout)
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "dropout",
        expected: `0: ${o.method} has none`,
        found: String(config.dropout),
      });
    try {
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
        o.optimizer === "sgd" ? 1 : 0,
      );

      const batchSize = o.batchSize ?? 8;
      const perEpoch = Math.ceil(items.length / batchSize);
      const steps = o.steps ?? (o.epochs ?? 1) * perEpoch;
      const trainable = full ? manifest.model.parameters : trainableCount(manifest, this.content!.branches);
      o.onEvent?.({
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
        const order =
          o.shuffle === false ? items.map((_, i) => i) : shuffled(items.length, mix(mix(seed, 2), epoch));
        const batch = order
          .slice((step % perEpoch) * batchSize, ((step % perEpoch) + 1) * batchSize)
          .map((i) => items[i]!);
        const learningRate = this.learningRate(step, steps);
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
        o.onEvent?.({
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
          o.evalRows?.length &&
          (this.state.step % (o.evalEvery ?? perEpoch) === 0 || this.state.step === steps)
        )
          await this.evaluate();
        if (!full && o.publishEvery && this.state.step % o.publishEvery === 0 && this.state.step < steps)
          await this.publishNow();
        for (const task of this.tasks.splice(0)) await task();
        this.controller.signal.throwIfAborted();
      }
      if (!full) {
        if (this.state.best?.adapter) await this.restoreBest();
        await this.publishNow();
      }
      for (const task of this.tasks.splice(0)) await task();
      o.onEvent?.({ type: "done", step: this.state.step, loss: this.state.losses.at(-1) ?? 0 });
      return {
        steps: this.state.step,
        losses: this.state.losses,
        generation: this.lastGeneration,
        bestLoss: this.state.best?.loss ?? null,
      };
    } finally {
      // What its list on the way may touch is given back after it.
      await engine.jobsAtRest();
      if (!engine.disposed) host.exports.jobClose(this.index);
      if (!full && this.slot) engine.adapters.releaseTraining(this.slot);
      const error = new DOMException("the job ended", "AbortError");
      for (const task of this.tasks.splice(0)) void task().catch(() => error);
    }
  }

  /** [layer][group of coupled channels]: sums of squares over the first rows of the data. */
  private statistics: Partial<Record<"activation" | "gradient", Float32Array[][]>> = {};
  /** Run rows of the data (a thousand tokens, or all) through the layers, and back where gradients are asked for, and read what their channels carry. */
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
    // The classes after the trained ones have no update, and keep only what bounds a layer; the first of them has no loss either.
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

  private learningRate(step: number, steps: number): number {
    const {
      learningRate: lr = this.o.method === "full" ? 1e-3 : 2e-3,
      warmupSteps = 0,
      schedule = "constant",
    } = this.o;
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
    const { engine, o } = this;
    const labels = batch.reduce((n, x) => n + x.labels, 0);
    const [b1, b2] = o.betas ?? [0.9, 0.999];
    const t = this.state.updates + 1;
    const sgd = o.optimizer === "sgd";
    engine.host
      .hyper(this.index)
      .set([
        learningRate,
        learningRate / (1 - b1 ** t),
        1 / Math.sqrt(1 - b2 ** t),
        sgd ? (o.momentum ?? 0) : b1,
        b2,
        o.eps ?? 1e-8,
        o.weightDecay ?? 0,
        o.maxGradNorm ?? 1,
      ]);
    let start = 0;
    let loss = 0;
    while (start < batch.length) {
      const items = batch.slice(start, start + (o.microBatch ?? batch.length)).map(
        (x, i): Item => ({
          ...x,
          weight: 1 / labels,
          dropKey: dropout > 0 ? mix(mix(o.seed ?? 0, 3), mix(step, start + i)) | 1 : 0,
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
  /** Hand sequences to the host and wait until their backward (and, for the last of a step, the update) ran. Returns how many it took. */
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
  /** What the last micro-batch left: loss of each saved row; scale and norm of the gradient after an update. */
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
    let sum = 0;
    let n = 0;
    for (const [i, row] of this.o.evalRows!.entries()) {
      const item = prepare(row, i, this.engine.manifest.capacities.context, this.engine.manifest.model.vocab);
      const { logprobs } = await this.engine.score(row.input_ids, {
        slot: { index: this.slot, virtual: virtualTokens(this.engine.manifest, this.content) },
        signal: this.controller.signal,
      });
      item.next.forEach((id, k) => {
        if (id !== IGNORE) {
          sum -= logprobs[k]!;
          n++;
        }
      });
    }
    const loss = n ? sum / n : 0;
    const best = this.state.best === null || loss < this.state.best.loss;
    if (best)
      this.state.best = {
        step: this.state.step,
        loss,
        adapter: this.content ? await this.engine.adapters.download(this.slot, this.content) : null,
      };
    this.o.onEvent?.({ type: "eval", step: this.state.step, loss, best });
  }
  private async restoreBest(): Promise<void> {
    const { adapter } = this.state.best!;
    this.engine.adapters.restore(this.slot, adapter!);
  }
}

interface Item {
  readonly index: number;
  /** Rows of the forward: all ids but the last. */
  readonly ids: readonly number[];
  /** What each row predicts, -100 for none. */
  readonly next: readonly number[];
  readonly labels: number;
  readonly weight: number;
  readonly dropKey: number;
  readonly dropP: number;
}
function prepare(row: Row, index: number, context: number, vocab: number): Item {
  const where = `data row ${index + 1}`;
  if (row.input_ids.length !== row.labels.length)
    throw new WeftError({
      code: "WEFT_DATA",
      where,
      expected: `${row.input_ids.length} labels`,
      found: String(row.labels.length),
    });
  if (row.input_ids.length > context + 1)
    throw new WeftError({
      code: "WEFT_DATA",
      where,
      expected: `at most ${context} tokens`,
      found: String(row.input_ids.length),
      hint: "split the row, or compile with a larger context",
    });
  for (const id of row.input_ids)
    if (!Number.isInteger(id) || id < 0 || id >= vocab)
      throw new WeftError({
        code: "WEFT_DATA",
        where,
        expected: `token ids below ${vocab}`,
        found: String(id),
      });
  for (const id of row.labels)
    if (!Number.isInteger(id) || id >= vocab || (id < 0 && id !== IGNORE))
      throw new WeftError({
        code: "WEFT_DATA",
        where,
        expected: `labels below ${vocab}, or ${IGNORE}`,
        found: String(id),
      });
  const ids = row.input_ids.slice(0, -1);
  const next = row.labels.slice(1);
  // Rows after the last label teach nothing.
  let end = next.length;
  while (end > 0 && next[end - 1] === IGNORE) end--;
  return {
    index,
    ids: ids.slice(0, end),
    next: next.slice(0, end),
    labels: next.filter((x) => x !== IGNORE).length,
    weight: 0,
    dropKey: 0,
    dropP: 0,
  };
}

/** Tokens of its own that the job's adapter puts before every row. */
function virtualOf(manifest: Manifest, o: TrainOptions): number {
  if (!manifest.methods[o.method]?.virtual) return 0;
  return (
    configOf(manifest, o).rank ??
    Math.max(...manifest.branches.map((b) => (b.method === o.method ? b.capacity : 0)))
  );
}
const configOf = (manifest: Manifest, o: TrainOptions): AdapterConfig => ({
  ...defaultConfig(manifest, o.method),
  ...(o.from?.config ?? {}),
  ...picked(adapterEntries, o.adapter ?? {}),
});

/** Rows checked, shifted and put behind `virtual` tokens of the adapter's own; throws for the first that cannot be trained on. */
function prepareAll(
  manifest: Manifest,
  rows: readonly Row[],
  virtual: number,
): { items: Item[]; skippedRows: number } {
  const { capacities, model } = manifest;
  const items = rows
    .map((row, i) => prepare(row, i, capacities.context - virtual, model.vocab))
    .map(
      (x): Item => ({
        ...x,
        ids: [...Array<number>(virtual).fill(0), ...x.ids],
        next: [...Array<number>(virtual).fill(IGNORE), ...x.next],
      }),
    );
  const learned = items.filter((x) => x.labels > 0);
  if (!learned.length)
    throw new WeftError({
      code: "WEFT_DATA",
      where: "data",
      expected: "rows with at least one token to learn",
      found: `${rows.length} rows, none with labels`,
    });
  const longest = Math.min(capacities.savedRows, capacities.blocks * 32);
  const tooLong = learned.find((x) => x.ids.length > longest);
  if (tooLong)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: `data row ${tooLong.index + 1}`,
      expected: `at most ${longest} tokens`,
      found: String(tooLong.ids.length),
      hint: "compile with larger savedRows",
    });
  return { items: learned, skippedRows: items.length - learned.length };
}

/** Start a job on an engine. Throws at once for a conflict: no free job, a name in use, weights owned by another. */
export function startJob(engine: Engine, o: TrainOptions, running: Iterable<Job>): Job {
  checked(TrainOptionsSchema, o);
  const { manifest } = engine;
  if (!manifest.train.includes(o.method))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "method",
      expected: manifest.train.join(", ") || "a bundle compiled for training",
      found: o.method,
      hint: `compile with --train ${o.method}`,
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
  if (engine.exclusive || (o.method === "full" && engine.jobsRunning > 0))
    throw new WeftError({
      code: "WEFT_CONFLICT",
      where: `job ${o.name}`,
      expected: "exclusive use of the base weights for full training",
      found: "another job",
      retryable: true,
    });
  const data = prepareAll(manifest, o.rows, virtualOf(manifest, o));
  const index = engine.freeJob();
  if (index === null)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "jobs",
      expected: `at most ${manifest.capacities.jobs} jobs at once`,
      found: "one more",
      retryable: true,
    });
  if (o.method === "full") engine.exclusive = true;
  const job = new Job(engine, index, o, data);
  engine.attach(index, job);
  return job;
}

/** Every base tensor as it is now, under its checkpoint name. */
export async function readWeights(
  engine: Engine,
): Promise<{ name: string; shape: number[]; data: Float32Array }[]> {
  const { device, manifest, jobLane: lane } = engine;
  const { plan } = device;
  const { format } = manifest.model;
  const out: { name: string; shape: number[]; data: Float32Array }[] = [];
  const region = async (
    params: typeof plan.layerParams,
    group: number,
    nameOf: (name: string) => string,
  ): Promise<void> => {
    for (const p of params) {
      const words = p.kind === "vector" ? p.n : packedWords(format, p.n, p.k, plan.panel);
      const data = await device.read({ cls: "weights", group, offset: p.offset, words, lane });
      const values = p.kind === "vector" ? data : unpack(format, data, p.n, p.k, plan.panel);
      if (group < manifest.model.layers)
        reorder(manifest, group, siteOfParam(manifest, p.name), values, true);
      out.push({ name: nameOf(p.name), shape: p.kind === "vector" ? [p.n] : [p.n, p.k], data: values });
    }
  };
  await region(plan.outerParams, manifest.model.layers, (n) => manifest.checkpoint.outer[n]!);
  for (let l = 0; l < manifest.model.layers; l++)
    await region(plan.layerParams, l, (n) => manifest.checkpoint.layer[n]!.replace("{l}", String(l)));
  return out;
}
