/**
 * Elementwise ops: one record each. Operands broadcast (vectors over rows, one-column rows over columns);
 * autodiff undoes the broadcast.
 */
import { call, type Expr, konst } from "./expr.ts";
import { type Attrs, defineOp, make1, type Type, type Value } from "./graph.ts";

interface Elementwise {
  readonly arity: number;
  readonly expr: (args: readonly Expr[], attrs: Attrs) => Expr;
  /** Contribution to each operand's gradient at the output's shape; null where the op is constant in it. */
  readonly grad?: (c: {
    ins: readonly Value[];
    out: Value;
    dout: Value;
    attrs: Attrs;
  }) => ((() => Value) | null)[];
  /** Instead of `grad`: nothing differentiates it, as what only gradients are made of. */
  readonly constant?: true;
  /** Of the sample that tests take: attributes, and what keeps random operands inside the op's domain. */
  readonly attrs?: Attrs;
  readonly within?: (x: number) => number;
}

/** Define an elementwise op; returns a function on values. */
export function elementwise(name: string, def: Elementwise) {
  const op = defineOp({
    name,
    kind: "point",
    infer: (ins) => [broadcast(name, ins)],
    ...(def.constant && { constant: def.constant }),
    point: ({ at, attrs }) =>
      def.expr(
        Array.from({ length: def.arity }, (_, i) => at(i)),
        attrs,
      ),
    ...(def.grad && {
      grad: (node: import("./graph.ts").Node, douts: readonly (Value | null)[]) =>
        def.grad!({
          ins: node.ins,
          out: { node, index: 0, type: node.outs[0]! },
          dout: douts[0]!,
          attrs: node.attrs,
        }),
    }),
    samples: [
      {
        ins: Array(def.arity).fill({ kind: "rows", domain: "T", cols: 5 }),
        ...(def.attrs && { attrs: def.attrs }),
        ...(def.within && { within: def.within }),
      },
    ],
  });
  return (...args: (Value | Attrs)[]): Value => {
    const isValue = (a: Value | Attrs): a is Value => typeof (a as Value).node === "object";
    return make1(op, args.filter(isValue), args.find((a): a is Attrs => !isValue(a)) ?? {});
  };
}

/** The widest row shape among the operands; all row operands share one domain. */
function broadcast(name: string, ins: readonly Type[]): Type {
  let out: Type | undefined;
  for (const t of ins) {
    if (t.kind !== "rows") continue;
    if (out?.kind === "rows") {
      if (out.domain !== t.domain)
        throw new Error(`${name}: row domains ${out.domain} and ${t.domain} differ`);
      if (out.cols !== t.cols && out.cols !== 1 && t.cols !== 1)
        throw new Error(`${name}: columns ${out.cols} and ${t.cols} differ`);
    }
    if (!out || (out.kind === "rows" && t.cols > out.cols)) out = t;
  }
  if (!out) throw new Error(`${name}: no row operand`);
  return out;
}

