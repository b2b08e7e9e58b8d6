/** Gradients against central differences in f64. */
import * as assert from "uvu/assert";
import { vjp } from "../compiler/autodiff.ts";
import { dropout, expand, mul, rebias, scaleBySlot, shrink, slotVector } from "../ops/index.ts";
import { batch, inputData } from "./support/graphs.ts";
import { checkGradients, dataFor, graph, next, oneSlot, rows, sample, withSamples } from "./support/ops.ts";
import { suite } from "./support/suite.ts";

const test = suite("gradients");
test("each gradient equals central differences in f64", () => {
  const b = oneSlot(batch("grads", 5, 3, "step"));
  const neither = withSamples.filter((op) => Boolean(op.grad) === Boolean(op.constant)).map((op) => op.name);
  assert.equal(neither, [], "an op has a gradient, or says that nothing differentiates it");
  for (const op of withSamples) {
    if (!op.grad) continue;
    op.samples!.forEach((_, i) => {
      const { outs, ins } = sample(op, i);
      const y = outs[0]!;
      assert.is(y.type.kind, "rows", op.name);
      const cot = graph.input(`cot${next()}`, "cot", y.type);
      const wanted = ins.filter((v) => v.type.kind !== "table");
      const grads = vjp([[y, cot]], wanted);
      checkGradients(op.name, y, cot, wanted, grads, dataFor(op, [y, cot], b, `g ${op.name}`), b);
    });
  }
});

test("gradients of what a slot holds: low-rank factors behind dropout, gains, biases", () => {
  const name = `slots${next()}`;
  const b = oneSlot(batch("slots", 7, 4, "step", 11));
  const factor = (of: string, rows: number, cols: number) =>
    graph.input(name, of, { kind: "factor", rows, cols, branch: 2 });
  const x = graph.input(name, "x", rows(12));
  const [fa, fb] = [factor("fa", 8, 12), factor("fb", 8, 9)];
  const [gain, own] = [factor("gain", 1, 12), factor("own", 1, 12)];
  const bias = graph.input(name, "bias", { kind: "vector", n: 12 });
  const lora = expand(scaleBySlot(shrink(dropout(x, 2), fa), 2), fb);
  for (const [what, y, wanted] of [
    ["LoRA", lora, [x, fa, fb]],
    ["gain", mul(x, slotVector(gain, "T", 1)), [x, gain]],
    ["bias", rebias(x, own, bias), [x, own]],
  ] as const) {
    const cot = graph.input(`${name}${what}`, "cot", y.type);
    checkGradients(what, y, cot, wanted, vjp([[y, cot]], wanted), inputData([y, cot], b, what), b);
  }
});
test.run();
