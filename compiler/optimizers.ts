/**
 * Optimizers' steps as expressions over a parameter, its gradient and its states, which both targets print.
 */
import { call, type Expr, konst, type ScalarFn, scalarFns } from "../ops/index.ts";
import { type Optimizer, type OptimizerName, optimizers, type Scalars } from "../runtime/bundle.ts";
import type { ParamAddress } from "./kernel.ts";

const functions = Object.fromEntries(
  (Object.keys(scalarFns) as ScalarFn[]).map((fn) => [fn, (...args: Expr[]) => call(fn, ...args)]),
) as unknown as Omit<Scalars<Expr>, "at" | "num">;

/** New states and parameter, by name; no decay for norms, biases and other vectors. */
export function stepOf(
  name: OptimizerName,
  p: Pick<ParamAddress, "kind" | "rows">,
): Readonly<Record<string, Expr>> {
  const { states, step }: Optimizer = optimizers[name];
  const vector = p.kind === "vector" || (p.kind === "factor" && p.rows === "one");
  const operands = new Set(["param", "grad", ...states]);
  return step<Expr>({
    ...functions,
    num: konst,
    at: (name) =>
      operands.has(name)
        ? { e: "arg", name }
        : name === "decay" && vector
          ? konst(0)
          : { e: "metaf", name, at: null },
  });
}