export const neg = elementwise("neg", {
  arity: 1,
  expr: ([x]) => call("neg", x!),
  grad: ({ dout }) => [() => neg(dout)],
});
export const add = elementwise("add", {
  arity: 2,
  expr: ([a, b]) => call("add", a!, b!),
  grad: ({ dout }) => [() => dout, () => dout],
});
export const sub = elementwise("sub", {
  arity: 2,
  expr: ([a, b]) => call("sub", a!, b!),
  grad: ({ dout }) => [() => dout, () => neg(dout)],
});
export const mul = elementwise("mul", {
  arity: 2,
  expr: ([a, b]) => call("pin", call("mul", a!, b!)),
  grad: ({ ins: [a, b], dout }) => [() => mul(dout, b!), () => mul(dout, a!)],
});
/** a / b, b not 0. */
export const div = elementwise("div", {
  arity: 2,
  within: (x) => Math.abs(x) + 0.25,
  expr: ([a, b]) => call("div", a!, b!),
  grad: ({ ins: [, b], out, dout }) => [() => div(dout, b!), () => neg(div(mul(dout, out), b!))],
});
/** a·b + c. */
export const fma = elementwise("fma", {
  arity: 3,
  expr: ([a, b, c]) => call("fma", a!, b!, c!),
  grad: ({ ins: [a, b], dout }) => [() => mul(dout, b!), () => mul(dout, a!), () => dout],
});
/** x·scale + shift, by constants. */
export const affine = elementwise("affine", {
  arity: 1,
  expr: ([x], a) => call("fma", x!, konst(Number(a.scale)), konst(Number(a.shift))),
  grad: ({ dout, attrs }) => [() => affine(dout, { scale: attrs.scale!, shift: 0 })],
  attrs: { scale: 0.5, shift: 0.25 },
});
export const exp = elementwise("exp", {
  arity: 1,
  expr: ([x]) => call("exp", x!),
  grad: ({ out, dout }) => [() => mul(dout, out)],
});
export const tanh = elementwise("tanh", {
  arity: 1,
  expr: ([x]) => call("tanh", x!),
  grad: ({ out, dout }) => [() => mul(dout, affine(mul(out, out), { scale: -1, shift: 1 }))],
});
/** Natural logarithm; the argument is clamped to the smallest normal f32. */
export const log = elementwise("log", {
  arity: 1,
  constant: true,
  within: (x) => Math.abs(x) + 0.25,
  expr: ([x]) => call("log", call("max", x!, konst(1.1754943508222875e-38))),
});
/** 1 / sqrt(x), x > 0. d/dx = -½ y³. */
export const rsqrt = elementwise("rsqrt", {
  arity: 1,
  within: (x) => Math.abs(x) + 0.25,
  expr: ([x]) => call("rsqrt", x!),
  grad: ({ out, dout }) => [() => affine(mul(dout, mul(out, mul(out, out))), { scale: -0.5, shift: 0 })],
});
export const sigmoidExpr = (x: Expr): Expr =>
  call(
    "div",
    konst(1),
    call("add", konst(1), call("exp", call("neg", call("max", call("min", x, konst(80)), konst(-80))))),
  );
/** y = x · sigmoid(x). */
export const silu = elementwise("silu", {
  arity: 1,
  expr: ([x]) => call("pin", call("mul", x!, sigmoidExpr(x!))),
  grad: ({ ins: [x], dout }) => [() => mul(dout, dsilu(x!))],
});
/** d silu(x) / dx = s + x·s·(1 - s) with s = sigmoid(x). */
export const dsilu = elementwise("dsilu", {
  arity: 1,
  constant: true,
  expr: ([x]) => {
    const s = sigmoidExpr(x!);
    return call("fma", call("pin", call("mul", x!, s)), call("sub", konst(1), s), s);
  },
});
/** √(2/π)·(x + 0.044715·x³), bounded where its tanh is 1 in f32. */
const geluInner = (x: Expr): Expr => {
  const c = Math.sqrt(2 / Math.PI);
  const u = call("mul", x, call("fma", call("pin", call("mul", x, x)), konst(0.044715 * c), konst(c)));
  return call("max", call("min", call("pin", u), konst(20)), konst(-20));
};
/** y = ½x·(1 + tanh(…)): GELU by its tanh approximation. */
export const gelu = elementwise("gelu", {
  arity: 1,
  expr: ([x]) => {
    const half = call("pin", call("mul", x!, konst(0.5)));
    return call("fma", half, call("tanh", geluInner(x!)), half);
  },
  grad: ({ ins: [x], dout }) => [() => mul(dout, dgelu(x!))],
});
/** d gelu(x) / dx = ½(1 + t) + ½x·(1 - t²)·√(2/π)·(1 + 3·0.044715·x²) with t = tanh(…). */
export const dgelu = elementwise("dgelu", {
  arity: 1,
  constant: true,
  expr: ([x]) => {
    const c = Math.sqrt(2 / Math.PI);
    const t = call("tanh", geluInner(x!));
    const inner = call("fma", call("pin", call("mul", x!, x!)), konst(0.134145 * c), konst(c));
    const rise = call("fma", call("neg", t), t, konst(1));
    const curve = call("pin", call("mul", call("pin", call("mul", x!, inner)), rise));
    return call("fma", call("add", curve, t), konst(0.5), konst(0.5));
  },
});
