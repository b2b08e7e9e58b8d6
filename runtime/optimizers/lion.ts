/** Lion (Chen et al. 2023, algorithm 2): p -= lr · (sign(β1·m + (1 - β1)·g) + λ·p); m = β2·m + (1 - β2)·g. */
import * as v from "valibot";
import { betas, optimizer } from "./optimizer.ts";

export const lion = optimizer({
  options: { betas: v.optional(betas) },
  defaults: { betas: [0.9, 0.99] },
  states: ["m"],
  words: ({ betas: [beta1, beta2] }) => ({ beta1, beta2 }),
  step: ({ at, num, sub, mul, max, min, fma, neg, pin }) => {
    const [g, old] = [at("grad"), at("m")];
    const towards = (beta: string) => fma(sub(g, old), sub(num(1), at(beta)), old);
    // Twice 2¹²⁷ lifts every f32 but zero to 1 or more: the sign, without a comparison.
    const lifted = (x: ReturnType<typeof num>) => min(max(mul(x, num(2 ** 127)), num(-1)), num(1));
    const sign = lifted(lifted(towards("beta1")));
    const decayed = pin(mul(at("param"), fma(neg(at("lr")), at("decay"), num(1))));
    return { m: towards("beta2"), param: sub(decayed, pin(mul(at("lr"), sign))) };
  },
});
