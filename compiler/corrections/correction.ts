/** What a way to correct rounded matrices is given, and gives. */
import type { Factors } from "./lowrank.ts";
import type { Product } from "./product.ts";

/** A matrix [out, in], and what enters it over the rows of a calibration. */
export interface Rounded {
  readonly shape: readonly [number, number];
  /** As its checkpoint has it, and as the bundle does. */
  readonly exact: Float32Array;
  readonly held: Float32Array;
  /** [rows, in]: in the model as its checkpoint has it, and in the bundle's, corrected up to here. */
  readonly entersExact: Float32Array;
  readonly enters: Float32Array;
}
export interface Correction {
  readonly name: string;
  readonly fit: (product: Product, rounded: Rounded, rank: number) => Factors;
}
export const difference = (a: Float32Array, b: Float32Array): Float32Array => a.map((x, i) => x - b[i]!);
