/**
 * An optimizer in one file: its options with their defaults, what a step is told of them, the numbers that it
 * keeps beside every parameter, and the step itself.
 */
import type * as v from "valibot";
import { number, pair } from "../schema.ts";

/**
 * What a step is written in: the scalar functions of every target, numbers, and what `at` names, which is
 * `param`, `grad` (clipped), a state, `lr`, `decay` (0 for norms and biases) or a word of its own.
 */
export interface Scalars<E> {
  readonly at: (name: string) => E;
  readonly num: (x: number) => E;
  readonly add: (a: E, b: E) => E;
  readonly sub: (a: E, b: E) => E;
  readonly mul: (a: E, b: E) => E;
  readonly div: (a: E, b: E) => E;
  readonly max: (a: E, b: E) => E;
  readonly min: (a: E, b: E) => E;
  /** a · b + c. */
  readonly fma: (a: E, b: E, c: E) => E;
  readonly neg: (a: E) => E;
  readonly sqrt: (a: E) => E;
  /** The value itself, rounded: no driver may contract a product inside into a later sum. */
  readonly pin: (a: E) => E;
}
/** Options with none left out. */
export type Filled<O extends v.ObjectEntries> = {
  readonly [K in keyof O]: Exclude<v.InferOutput<O[K]>, undefined>;
};
export interface Optimizer<O extends v.ObjectEntries = v.ObjectEntries> {
  readonly options: O;
  readonly defaults: Filled<O>;
  /** f32 words beside each of a parameter's, in the order of memory. They start at 0. */
  readonly states: readonly string[];
  /** Words of its own at step `t`, from 1 up, of learning rate `lr`. */
  words(o: Filled<O>, lr: number, t: number): Readonly<Record<string, number>>;
  /** The new states, and last the new `param`. */
  step<E>(is: Scalars<E>): Readonly<Record<string, E>>;
}
/** One that says what its options are, so that its other parts are checked against them. */
export const optimizer = <const O extends v.ObjectEntries>(o: Optimizer<O>): Optimizer<O> => o;

export const beta = number("a number from 0 up to, not including, 1", (x) => x >= 0 && x < 1);
/** Decays of the first and of the second mean that a step keeps. */
export const betas = pair(beta, "two numbers from 0 up to, not including, 1");
