/** /v1/fine_tuning/jobs: jobs of the engine; those that find no place wait in order. */
import * as v from "valibot";
import { WeftError } from "../../runtime/bundle.ts";
import { adapterEntries, checked, trainEntries } from "../../runtime/options.ts";
import {
  above0,
  boolean,
  exactly,
  number,
  type Of,
  object,
  plainName,
  positive,
  record,
  text,
} from "../../runtime/schema.ts";
import type { Engine, FinetuneOptions, Job, TrainEvent } from "../index.ts";
import { ApiError } from "./errors.ts";
import type { Files } from "./files.ts";
import { page } from "./http.ts";
import type { Models } from "./models.ts";

const auto = <const S extends v.GenericSchema>(schema: S) =>
  v.optional(v.union([exactly("auto"), schema], '"auto", or a positive number'));
const Hyperparameters = object({
  n_epochs: auto(positive),
  batch_size: auto(positive),
  learning_rate_multiplier: auto(above0),
});
const { name: _name, onEvent: _onEvent, signal: _signal, ...learned } = trainEntries;
const Body = object({
  model: text,
  training_file: text,
  validation_file: v.optional(v.nullable(text)),
  suffix: v.optional(v.nullable(plainName)),
  seed: v.optional(v.nullable(number("an integer", Number.isSafeInteger))),
  metadata: v.optional(v.nullable(record(text))),
  hyperparameters: v.optional(Hyperparameters),
  method: v.optional(
    object({
      type: exactly("supervised"),
      supervised: v.optional(object({ hyperparameters: v.optional(Hyperparameters) })),
    }),
  ),
  integrations: v.optional(
    v.nullable(v.pipe(v.array(v.unknown()), v.maxLength(0, "none: they are not supported"))),
  ),
  /**
   * What else weft's jobs can be told: a method, its rank, a schedule; and whether an adapter of that name is
   * to be replaced.
   */
  weft: v.optional(
    object({ ...learned, ...adapterEntries, method: v.optional(text), replace: v.optional(boolean) }),
  ),
});
type Body = Of<typeof Body>;

/** Learning rate that a multiplier of 1 means: that of jobs. */
const LEARNING_RATE = 2e-3;
/** Optimizer steps that `n_epochs: "auto"` aims at, with 3 to 50 epochs: what a handful of facts wants. */
const STEPS = 50;
const autoEpochs = (rows: number, batch: number): number =>
  Math.min(50, Math.max(3, Math.ceil(STEPS / Math.ceil(rows / batch))));

type Status = "queued" | "running" | "succeeded" | "failed" | "cancelled";
interface Event {
  readonly id: string;
  readonly object: "fine_tuning.job.event";
  readonly created_at: number;
  readonly level: "info" | "warn" | "error";
  readonly type: "message" | "metrics";
  readonly message: string;
  readonly data: Readonly<Record<string, unknown>>;
}
interface Checkpoint {
  readonly id: string;
  readonly object: "fine_tuning.job.checkpoint";
  readonly created_at: number;
  readonly fine_tuning_job_id: string;
  readonly fine_tuned_model_checkpoint: string;
  readonly step_number: number;
  readonly metrics: Readonly<Record<string, number>>;
}
/** A job as clients know it. */
export interface JobRecord {
  readonly id: string;
  readonly name: string;
  readonly body: Body;
  options: FinetuneOptions;
  readonly created: number;
  readonly events: Event[];
  readonly checkpoints: Checkpoint[];
  status: Status;
  /** The engine's, from when it started. */
  job: Job | null;
  finished: number | null;
  model: string | null;
  tokens: number;
  steps: number;
  error: ApiError | null;
}
const seconds = (): number => Math.floor(Date.now() / 1000);
const newId = (head: string): string => `${head}-${crypto.randomUUID().replaceAll("-", "")}`;
/** What is kept: of each job the latest events, and the latest jobs that ended. */
const EVENTS = 1000;
const ENDED = 1000;
/** Jobs that may wait. */
const QUEUED = 64;

export class Jobs {
  private readonly jobs = new Map<string, JobRecord>();
  private readonly queue: JobRecord[] = [];
  private starting: Promise<void> = Promise.resolve();
  private closed = false;
  constructor(
    private readonly engine: Engine,
    private readonly models: Models,
    private readonly files: Files,
    /** Called before a job has succeeded. */
    private readonly keep: (name: string) => Promise<void>,
    private readonly failed: (e: unknown) => ApiError,
  ) {}

