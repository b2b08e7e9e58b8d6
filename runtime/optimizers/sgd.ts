/** SGD with momentum, as torch.optim.SGD: m = μ·m + (g + λ·p); p -= lr·m. `beta1` carries μ. */
import * as v from "valibot";
import { beta, optimizer } from "./optimizer.ts";

export const sgd = optimizer({
  options: {
    /** Of SGD. Default 0. */
    momentum: v.optional(beta),
  },
  defaults: { momentum: 0 },
  states: ["m"],
  words: ({ momentum }) => ({ beta1: momentum }),
  step: ({ at, sub, mul, fma, pin }) => {
    const m = fma(at("m"), at("beta1"), fma(at("decay"), at("param"), at("grad")));
    return { m, param: sub(at("param"), pin(mul(at("lr"), m))) };
  },
});
