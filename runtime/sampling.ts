/**
 * How a request's tokens are drawn, in the order of transformers: penalty, temperature, top-k, top-p, min-p.
 */
import * as v from "valibot";
import { count, number, type Of, object } from "./schema.ts";

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
  /** A draw depends on the seed's low 32 bits and the position alone. Default: one of the request's own. */
  seed: v.optional(number("an integer", Number.isSafeInteger)),
};
const Sampling = object(samplingEntries);
export type Sampling = Of<typeof Sampling>;
