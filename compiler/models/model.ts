/**
 * What a model family gives the compiler: its checked config, its regions as functions on values, and its
 * names in checkpoints and in GGUF files.
 */
import type { Domain, LayerConstant, Value } from "../../ops/index.ts";
import type { RopeEntry } from "../../runtime/bundle.ts";
import type { RegionBuilder } from "../layers.ts";

export type Json = Readonly<Record<string, unknown>>;

/** Names in checkpoints, which are Hugging Face's; nothing outside a family knows one. */
export interface Names {
  /** What the names of a layer's parameters and modules begin with, `{l}` for the layer. */
  readonly layer: string;
  /** The outer region's parameters. */
  readonly outer: Readonly<Record<string, string>>;
  /** Which of those has a row for each token. */
  readonly embedding: string;
  /** Matrices of a layer that checkpoints have as [in, out], by the names that a layer has for them. */
  readonly transposed?: readonly string[];
  /** What some checkpoints leave out before every name. */
  readonly prefix?: string;
}
export interface Model {
  /** Part of what a base is known by: the same weights under another name are another base. */
  readonly family: string;
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Channels of a feed-forward: of an expert's, where no layer is dense. */
  readonly ffn: number;
  readonly vocab: number;
  readonly context: number;
  readonly tied: boolean;
  /** What norms add to a mean square: part of what a base is known by. */
  readonly eps: number;
  /** Rotary tables: all layers turn by the first, or each says by which. None: nothing turns. */
  readonly ropes: readonly RopeEntry[];
  /** Other numbers that the maths depends on, by name: part of what a base is known by. */
  readonly constants: Readonly<Record<string, number>>;
  /**
   * Integers that differ between layers, by layer: of one graph; and `kind`, where there are several. Kinds
   * are numbered from 0 up.
   */
  readonly perLayer: Readonly<Partial<Record<LayerConstant | "kind", readonly number[]>>>;
  /** The rows' token ids → hidden states [rows, hidden], what enters the first layer. */
  readonly embed: (b: RegionBuilder, domain: Domain) => Value;
  /** A layer of a kind: hidden states in, hidden states out. `positions` of the rotary table. */
  readonly layer: (b: RegionBuilder, h: Value, positions: number, kind: number) => Value;
  /** What leaves the last layer → logits [rows, vocab]. */
  readonly head: (b: RegionBuilder, h: Value) => Value;
  readonly names: Names;
}
/** A family: models of one `model_type`. */
export interface Family {
  /** The class of transformers that loads such a model, for a config.json that names none. */
  readonly loadedBy: string;
  /** config.json → model. Throws WEFT_CONFIG naming the key that it cannot take. */
  readonly read: (config: Json) => Model;
  /** Left out where GGUF files call it by another family's architecture, or not at all. */
  readonly gguf?: GgufFamily;
  /** That other family's, in which its files are written. */
  readonly writtenAs?: GgufFamily;
}

/** What a GGUF file says of itself, to the family that it is of. */
export interface GgufHeader {
  /** A value under the family's own keys: `rope.scaling.type`. */
  readonly get: (key: string) => unknown;
  /** A number under them. Throws WEFT_CONFIG. */
  readonly number: (key: string, fallback?: number) => number;
  /** Undefined where the file has no tensor of that name. */
  readonly shapeOf: (tensor: string) => readonly number[] | undefined;
  /** Numbers of a tensor of one dimension; undefined where there is none. */
  readonly values: (tensor: string) => Float32Array | undefined;
  /** Throws WEFT_CONFIG naming a key, or a tensor. */
  readonly refuse: (key: string, expected: string, found: unknown) => never;
}
export type Rows = (from: number, to: number) => Float32Array;
export interface GgufFamily {
  /** `general.architecture`, which the family's keys begin with. */
  readonly architecture: string;
  /** Its files say how many experts there are: another family's of that architecture do not. */
  readonly mixture?: true;
  /** config.json, as the file's keys and tensors say it. */
  readonly config: (g: GgufHeader) => Json;
  /** GGUF's name of a tensor by that of a checkpoint. */
  readonly name: (checkpoint: string) => string;
  /** Which of the matrices that a file has as one tensor, one after another; null: it is a tensor alone. */
  readonly part: (checkpoint: string) => number | null;
  readonly layout: Layout;
  /**
   * The other way: what a file says of a model. What it cannot say is not there: whoever writes, reads again.
   */
  readonly says: (model: Model, config: Json) => GgufSaid;
}
/** Rows [from, to) of a tensor; `rows` reads those of what it is made of. */
export type Move = (checkpoint: string, rows: Rows, from: number, to: number, config: Json) => Float32Array;
/** What llama.cpp's converter does to tensors, and back. */
export interface Layout {
  readonly convert: Move;
  readonly restore: Move;
}
/** A number of 32 bits as a file has it: whole, or not. */
export type GgufNumber = { readonly u32: number } | { readonly f32: number };
export interface GgufSaid {
  /** Under the family's own keys. */
  readonly keys: Readonly<Record<string, string | GgufNumber>>;
  /** Vectors beside the model's own tensors. */
  readonly tensors: Readonly<Record<string, Float32Array>>;
}
