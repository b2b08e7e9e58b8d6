/**
 * What generation_config.json says beside config.json: the ids that end an answer, and how its makers sample.
 */
import * as v from "valibot";
import type { GenerationEntry } from "../runtime/bundle.ts";
import { above0, atLeast0, check, integer } from "../runtime/schema.ts";

export interface Generation {
  readonly eos: readonly number[];
  readonly sampling: GenerationEntry;
}
const id = v.pipe(v.number(), v.integer("a token id"), v.minValue(0, "a token id"));
const ids = v.nullish(v.union([id, v.array(id)], "a token id, or a list of them"));
/** Keys that are read; the others say how some other program generates. */
const generationConfig = v.looseObject({
  eos_token_id: ids,
  do_sample: v.nullish(v.boolean()),
  temperature: v.nullish(atLeast0),
  /** Some write -1 for all of them. */
  top_k: v.nullish(integer(-1)),
  top_p: v.nullish(above0),
  min_p: v.nullish(atLeast0),
  repetition_penalty: v.nullish(above0),
});

/**
 * Ids that end an answer are those of both files, config.json's first. Sampling is as transformers reads it:
 * without `do_sample` the most likely token is taken, whatever the temperature. Throws WEFT_CONFIG.
 */
export function generationOf(
  config: Readonly<Record<string, unknown>>,
  json: unknown,
  where: string,
): Generation {
  const list = (x: number | readonly number[] | null | undefined): readonly number[] =>
    typeof x === "number" ? [x] : (x ?? []);
  const { eos_token_id } = check(v.looseObject({ eos_token_id: ids }), config, {
    code: "WEFT_CONFIG",
    where: "config.json",
  });
  const g = check(generationConfig, json ?? {}, { code: "WEFT_CONFIG", where });
  const sampling: Record<string, number> = {};
  const put = (key: keyof GenerationEntry, value: number | null | undefined): void => {
    if (typeof value === "number") sampling[key] = value;
  };
  if (g.do_sample) {
    put("temperature", g.temperature ?? 1);
    if (g.top_k !== -1) put("topK", g.top_k);
    put("topP", g.top_p);
    put("minP", g.min_p);
  }
  put("repetitionPenalty", g.repetition_penalty);
  return { eos: [...new Set([...list(eos_token_id), ...list(g.eos_token_id)])], sampling };
}
