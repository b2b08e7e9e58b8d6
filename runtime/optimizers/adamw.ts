/** AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW orders it. */
import * as v from "valibot";
import { above0 } from "../schema.ts";
import { betas, optimizer } from "./optimizer.ts";

export const adamw = optimizer({
  options: {
    betas: v.optional(betas),
    /** Of AdamW. Default 1e-8. */
    eps: v.optional(above0),
  },
  defaults: { betas: [0.9, 0.999], eps: 1e-8 },
  states: ["m", "v"],
  words: ({ betas: [beta1, beta2], eps }, lr, t) => ({
    lr_c1: lr / (1 - beta1 ** t),
    rsqrt_c2: 1 / Math.sqrt(1 - beta2 ** t),
    beta1,
    beta2,
    eps,
  }),
  step: ({ at, num, sub, mul, div, fma, neg, sqrt, pin }) => {
    const g = at("grad");
    const m = fma(sub(g, at("m")), sub(num(1), at("beta1")), at("m"));
    const v = fma(pin(mul(g, sub(num(1), at("beta2")))), g, pin(mul(at("v"), at("beta2"))));
    const denom = fma(sqrt(v), at("rsqrt_c2"), at("eps"));
    const decayed = pin(mul(at("param"), fma(neg(at("lr")), at("decay"), num(1))));
    return { m, v, param: sub(decayed, pin(mul(at("lr_c1"), div(m, denom)))) };
  },
});
