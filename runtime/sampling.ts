/**
 * How a request's tokens are drawn: biases and penalties, then in the order of transformers temperature,
 * top-k, top-p, min-p.
 */
import * as v from "valibot";
import { MAX_BIASES } from "./contract.ts";
import { count, matching, number, type Of, object, record } from "./schema.ts";

const penalty = number("a number from -2 to 2", (x) => x >= -2 && x <= 2);

export const samplingEntries = {
  /** Logits are divided by it. Default 0: greedy. */
  temperature: v.optional(number("a number from 0 up", (x) => x >= 0 && x < Number.POSITIVE_INFINITY)),
  /** Only so many of the largest logits. Default 0: all of them. */
  topK: v.optional(count),
  /** Only the likeliest tokens that together reach this probability. Default 1. */
  topP: v.optional(number("a number above 0, up to 1", (x) => x > 0 && x <= 1)),
  /** Only tokens of at least this part of the likeliest one's probability. Default 0. */
  minP: v.optional(number("a number from 0 to 1", (x) => x >= 0 && x <= 1)),
  /**
   * Divides positive logits, and multiplies negative ones, of tokens that occurred (CTRL, 4.1). Default 1.
   */
  repetitionPenalty: v.optional(number("a number above 0", (x) => x > 0 && x < Number.POSITIVE_INFINITY)),
  /** Taken from the logits of tokens that are in the answer, once; -2 to 2. Default 0. */
  presencePenalty: v.optional(penalty),
  /** Taken from the logits of tokens as often as they are in the answer; -2 to 2. Default 0. */
  frequencyPenalty: v.optional(penalty),
  /** Added to the logits of tokens, by id; -100 to 100, at most 300 tokens. Default: none. */
  logitBias: v.optional(
    v.pipe(
      record(
        number("a number from -100 to 100", (x) => x >= -100 && x <= 100),
        matching(/^(0|[1-9]\d{0,9})$/, "a token id"),
      ),
      v.check((o) => Object.keys(o).length <= MAX_BIASES, `at most ${MAX_BIASES} tokens`),
    ),
  ),
  /** A draw depends on the seed's low 32 bits and the position alone. Default: one of the request's own. */
  seed: v.optional(number("an integer", Number.isSafeInteger)),
};
const Sampling = object(samplingEntries);
export type Sampling = Of<typeof Sampling>;
/** The seed that a request's draws depend on: one of its own where it draws and has none. */
export const seedOf = (o: Sampling): number | null =>
  o.seed ?? (o.temperature ? crypto.getRandomValues(new Uint32Array(1))[0]! : null);
