/** Cross-entropy over a chunk of logits rows: loss and gradient, never a [tokens, vocab] tensor. */

import { add, exp, log, sub } from "./elementwise.ts";
import { call, type Expr, ixBin, konst, load, meta, row } from "./expr.ts";
import { defineOp, make1, type Type, type Value } from "./graph.ts";
import { rowMax, rowSum } from "./reduce.ts";

type Rows = Type & { kind: "rows" };

const labelLogitOp = defineOp({
  name: "label_logit",
  kind: "point",
  remote: true,
  infer: ([x]) => [{ kind: "rows", domain: (x as Rows).domain, cols: 1 }],
  point: ({ ins }) => load(ins[0]!, row, meta("label", row)),
});
const ceGradOp = defineOp({
  name: "cross_entropy_grad",
  kind: "point",
  infer: ([x]) => [x!],
  // (softmax - onehot) · weight; the label's element is computed in one expression from f32.
  point: ({ at }) => {
    const p = call("exp", call("sub", at(0), at(1)));
    const d: Expr = {
      e: "if",
      ix: ixBin("xor", { ix: "col" }, meta("label", row)),
      yes: p,
      no: call("sub", p, konst(1)),
    };
    return call("pin", call("mul", d, { e: "metaf", name: "weight", at: row }));
  },
});
/**
 * Per row: nll = logsumexp(logits) - logits[label], and d(weight·nll)/d(logits). Labels and weights come from
 * the batch metadata.
 */
export function crossEntropy(logits: Value): { nll: Value; dlogits: Value } {
  const max = rowMax(logits);
  const lse = add(max, log(rowSum(exp(sub(logits, max)))));
  return { nll: sub(lse, make1(labelLogitOp, [logits])), dlogits: make1(ceGradOp, [logits, lse]) };
}
