/**
 * Each optimizer's step, in f64, is the rule of its paper as torch writes it: written here a second time,
 * with plain numbers and from the definition.
 */
import * as assert from "uvu/assert";
import { stepOf } from "../compiler/optimizers.ts";
import { type EvalCtx, expressionFn } from "../ops/index.ts";
import {
  chosen,
  mostStates,
  type OptimizerName,
  optimizerNames,
  optimizers,
  wordsOf,
} from "../runtime/bundle.ts";
import { batchOf, configs, engineOf } from "./support/engines.ts";
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
const near = (a: number, b: number, by: number, what: string): void =>
  assert.ok(Math.abs(a - b) <= by, `${what} ${a}, not ${b}`);
/** How `x` moves at gradient g, step t; options are those that the test gives. */
const rules: Readonly<
  Record<
    OptimizerName,
    { options: Record<string, unknown>; step: (x: Parameter, g: number, t: number, lr: number) => void }
  >
> = {
  adamw: {
    options: { betas: [0.8, 0.95], eps: 1e-4 },
    step: (x, g, t, lr) => {
      x.p *= 1 - lr * decay;
      x.m = 0.8 * x.m + 0.2 * g;
      x.v = 0.95 * x.v + 0.05 * g * g;
      x.p -= (lr / (1 - 0.8 ** t)) * (x.m / (Math.sqrt(x.v) / Math.sqrt(1 - 0.95 ** t) + 1e-4));
    },
  },
  lion: {
    options: { betas: [0.8, 0.95] },
    step: (x, g, _, lr) => {
      x.p -= lr * (Math.sign(0.8 * x.m + 0.2 * g) + decay * x.p);
      x.m = 0.95 * x.m + 0.05 * g;
    },
  },
  sgd: {
    options: { momentum: 0.7 },
    step: (x, g, _, lr) => {
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
        step(want[i]!, grad, t, lr);
        const args = { ...got[i]!, grad };
        for (const [key, e] of Object.entries(exprs))
          got[i]![key] = expressionFn(e, new Map(), ctx, args)(0, 0);
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
      expressionFn(stepOf(name, { kind, rows: "one" }).param!, new Map(), ctx, {
        param: 2,
        grad: 0,
        m: 0,
        v: 0,
      })(0, 0);
    assert.ok(at("weight") < 2);
    assert.is(at("vector"), 2);
  });
for (const target of ["wasm", "webgpu"] as const) {
  const steps = target === "wasm" ? 20 : 4;
  test(`${steps} steps of LoRA on ${target}, by each: what the rules make of its gradients`, async () => {
    await using engine = await engineOf(configs.even, { targets: [target] });
    const { adapters } = engine.core;
    const common = { data: batchOf(128), batchSize: 5, shuffle: false, maxGradNorm: 0 } as const;
    await (await engine.finetune({ ...common, name: "start", steps: 0 })).done;
    const start = adapters.find("start").content;
    for (const name of optimizerNames) {
      const { options, step } = rules[name];
      const own = { ...options, optimizer: name, learningRate: lr / 30, weightDecay: decay };
      const job = await engine.finetune({ ...common, ...own, name, from: "start", steps });
      const { losses } = await job.done;
      const want = start.tensors.map((slot) => [...slot].map((p): Parameter => ({ p, m: 0, v: 0 })));
      for (let t = 1; t <= steps; t++) {
        const tensors = want.map((layer) => Float32Array.from(layer, ({ p }) => p));
        adapters.publish("at", { ...start, tensors });
        // A plain step of that length keeps every bit of a gradient that f32 parameters can show.
        const plain = { optimizer: "sgd", learningRate: 1024, steps: 1, name: "after", from: "at" } as const;
        const told = await (await engine.finetune({ ...common, ...plain })).done;
        near(told.losses[0]!, losses[t - 1]!, 1e-5, `${name}, step ${t}: loss`);
        const after = adapters.find("after").content.tensors;
        want.forEach((layer, l) =>
          layer.forEach((x, i) => step(x, (tensors[l]![i]! - after[l]![i]!) / 1024, t, lr / 30)),
        );
      }
      const got = adapters.find(name).content.tensors.flatMap((slot) => [...slot]);
      // A sign of what is next to nothing may be another: a few numbers may be two steps off.
      const off = want.flat().filter(({ p }, i) => Math.abs(p - got[i]!) > 1e-5).length;
      assert.ok(off <= got.length / 1000, `${name}: ${off} of ${got.length} numbers differ`);
    }
  });
}
test.run();