  async create(body: unknown): Promise<object> {
    const b = checked(Body, body);
    if (this.queue.length >= QUEUED)
      throw new ApiError(429, `At most ${QUEUED} jobs may wait`, "rate_limit_exceeded");
    const from = this.models.adapter(b.model);
    const name = b.suffix ?? `ft-${crypto.randomUUID().slice(0, 8)}`;
    if ([...this.jobs.values()].some((j) => j.name === name && j.finished === null))
      throw new ApiError(409, `A job for '${name}' is running or waiting`, "conflict", "suffix");
    const { replace = false, ...told } = b.weft ?? {};
    const there = this.engine.adapters.list().some((a) => a.name === name);
    if (there && !replace && from?.replace(/@\d+$/, "") !== name)
      throw new ApiError(
        409,
        `An adapter '${name}' is there: go on from it with the model '${this.models.idOf(name)}', ` +
          "take another suffix, or replace it with weft: { replace: true }",
        "conflict",
        "suffix",
      );
    const data = this.files.rows(b.training_file, "training_file");
    const set = { ...b.hyperparameters, ...b.method?.supervised?.hyperparameters };
    const batchSize = typeof set.batch_size === "number" ? set.batch_size : 8;
    const record: JobRecord = {
      id: newId("ftjob"),
      name,
      body: b,
      options: {
        batchSize,
        ...(typeof set.n_epochs === "number"
          ? { epochs: set.n_epochs }
          : told.steps === undefined && { epochs: autoEpochs(data.length, batchSize) }),
        ...(typeof set.learning_rate_multiplier === "number" && {
          learningRate: LEARNING_RATE * set.learning_rate_multiplier,
        }),
        seed: b.seed ?? 0,
        ...told,
        name,
        data,
        ...(b.validation_file && { evalData: this.files.rows(b.validation_file, "validation_file") }),
        ...(from !== undefined && { from }),
        onEvent: (e) => this.heard(record, e),
      },
      created: seconds(),
      events: [],
      checkpoints: [],
      status: "queued",
      job: null,
      finished: null,
      model: null,
      tokens: 0,
      steps: 0,
      error: null,
    };
    if (told.method === "full")
      throw new ApiError(400, "Jobs of a server train adapters", "invalid_value", "weft.method");
    this.jobs.set(record.id, record);
    this.queue.push(record);
    this.note(record, "info", "Created");
    await this.advance();
    // What is wrong with its rows or options was found when it started, mostly now.
    if (record.error) {
      this.jobs.delete(record.id);
      throw record.error;
    }
    return this.told(record);
  }
  /** Start who waits first, as long as there is a place. One call after the other. */
  private advance(): Promise<void> {
    this.starting = this.starting.then(async () => {
      for (let next = this.queue[0]; next && !this.closed; next = this.queue[0])
        if (!(await this.start(next))) return;
    });
    return this.starting;
  }
  /** False where there is no place yet. */
  private async start(record: JobRecord): Promise<boolean> {
    const leave = (): void => void this.queue.splice(this.queue.indexOf(record), 1);
    try {
      const job = await this.engine.finetune(record.options);
      if (record.status === "cancelled") {
        job.cancel();
        return true;
      }
      leave();
      record.job = job;
      record.status = "running";
      this.note(record, "info", "Started");
      void this.follow(record, job);
    } catch (e) {
      if (record.status === "cancelled") return true;
      const error = WeftError.from(e);
      if (error?.retryable && error.code !== "WEFT_DEVICE_LOST") return false;
      leave();
      this.end(record, "failed", this.failed(e));
    }
    return true;
  }
  private async follow(record: JobRecord, job: Job): Promise<void> {
    try {
      const { generation, losses } = await job.done;
      await this.keep(record.name).catch((e: unknown) => {
        this.note(record, "warn", `It could not be saved: ${this.failed(e).message}`);
      });
      record.model = this.models.idOf(generation!);
      this.note(record, "info", `Succeeded as ${record.model}, loss ${losses.at(-1)?.toFixed(4) ?? "-"}`);
      this.end(record, "succeeded");
    } catch (e) {
      if ((e as Error).name === "AbortError") this.end(record, "cancelled");
      else this.end(record, "failed", this.failed(e));
    }
    void this.advance();
  }
  private end(record: JobRecord, status: Status, error: ApiError | null = null): void {
    record.status = status;
    record.finished = seconds();
    // Its rows are nobody's any more.
    const { data: _data, evalData: _evalData, ...options } = record.options;
    record.options = { ...options, data: [] };
    record.error = error;
    if (error) this.note(record, "error", error.message);
    else if (status === "cancelled") this.note(record, "warn", "Cancelled");
    const ended = [...this.jobs.values()].filter((j) => j.finished !== null);
    for (const old of ended.slice(0, Math.max(0, ended.length - ENDED))) this.jobs.delete(old.id);
  }

