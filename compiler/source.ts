/** What a model is compiled from, wherever it lies: open.ts finds out. */
import type { Format, Words } from "../runtime/bundle.ts";
import type { Generation } from "./generation.ts";

export interface WeightSource {
  readonly has: (name: string) => boolean;
  /**
   * f32 values of a tensor [shape] under its checkpoint name, checked finite: of all its rows (along the
   * first dimension), or of those in [from, to).
   */
  readonly read: (name: string, shape: readonly number[], from?: number, to?: number) => Float32Array;
  /** The format that holds a tensor as it is, or loses least of it: f32 where there is no such tensor. */
  readonly nearest: (name: string) => Format;
  /**
   * Numbers of each plane of rows [from, to) of a matrix that lies in blocks as this format has them; null:
   * what `read` says of it is to be stored.
   */
  readonly planes: (
    name: string,
    shape: readonly number[],
    format: Format,
    from: number,
    to: number,
  ) => readonly Words[] | null;
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
