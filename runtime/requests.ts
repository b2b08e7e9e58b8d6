/**
 * What callers ask of an engine and what they get: options, events, scores, and the checks before anything is
 * queued.
 */
import type { Generation } from "./adapters.ts";
import { BLOCK, type Manifest, WeftError } from "./bundle.ts";
import type { Host } from "./host.ts";
import type { GenerateIds } from "./options.ts";
import type { Sampling } from "./sampling.ts";

/** Tokens of an answer where the caller does not say. */
export const MAX_TOKENS = 128;

/**
 * Why an answer ended: a stop id or text, the tokens that were asked for, or the end of the context before
 * those.
 */
export type Finish = "stop" | "length" | "context";
export interface TokenEvent {
  readonly id: number;
  /** Natural log of the model's probability, before temperature and penalties. */
  readonly logprob: number;
  readonly top: readonly { readonly id: number; readonly logprob: number }[];
  /** Which weights answered: `base`, or `name@generation`. */
  readonly adapter: string;
  /**
   * What the draws depend on: the seed given, or the one drawn for a request without; null where nothing is
   * drawn.
   */
  readonly seed: number | null;
  /** Tokens of the prompt that were not computed for this request: an earlier one had the same prefix. */
  readonly cached: number;
  readonly finish: Finish | null;
}
export interface Score {
  /** Mean negative log-likelihood of ids[1…]. */
  readonly loss: number;
  /** logprob of ids[i + 1] after ids[0…i]. */
  readonly logprobs: Float64Array;
  /** Full logits [position][vocab], when asked for. */
  readonly logits: Float32Array[] | null;
}

/** One request, from the queue to its end. */
export interface Request {
  readonly kind: "generate" | "score";
  /** Its last `said` are of the answer already. */
  prompt: readonly number[];
  said: number;
  /** What was said since it was asked for, and how many of the prompt's tokens were not computed for it. */
  drawn: number[];
  cached: number | null;
  /** Tokens to generate, as far as the context has room. */
  maxTokens: number;
  /** Fewer than were asked for. */
  readonly clipped: boolean;
  readonly sampling: Omit<GenerateIds, "prompt">;
  readonly seed: number | null;
  readonly generation: Generation | null;
  /** Tokens of the adapter's own before the prompt. */
  readonly virtual: number;
  /** Who it shares prefixes with: all that say the same, or nothing. */
  readonly salt: string | null;
  /** The job that asks, on what it trains; NONE for callers. */
  readonly job: number;
  readonly push: (e: TokenEvent) => void;
  readonly scored: (position: number, logits: Float32Array, logSum: number) => void;
  /** Once: null at the end, or what ended it. */
  readonly end: (error: unknown) => void;
  /** Its reader has enough for now. */
  paused: boolean;
  /** What the host knows it by while it waits, and its sequence once it runs; NONE where it does not. */
  ticket: number;
  seq: number;
  done: boolean;
}
/** A request's tokens, behind those of its adapter's own. */
export function setTokens(to: Int32Array, { prompt, virtual }: Pick<Request, "prompt" | "virtual">): void {
  to.fill(0, 0, virtual);
  to.set(prompt, virtual);
}
/** Where the host put a request: its tokens, and how it draws. */
export function startIn(
  host: Host,
  seq: number,
  r: Pick<Request, "kind" | "prompt" | "said" | "virtual" | "sampling" | "seed">,
): void {
  setTokens(host.tokens(seq), r);
  if (r.kind === "score") return;
  const o = r.sampling;
  const stops = o.stopIds ?? [];
  const biases = Object.entries(o.logitBias ?? {}).map(([id, bias]) => [Number(id), bias] as const);
  host.exports.setSampling(
    seq,
    o.temperature ?? 0,
    o.topK ?? 0,
    o.topP ?? 1,
    o.minP ?? 0,
    o.repetitionPenalty ?? 1,
    o.presencePenalty ?? 0,
    o.frequencyPenalty ?? 0,
    biases.length,
    (r.seed ?? 0) | 0,
    stops.length,
    r.said,
    o.logprobs ?? 0,
  );
  host.stops(seq).set(stops);
  host.setBiases(seq, biases);
}

/**
 * Tokens that an answer to `ids` has room for, behind `virtual` of the adapter's own. Throws for ids that are
 * wrong, or leave no room for `least`.
 */
export function roomAfter(
  { model: { vocab }, capacities: { context, blocks } }: Manifest,
  ids: readonly number[],
  virtual: number,
  least: number,
): number {
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
  const most = Math.min(context, blocks * BLOCK);
  const room = most - virtual - ids.length;
  if (room < least)
    throw new WeftError({
      code: "WEFT_CONTEXT_OVERFLOW",
      where: "prompt",
      expected: `at most ${most - least} tokens`,
      found: `${virtual ? `${virtual} of the adapter's own + ` : ""}${ids.length}`,
      hint: "shorten the prompt, or compile with a larger context",
    });
  return room;
}
/** Throws for biases of tokens that there are none of. */
export function checkBiases({ model: { vocab } }: Manifest, { logitBias = {} }: Sampling): void {
  const wrong = Object.keys(logitBias).find((id) => Number(id) >= vocab);
  if (wrong === undefined) return;
  throw new WeftError({
    code: "WEFT_OPTION",
    where: "logitBias",
    expected: `token ids below ${vocab}`,
    found: wrong,
  });
}
/**
 * Logits that are not numbers: the weights of the request are not, or overflow. Nothing else in the batch
 * reads them.
 */
export const notFinite = (r: Request): WeftError =>
  new WeftError({
    code: "WEFT_NUMERICS",
    where: `${r.kind} by ${r.generation?.ref ?? "base"}`,
    expected: "finite logits",
    found: "NaN or infinity",
    hint: "numbers of the adapter or model are not finite or too large",
  });

/** The `n` largest of a row, the lower id first where two are equal: as they were picked, or of all. */
export function topOf(
  row: Float32Array,
  picked: Float32Array | undefined,
  n: number,
  logSum: number,
): { id: number; logprob: number }[] {
  if (picked && picked[0]! >= n)
    return Array.from({ length: n }, (_, i) => ({
      id: picked[5 + 2 * i]!,
      logprob: picked[4 + 2 * i]! - logSum,
    }));
  const ids: number[] = [];
  for (let i = 0; n > 0 && i < row.length; i++) {
    if (ids.length === n && !(row[i]! > row[ids[n - 1]!]!)) continue;
    const at = ids.findIndex((id) => row[i]! > row[id]!);
    ids.splice(at < 0 ? ids.length : at, 0, i);
    if (ids.length > n) ids.pop();
  }
  return ids.map((id) => ({ id, logprob: row[id]! - logSum }));
}