  private heard(record: JobRecord, e: TrainEvent): void {
    if (e.type === "start") record.steps = e.steps;
    if (e.type === "step") {
      record.tokens += e.tokens;
      this.note(record, "info", `Step ${e.step}/${record.steps}: training loss=${e.loss.toFixed(4)}`, {
        step: e.step,
        total_steps: record.steps,
        train_loss: Number.isFinite(e.loss) ? e.loss : null,
        learning_rate: e.learningRate,
      });
    }
    if (e.type === "eval")
      this.note(record, "info", `Step ${e.step}: validation loss=${e.loss.toFixed(4)}`, {
        step: e.step,
        valid_loss: e.loss,
      });
    if (e.type === "publish") {
      const last = record.events.findLast((x) => typeof x.data.train_loss === "number");
      record.checkpoints.push({
        id: newId("ftckpt"),
        object: "fine_tuning.job.checkpoint",
        created_at: seconds(),
        fine_tuning_job_id: record.id,
        fine_tuned_model_checkpoint: this.models.idOf(e.generation),
        step_number: e.step,
        metrics: { step: e.step, ...(last && { train_loss: last.data.train_loss as number }) },
      });
    }
  }
  private note(record: JobRecord, level: Event["level"], message: string, data?: Event["data"]): void {
    record.events.push({
      id: newId("ftevent"),
      object: "fine_tuning.job.event",
      created_at: seconds(),
      level,
      type: data ? "metrics" : "message",
      message,
      data: data ?? {},
    });
    if (record.events.length > EVENTS) record.events.shift();
  }

  private record(id: string): JobRecord {
    const record = this.jobs.get(id);
    if (!record) throw new ApiError(404, `No such job: ${id}`, "not_found");
    return record;
  }
  private told(r: JobRecord): { readonly id: string } {
    const { epochs, batchSize, learningRate, seed } = r.options;
    const hyperparameters = {
      n_epochs: epochs,
      batch_size: batchSize,
      learning_rate_multiplier: (learningRate ?? LEARNING_RATE) / LEARNING_RATE,
    };
    const about = {
      id: r.id,
      object: "fine_tuning.job",
      model: r.body.model,
      created_at: r.created,
      finished_at: r.finished,
      fine_tuned_model: r.model,
      organization_id: "weft",
      status: r.status,
      hyperparameters,
      method: { type: "supervised", supervised: { hyperparameters } },
      training_file: r.body.training_file,
      validation_file: r.body.validation_file ?? null,
      result_files: [],
      trained_tokens: r.status === "succeeded" ? r.tokens : null,
      seed,
      metadata: r.body.metadata ?? null,
      error: r.error && { code: r.error.code, message: r.error.message, param: r.error.param },
    };
    return about;
  }
  async list(url: URL): Promise<object> {
    await this.advance();
    return page(
      [...this.jobs.values()].reverse().map((r) => this.told(r)),
      url,
    );
  }
  async retrieve(id: string): Promise<object> {
    // A place may have come free that jobs of others held.
    await this.advance();
    return this.told(this.record(id));
  }
  async cancel(id: string): Promise<object> {
    const record = this.record(id);
    if (record.finished !== null)
      throw new ApiError(400, `The job has ${record.status} already`, "invalid_value");
    if (record.job) {
      record.job.cancel();
      await record.job.done.catch(() => {});
      // `follow` hears of it in the same turn.
      await null;
    } else {
      this.queue.splice(this.queue.indexOf(record), 1);
      this.end(record, "cancelled");
    }
    return this.told(record);
  }
  /** The latest first. */
  events(id: string, url: URL): object {
    return page([...this.record(id).events].reverse(), url, EVENTS);
  }
  checkpoints(id: string, url: URL): object {
    return page([...this.record(id).checkpoints].reverse(), url);
  }
  /** Start none any more; those that run, and what they were asked for. */
  close(): readonly (JobRecord & { readonly job: Job })[] {
    this.closed = true;
    return [...this.jobs.values()].filter(
      (r): r is JobRecord & { job: Job } => r.finished === null && r.job !== null,
    );
  }
}
