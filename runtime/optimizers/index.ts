/** Optimizers by name. */
import { WeftError } from "../errors.ts";
import { adamw } from "./adamw.ts";
import { lion } from "./lion.ts";
import type { Optimizer } from "./optimizer.ts";
import { sgd } from "./sgd.ts";

export type { Optimizer, Scalars } from "./optimizer.ts";

export const optimizers = { adamw, sgd, lion } as const satisfies Readonly<Record<string, Optimizer>>;
export type OptimizerName = keyof typeof optimizers;
export const optimizerNames = Object.keys(optimizers) as OptimizerName[];
const all: readonly Optimizer[] = Object.values(optimizers);

type Both<T> = (T extends unknown ? (x: T) => void : never) extends (x: infer I) => void ? I : never;
/** Options of any of them. */
export type OptimizerEntries = Both<(typeof optimizers)[OptimizerName]["options"]>;
export const optimizerEntries = Object.assign({}, ...all.map((o) => o.options)) as OptimizerEntries;

/** Numbers that a parameter of any job may need beside its own and its gradient's. */
export const mostStates = Math.max(...all.map((o) => o.states.length));
/**
 * What an update is told, in the order of its metadata: the learning rate, what each optimizer makes of its
 * options, weight decay, and the largest norm of all gradients.
 */
export const updateWords: readonly string[] = [
  ...new Set(["lr", ...all.flatMap((o) => Object.keys(o.words(o.defaults, 1, 1)))]),
  "decay",
  "max_norm",
];

/** An optimizer and its options, every default filled in. */
export interface Chosen {
  readonly name: OptimizerName;
  readonly options: Readonly<Record<string, unknown>>;
}
/** What `given`, a job's options, asks for. Throws WEFT_OPTION for an option of another optimizer. */
export function chosen(given: { readonly optimizer?: OptimizerName | undefined }): Chosen {
  const name = given.optimizer ?? "adamw";
  const { options: own, defaults }: Optimizer = optimizers[name];
  const options: Record<string, unknown> = { ...defaults };
  for (const [key, value] of Object.entries(given)) {
    if (!Object.hasOwn(optimizerEntries, key) || value === undefined) continue;
    if (!Object.hasOwn(own, key))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: key,
        expected: `options of ${name}: ${Object.keys(own).join(", ")}`,
        found: `one of ${optimizerNames.filter((o) => Object.hasOwn(optimizers[o].options, key)).join(", ")}`,
      });
    options[key] = value;
  }
  return { name, options };
}
/** The words of a job's update number `t`. */
export const wordsOf = (
  { name, options }: Chosen,
  lr: number,
  t: number,
): Readonly<Record<string, number>> => ({
  lr,
  ...(optimizers[name] as Optimizer).words(options as never, lr, t),
});
