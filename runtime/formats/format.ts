/**
 * A format: how frozen matrices are stored, and how kernels read them. A value means the same on every target
 * and in every kernel, so a bundle in a format computes what a bundle in f32 of the same values does, bit for
 * bit.
 */
import { type Dtype, dtypeBytes, floatToHalf } from "../dtypes.ts";

/** Numbers of one kind that a stored matrix has: its values, or something that a run of them shares. */
export interface Plane {
  /** What its tensor in a shard is called, behind the matrix's name. */
  readonly suffix: "" | ".scales";
  readonly dtype: Exclude<Dtype, "I32">;
  /** Values of a row that share `count` numbers. */
  readonly every: number;
  readonly count: number;
}
/** How many numbers of a plane a row of k values has. */
export const termsOf = (p: Plane, k: number): number => Math.ceil(k / p.every) * p.count;
export const planeBytes = (p: Plane): number => dtypeBytes[p.dtype];

export type Words = Int8Array | Uint8Array | Uint16Array | Uint32Array;
/** What cannot be stored: element `at` of the values, and what would have been expected. */
export type Refuse = (at: number, expected: string) => never;

export interface WeightFormat {
  readonly planes: readonly Plane[];
  /** Finer steps than what an adapter or training changes. */
  readonly fine: boolean;
  /** WGSL, over `weights` as vec4<u32>: a word of each of four neighbouring columns. */
  readonly wgsl: {
    /**
     * Four columns at step `j` of the words `w`, k ascending with j; of a format with scales also `s`, `m`.
     */
    readonly value: (w: string, j: number) => string;
    /**
     * Statements that declare what columns share, from words `h` of the second plane; `upper` says which of
     * two blocks, where a word holds two.
     */
    readonly scales: ((h: string, upper: string) => readonly string[]) | null;
    /** `weight_NAME(base, n, k, K)`: one value of the matrix at word `base`; with several planes also N. */
    readonly weight: string;
    /** What products of integers take of it; null where values are no integers times what a run shares. */
    readonly integers: {
      /** The integers of four columns at step `j` of the words `w`. */
      readonly one: (w: string, j: number) => string;
      /**
       * Words of four bytes a column that are made of the words `w`: the bytes of the first, lowest first,
       * are step 0 and those that follow as far apart as there are such words; of the second from step 1 on.
       */
      readonly bytes: readonly ((w: string) => string)[];
      /**
       * What a block adds to four columns, in units of its inputs: of the sum of products of integers, and of
       * the inputs' own sum.
       */
      readonly value: (products: string, inputs: string) => string;
    } | null;
  };
  /** AssemblyScript, over addresses. */
  readonly assembly: {
    /** `weightNAME(w, n, k, K)`: one value of the matrix at `w`; with several planes also N. */
    readonly weight: string;
    /**
     * `unpack_NAME(w, N, K, p, k, count, out)`: `count` rows of panel p from row k (a multiple of 8) as f32
     * [count][8]; null where panels are f32 as they are.
     */
    readonly unpack: string | null;
    /**
     * Statements that make columns 0 to 3 and 4 to 7 of row `u` of the panel at `w`, as `b` and `d`: after
     * those of the row before where a number is two rows'.
     */
    readonly load: (u: number) => readonly string[];
    /** What a run of rows shares, as it lies at `scales`: vectors of four halves, by their names. */
    readonly scales: readonly string[];
    /** What products of integers take of it; null where values are no integers times what a run shares. */
    readonly integers: {
      /** Statements that hold for all rows. */
      readonly constants: readonly string[];
      /**
       * Statements that make rows k and k + 2 of the panel at `w`, pairs of 16 bits, as `b0` and `d0`
       * (columns 0 to 3 and 4 to 7), and k + 1 and k + 3 as `b1` and `d1`.
       */
      readonly pairs: readonly string[];
      /**
       * What a block adds to four columns, in units of its inputs: of the sum of products of integers, and of
       * the inputs' own sum; `half` says which columns.
       */
      readonly value: (products: string, inputs: string, half: number) => string;
    } | null;
  };
}
/** What a format makes of values, and they of it: for who reads or changes a model, not for who plays it. */
export interface FormatValues {
  /** f32 values [n, k] → the numbers of each plane, [n, terms] row by row. */
  readonly encode: (values: Float32Array, n: number, k: number, refuse: Refuse) => readonly Words[];
  readonly decode: (planes: readonly Words[], n: number, k: number) => Float32Array;
}
/** Columns of a panel in WGSL. */
export const WGSL_PANEL = 16;

type Numbers = Float32Array | Int8Array | Uint8Array | Uint16Array | Uint32Array;
/** `to[i] = f(from[i], i)`: many times as fast as `from` of a typed array, which iterates. */
export function into<A extends Numbers>(to: A, from: Numbers, f: (x: number, at: number) => number): A {
  for (let i = 0; i < to.length; i++) to[i] = f(from[i]!, i);
  return to;
}
/** The half nearest to value `at`. */
export function toHalf(x: number, at: number, refuse: Refuse): number {
  const h = floatToHalf(x);
  return (h & 0x7c00) === 0x7c00 ? refuse(at, "values within the range of f16") : h;
}
