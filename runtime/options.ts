/**
 * Options of the engine of ids, each described once: what may be asked, and its default. The SDK extends them
 * with what text and files add. Wrong values and unknown keys are refused with WEFT_OPTION, which names the
 * nearest.
 */
import * as v from "valibot";
import type { AdapterRef } from "./adapters.ts";
import type { AdapterContent } from "./content.ts";
import { MAX_STOPS } from "./contract.ts";
import type { LoadProgress } from "./device.ts";
import type { WeftError } from "./errors.ts";
import type { StepTrace } from "./loops.ts";
import { optimizerEntries, optimizerNames } from "./optimizers/index.ts";
import { samplingEntries } from "./sampling.ts";
import {
  type At,
  above0,
  atLeast0,
  boolean,
  bytes,
  callback,
  check,
  count,
  finite,
  integer,
  number,
  type Of,
  object,
  oneOf,
  plainName,
  positive,
  record,
  signal,
  text,
  tokenIds,
} from "./schema.ts";
import { type ModelView, selectors } from "./selectors.ts";
import type { Row, TrainEvent, TrainState } from "./trainer.ts";

/** Most alternatives that a token is reported with. */
export const MAX_LOGPROBS = 256;
/** Longest salt, in UTF-16 units: all of it is compared, so all of it is kept. */
export const MAX_SALT = 256;

/**
 * `notes` (its latest generation), `notes@3`, or a weighted sum `{ blue: 0.5, green: 0.5 }` of such names.
 */
export const adapterRef = v.custom<AdapterRef>(
  (x) => typeof x === "string" || v.safeParse(record(finite), x).success,
  "the name of an adapter, or finite weights by name",
);
export const requestEntries = {
  ...samplingEntries,
  /**
   * `notes` for its latest generation, `notes@3` for a pinned one, weights by name for a sum. Default: the
   * base, with what corrects its rounding where the bundle has that (`correction`).
   */
  adapter: v.optional(adapterRef),
  /** Default 128; never more than the context has room for. 0 gives no token. */
  maxTokens: v.optional(count),
  /** Ids that end an answer, beside the model's own. */
  stopIds: v.optional(
    v.pipe(
      tokenIds,
      v.check((l) => l.length <= MAX_STOPS, `at most ${MAX_STOPS} ids, the model's own among them`),
    ),
  ),
  /**
   * Ids of the answer that were said before: it goes on behind them, as if it had not stopped. Draws,
   * penalties and `maxTokens` count them. Default: none.
   */
  said: v.optional(tokenIds),
  /**
   * Shares what was computed only with requests of the same salt: how soon an answer comes tells nothing of
   * what others asked. Default: none, shared by all without one.
   */
  salt: v.optional(
    v.pipe(
      text,
      v.check((s) => s.length > 0 && s.length <= MAX_SALT, `a text of 1 to ${MAX_SALT} characters`),
    ),
  ),
  /** Number of alternatives to report a token, at most 256. Default 0: the chosen one only. */
  logprobs: v.optional(integer(0, MAX_LOGPROBS + 1)),
  /** Ends the request. */
  signal: v.optional(signal),
};
export const GenerateIds = object({ ...requestEntries, prompt: tokenIds });
export type GenerateIds = Of<typeof GenerateIds>;

export const MergeOptions = object({
  /**
   * Round the moved rows of matrices in blocks (int8, q4) again, whose steps are wider than most of what an
   * adapter changes; `rounding` says what it took. Default: no, they are refused.
   */
  requantise: v.optional(boolean),
});
export type MergeOptions = Of<typeof MergeOptions>;

export const scoreEntries = {
  /** As for `generate`. */
  adapter: v.optional(adapterRef),
  /** Also return all logits. Default: no. */
  logits: v.optional(boolean),
  signal: v.optional(signal),
};

/** Most threads of the Wasm target. */
export const MAX_THREADS = 64;
export const engineEntries = {
  /**
   * Milliseconds that a step should take at most while requests are served: prompts and jobs have as many
   * rows beside those that decode, by what steps have taken so far. Default 25 on WebGPU; on Wasm `budget` is
   * one of rows. Never changes a result.
   */
  latency: v.optional(above0),
  /**
   * A step's row-equivalents while requests are served, instead of its time. Default: 21 on Wasm. Never
   * changes a result.
   */
  budget: v.optional(positive),
  /** Row-equivalents of a step while only fine-tuning runs. Default: all that a step can carry. */
  idleBudget: v.optional(positive),
  /**
   * Requests that may wait before the next is refused with WEFT_CAPACITY (retryable). Default 4096, at most
   * 2^20: the host has their places from the start.
   */
  maxQueued: v.optional(integer(1, 2 ** 20 + 1)),
  /**
   * Keep the cache of requests that ended, until somebody needs room: a prompt that begins like one before
   * computes only what is new. Default: yes. Never changes a result.
   */
  prefixCache: v.optional(boolean),
  /**
   * Milliseconds that the device may take for a step, and threads to start, before the engine ends with an
   * error. Default 300000; 0: as long as it wants.
   */
  stepTimeout: v.optional(atLeast0),
  /**
   * Hears what the functions here, and `onEvent` of jobs, throw: it is never fatal. Without it the last are
   * kept in `engine.reports`.
   */
  onError: v.optional(callback<(e: WeftError) => void>()),
  /**
   * Of adapters: bytes of memory that their numbers may take on the host. Those used least recently are put
   * on disk beyond it (in a page, where there is none, one more is refused). Default: as many as there are.
   */
  adapters: v.optional(object({ memory: v.exactOptional(bytes) })),
  /** Hears what is done of loading. */
  onProgress: v.optional(callback<(p: LoadProgress) => void>()),
  /** Hears of every step. */
  onStep: v.optional(callback<(t: StepTrace) => void>()),
  /** Aborts the load, in every phase. */
  signal: v.optional(signal),
};
export const EngineOptions = object(engineEntries);
export type EngineOptions = Of<typeof EngineOptions>;

