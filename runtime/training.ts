/** What a fine-tuning job is asked for, with every default, and what it tells. */
import { type Chosen, chosen, type Manifest } from "./bundle.ts";
import { type AdapterConfig, type AdapterContent, defaultConfig } from "./content.ts";
import type { WeftError } from "./errors.ts";
import { adapterEntries, picked, type TrainOptions as TrainOptionsSchema } from "./options.ts";
import type { Of } from "./schema.ts";

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
  /** One was taken by itself; with what went wrong where it could not be kept. */
  | { readonly type: "checkpoint"; readonly step: number; readonly error: WeftError | null }
  | { readonly type: "publish"; readonly step: number; readonly generation: string }
  /** `kept`: the step whose weights the end published. */
  | { readonly type: "done"; readonly step: number; readonly loss: number; readonly kept: number };
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
    /** What it was, where the best is what will be published. */
    readonly adapter: AdapterContent | null;
  } | null;
}
export interface TrainResult {
  readonly steps: number;
  readonly losses: readonly number[];
  readonly generation: string | null;
  readonly bestLoss: number | null;
  /**
   * The step whose weights were published (`full`: are the base now): the last, or with `select: "best"` the
   * best evaluated.
   */
  readonly kept: number;
}

/** How a job learns: its options with every default filled in. */
export interface Settings {
  readonly steps: number;
  readonly batchSize: number;
  readonly optimizer: Chosen;
  readonly learningRate: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly warmupSteps: number;
  readonly weightDecay: number;
  readonly maxGradNorm: number;
  readonly seed: number;
  readonly shuffle: boolean;
  readonly evalEvery: number;
  readonly select: "last" | "best";
}
/** The settings of a job over `learned` rows that have something to learn. */
export function settingsOf(o: TrainOptions, learned: number): Settings {
  const batchSize = o.batchSize ?? 8;
  const perEpoch = Math.ceil(learned / batchSize);
  return {
    steps: o.steps ?? (o.epochs ?? 1) * perEpoch,
    batchSize,
    optimizer: chosen(o),
    learningRate: o.learningRate ?? (o.method === "full" ? 1e-3 : 2e-3),
    schedule: o.schedule ?? "constant",
    warmupSteps: o.warmupSteps ?? 0,
    weightDecay: o.weightDecay ?? 0,
    maxGradNorm: o.maxGradNorm ?? 1,
    seed: o.seed ?? 0,
    shuffle: o.shuffle ?? true,
    evalEvery: o.evalEvery ?? perEpoch,
    select: o.select ?? "last",
  };
}
/** Of a step, counted from 0. */
export function learningRateAt(
  { learningRate: lr, warmupSteps, schedule, steps }: Settings,
  step: number,
): number {
  if (step < warmupSteps) return (lr * (step + 1)) / warmupSteps;
  const t = steps > warmupSteps ? (step - warmupSteps) / (steps - warmupSteps) : 0;
  if (schedule === "linear") return lr * (1 - t);
  if (schedule === "cosine") return lr * 0.5 * (1 + Math.cos(Math.PI * t));
  return lr;
}
/** The config of the job's adapter: that of `from`, and what was asked for over it. */
export const configOf = (manifest: Manifest, o: TrainOptions): AdapterConfig => ({
  ...defaultConfig(manifest, o.method),
  ...(o.from?.config ?? {}),
  ...picked(adapterEntries, o.adapter ?? {}),
});

/** The same JSON for equal values, whatever order their keys have. */
export const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, v: unknown) =>
    v && typeof v === "object" && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v,
  );
