/**
 * Each optimizer's step, in f64, is the rule of its paper as torch writes it: written here a second time, with
 * plain numbers and from the definition.
 */
import * as assert from "uvu/assert";
import { stepOf } from "../compiler/optimizers.ts";
import { type EvalCtx, evalExpr } from "../ops/index.ts";
import {
  chosen,
  mostStates,
  type OptimizerName,
  optimizerNames,
  optimizers,
  wordsOf,
} from "../runtime/bundle.ts";
import { uniform } from "./support/random.ts";
import { suite } from "./support/suite.ts";

const test = suite("optimizers");
const contextOf = (words: Readonly<Record<string, number>>): EvalCtx => {
  const absent = (): never => {
    throw new Error("a step reads words of its update alone");
  };
  return {
    metaf: (word) => words[word]!,
    meta: absent,
    rows: absent,
    slot: absent,
    layer: 0,
    ofLayer: absent,
  };
};
const lr = 0.03;
const decay = 0.1;
interface Parameter {
  p: number;
  m: number;
  v: number;
}
/** How `x` moves at gradient g, step t; options are those that the test gives. */
const rules: Readonly<
  Record<
    OptimizerName,
    { options: Record<string, unknown>; step: (x: Parameter, g: number, t: number) => void }
  >
> = {
  adamw: {
    options: { betas: [0.8, 0.95], eps: 1e-4 },
    step: (x, g, t) => {
      x.p *= 1 - lr * decay;
      x.m = 0.8 * x.m + 0.2 * g;
      x.v = 0.95 * x.v + 0.05 * g * g;
      x.p -= (lr / (1 - 0.8 ** t)) * (x.m / (Math.sqrt(x.v) / Math.sqrt(1 - 0.95 ** t) + 1e-4));
    },
  },
  sgd: {
    options: { momentum: 0.7 },
    step: (x, g) => {
      x.m = 0.7 * x.m + (g + decay * x.p);
      x.p -= lr * x.m;
    },
  },
};

for (const name of optimizerNames)
  test(`${name}: 20 steps of 50 numbers`, () => {
    const { options, step } = rules[name];
    const { states } = optimizers[name];
    assert.ok(states.length <= mostStates);
    const exprs = stepOf(name, { kind: "weight", rows: "one" });
    assert.equal(Object.keys(exprs), [...states, "param"], "new states, and last the parameter");
    const want = [...uniform(`${name} start`, 50)].map((p): Parameter => ({ p, m: 0, v: 0 }));
    const got = want.map(
      ({ p }): Record<string, number> => ({
        ...Object.fromEntries(states.map((s) => [s, 0])),
        param: p,
      }),
    );
    for (let t = 1; t <= 20; t++) {
      const words = {
        ...wordsOf(chosen({ optimizer: name, ...options }), lr, t),
        decay,
      };
      const ctx = contextOf(words);
      // A gradient of exactly zero too, and one that is not a normal f32.
      const grads = [...uniform(`${name} ${t}`, 50)].map((g, i) => (i === 0 ? 0 : i === 1 ? 1e-42 : g));
      grads.forEach((grad, i) => {
        step(want[i]!, grad, t);
        const args = { ...got[i]!, grad };
        for (const [key, e] of Object.entries(exprs)) got[i]![key] = evalExpr(e, new Map(), ctx, 0, 0, args);
        assert.ok(
          Math.abs(got[i]!.param! - want[i]!.p) <= 1e-12,
          `step ${t}, number ${i}: ${got[i]!.param}, not ${want[i]!.p}`,
        );
      });
    }
    assert.ok(
      want.some(({ p }, i) => Math.abs(p - uniform(`${name} start`, 50)[i]!) > 0.1),
      "it moved",
    );
  });

for (const name of optimizerNames)
  test(`${name}: decay leaves norms, biases and other vectors alone`, () => {
    const words = { ...wordsOf(chosen({ optimizer: name }), lr, 1), decay };
    const ctx = contextOf(words);
    const at = (kind: "weight" | "vector"): number =>
      evalExpr(stepOf(name, { kind, rows: "one" }).param!, new Map(), ctx, 0, 0, {
        param: 2,
        grad: 0,
        m: 0,
        v: 0,
      });
    assert.ok(at("weight") < 2);
    assert.is(at("vector"), 2);
  });
test.run();