/** What an adapter is, and how it starts. */
export const adapterEntries = {
  /** Rows of its tensors. Default: the method's own (LoRA: 8), or all that the bundle has room for. */
  rank: v.optional(positive),
  /** Scale of LoRA and its kin: alpha / rank. Default 16. */
  alpha: v.optional(finite),
  /** Scale by alpha / √rank instead. Default: no. */
  rslora: v.optional(boolean),
  /** Share of a branch's inputs that training drops. Default 0. */
  dropout: v.optional(number("a number from 0 up to, not including, 1", (x) => x >= 0 && x < 1)),
  /** Modules by the end of their name, a regular expression, or `all-linear`. Default: the method's own. */
  targetModules: v.optional(
    v.union(
      [
        text,
        v.pipe(
          v.array(text),
          v.check((l) => l.length > 0, "at least one module"),
        ),
      ],
      "names of modules, at least one, a regular expression or all-linear",
    ),
  ),
  /** Ranks and alphas of single modules, by patterns of their names. Default: none. */
  rankPattern: v.optional(record(positive)),
  alphaPattern: v.optional(record(finite)),
  /** How channels or entries are chosen. Default: random. */
  selector: v.optional(oneOf(selectors)),
};
/** How an adapter, or the base, is trained. */
export const trainEntries = {
  /** What the adapter will be called: letters, digits, dots, dashes, underscores; not `base`. */
  name: plainName,
  /** Default 1. */
  epochs: v.optional(positive),
  /** Optimizer steps, instead of epochs. 0 makes the start, and learns nothing. */
  steps: v.optional(count),
  /** Sequences an optimizer step. Default 8. */
  batchSize: v.optional(positive),
  /** Default adamw. */
  optimizer: v.optional(oneOf(optimizerNames)),
  ...optimizerEntries,
  /** Default 2e-3, for full training 1e-3. */
  learningRate: v.optional(above0),
  /** Default constant. */
  schedule: v.optional(oneOf(["constant", "linear", "cosine"])),
  /** Steps over which the learning rate rises from 0. Default 0. */
  warmupSteps: v.optional(count),
  /** Default 0. */
  weightDecay: v.optional(atLeast0),
  /** Largest gradient norm over all tensors of the job; 0 is no clipping. Default 1. */
  maxGradNorm: v.optional(atLeast0),
  /** Of what is drawn: the start, batches, dropout, choices. Default 0. */
  seed: v.optional(number("an integer", Number.isSafeInteger)),
  /** Default: yes. */
  shuffle: v.optional(boolean),
  /** Evaluate every n steps. Default: after each epoch, where there is evaluation data. */
  evalEvery: v.optional(positive),
  /**
   * What the end publishes: weights of the last step (default), or of the step that evaluation found best.
   */
  select: v.optional(oneOf(["last", "best"])),
  /** Publish a generation every n optimizer steps; the end always publishes. Default: at the end only. */
  publishEvery: v.optional(positive),
  /** Most sequences a micro-batch. Default: what fits. Never changes results. */
  microBatch: v.optional(positive),
  /**
   * `boundary` keeps less and recomputes more, `all` the other way round; `auto` (default) keeps what fits.
   * Never changes results.
   */
  keep: v.optional(oneOf(["auto", "all", "boundary"])),
  /** Hears what happens. */
  onEvent: v.optional(callback<(e: TrainEvent) => void>()),
  /** Cancels the job. */
  signal: v.optional(signal),
};

const given = <T>() => v.custom<T>((x) => typeof x === "object" && x !== null, "an object");
const list = <T>() => v.custom<readonly T[]>(Array.isArray, "a list");
export const TrainOptions = object({
  ...trainEntries,
  /** An adapter method that the bundle trains, or `full`. */
  method: text,
  rows: list<Row>(),
  evalRows: v.optional(list<Row>()),
  /** Default: that of `from`, else the method's own. */
  adapter: v.optional(object(adapterEntries)),
  /** Adapters whose chosen channels this one may not choose. */
  disjointFrom: v.optional(list<AdapterContent>()),
  /**
   * Matrices [out, in] of a model fine-tuned in full from this one: what the selector `difference` compares
   * with.
   */
  tuned: v.optional(v.nullable(callback<NonNullable<ModelView["tuned"]>>())),
  /** Start from this adapter's content instead of a fresh one. */
  from: v.optional(given<AdapterContent>()),
  resume: v.optional(given<TrainState>()),
  /** Generations that the job made before it was interrupted, by step: it makes none there again. */
  published: v.optional(v.custom<ReadonlyMap<number, number>>((x) => x instanceof Map, "a map")),
});

/** Options as their schema has them. Throws WEFT_OPTION. */
export const checked = <const S extends v.GenericSchema>(
  schema: S,
  value: unknown,
  at: Partial<At> = {},
): v.InferOutput<S> => check(schema, value, { code: "WEFT_OPTION", where: "", ...at });
type Given<T> = { [K in keyof T]: Exclude<T[K], undefined> };
/** Of options, those that `entries` describe and that were given. */
export const picked = <E extends v.ObjectEntries, O extends object>(
  entries: E,
  o: O,
): Given<Pick<O, keyof E & keyof O>> =>
  Object.fromEntries(
    Object.entries(o).filter(([key, value]) => Object.hasOwn(entries, key) && value !== undefined),
  ) as never;
