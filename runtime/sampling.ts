/** How a request's tokens are drawn, in the order of transformers: penalty, temperature, top-k, top-p, min-p. */
import { WeftError } from "./errors.ts";

export interface Sampling {
  /** Logits are divided by it; 0 is greedy. */
  readonly temperature?: number;
  /** Only so many of the largest logits; 0 is all of them. */
  readonly topK?: number;
  /** Only the likeliest tokens that together reach this probability. */
  readonly topP?: number;
  /** Only tokens of at least this part of the likeliest one's probability. */
  readonly minP?: number;
  /** Divides positive logits, and multiplies negative ones, of tokens that occurred (CTRL, section 4.1). */
  readonly repetitionPenalty?: number;
  /** A draw depends on the seed's low 32 bits and the position alone. */
  readonly seed?: number;
}
/** Ids that end an answer, at most (host/state.ts has room for so many a sequence). */
export const MAX_STOPS = 16;

const rules: Readonly<Record<keyof Sampling, readonly [expected: string, (v: number) => boolean]>> = {
  temperature: ["a number from 0 up", (v) => v >= 0 && v < Number.POSITIVE_INFINITY],
  topK: ["an integer from 0 up", (v) => Number.isInteger(v) && v >= 0 && v < 2 ** 31],
  topP: ["a number above 0, up to 1", (v) => v > 0 && v <= 1],
  minP: ["a number from 0 to 1", (v) => v >= 0 && v <= 1],
  repetitionPenalty: ["a number above 0", (v) => v > 0 && v < Number.POSITIVE_INFINITY],
  seed: ["an integer", Number.isSafeInteger],
};

/** Throws WEFT_OPTION, naming the option, for one outside its range. */
export function checkSampling(o: Sampling & { readonly stopIds?: readonly number[] }): void {
  for (const [key, [expected, ok]] of Object.entries(rules)) {
    const v: unknown = o[key as keyof Sampling];
    if (v !== undefined && !(typeof v === "number" && ok(v)))
      throw new WeftError({ code: "WEFT_OPTION", where: key, expected, found: String(v) });
  }
  const stops = o.stopIds ?? [];
  if (stops.length > MAX_STOPS)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "stopIds",
      expected: `at most ${MAX_STOPS} ids, the model's own among them`,
      found: String(stops.length),
    });
  const wrong = stops.findIndex((id) => !Number.isInteger(id) || id < 0);
  if (wrong >= 0)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: `stopIds[${wrong}]`,
      expected: "a token id",
      found: String(stops[wrong]),
    });
}
