/**
 * Optimizer rules over (param, grad, states) as scalar expressions; hyper-parameters come from the metadata
 * of the update.
 */
import { call, type Expr, konst } from "./expr.ts";

export interface Optimizer {
  readonly name: string;
  /** State tensors beside the parameter, each f32 with its layout. */
  readonly states: readonly string[];
  /** New param and states. `grad` is already clipped; `decay` is 0 for norms and biases. */
  readonly update: (h: { decay: Expr }) => Readonly<Record<string, Expr>>;
}
const arg = (name: string): Expr => ({ e: "arg", name });
const hyper = (name: string): Expr => ({ e: "metaf", name, at: null });

/**
 * AdamW (Loshchilov and Hutter 2019) as torch.optim.AdamW orders it; lr_c1 = lr / (1 - β1ᵗ), rsqrt_c2 = 1 /
 * sqrt(1 - β2ᵗ).
 */
export const adamw: Optimizer = {
  name: "adamw",
  states: ["m", "v"],
  update: ({ decay }) => {
    const g = arg("grad");
    const m = call("fma", call("sub", g, arg("m")), call("sub", konst(1), hyper("beta1")), arg("m"));
    const v = call(
      "fma",
      call("pin", call("mul", g, call("sub", konst(1), hyper("beta2")))),
      g,
      call("pin", call("mul", arg("v"), hyper("beta2"))),
    );
    const denom = call("fma", call("sqrt", v), hyper("rsqrt_c2"), hyper("eps"));
    const decayed = call(
      "pin",
      call("mul", arg("param"), call("fma", call("neg", hyper("lr")), decay, konst(1))),
    );
    return {
      m,
      v,
      param: call("sub", decayed, call("pin", call("mul", hyper("lr_c1"), call("div", m, denom)))),
    };
  },
};

/** SGD with momentum as torch.optim.SGD: buf = μ·buf + (g + λ·p); p -= lr·buf. `beta1` carries μ. */
export const sgd: Optimizer = {
  name: "sgd",
  states: ["m"],
  update: ({ decay }) => {
    const m = call("fma", arg("m"), hyper("beta1"), call("fma", decay, arg("param"), arg("grad")));
    return { m, param: call("sub", arg("param"), call("pin", call("mul", hyper("lr"), m))) };
  },
};
export const optimizers = { adamw, sgd } as const;
