/** What a model is compiled from, wherever it lies: open.ts finds out. */
import type { Generation } from "./generation.ts";

export interface WeightSource {
  readonly has: (name: string) => boolean;
  /**
   * f32 values of a tensor [shape] under its checkpoint name, checked finite: of all its rows (along the
   * first dimension), or of those in [from, to).
   */
  readonly read: (name: string, shape: readonly number[], from?: number, to?: number) => Float32Array;
}
export interface ModelSource {
  /** Path, for messages. */
  readonly where: string;
  /** config.json, or what it would say. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly generation: Generation;
  readonly weights: WeightSource;
  /** tokenizer.json, tokenizer_config.json and chat_template.jinja, as far as there are any. */
  readonly files: ReadonlyMap<string, string>;
}
