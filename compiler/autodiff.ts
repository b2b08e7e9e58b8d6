/**
 * Reverse-mode differentiation of a region, pruned by construction: a gradient thunk is called only when its
 * input lies on a path to something wanted (trainable tensors, or the region's input when a lower region
 * still needs it). The gradient of a frozen weight is never built.
 */
import {
  add,
  colSum,
  isInput,
  linearT,
  type Node,
  opOf,
  pairsOf,
  rowSum,
  type Type,
  toposort,
  type Value,
  valueKey,
} from "../ops/index.ts";

/**
 * Cotangents of `wanted` (inputs of the region, or values inside it) given cotangents `seeds` of some of its
 * values.
 */
export function vjp(
  seeds: readonly (readonly [Value, Value])[],
  wanted: readonly Value[],
): Map<string, Value> {
  const roots = seeds.map(([y]) => y);
  const order = toposort(roots);
  const wantedKeys = new Set(wanted.map(valueKey));
  const onPath = new Set<Node>();
  for (const node of order) {
    const self = node.outs.some((_, i) => wantedKeys.has(`${node.id}.${i}`));
    if (self || node.ins.some((v) => onPath.has(v.node))) onPath.add(node);
  }

  const contributions = new Map<string, Value[]>();
  const give = (v: Value, d: Value): void => {
    const key = valueKey(v);
    const list = contributions.get(key);
    if (list) list.push(d);
    else contributions.set(key, [d]);
  };
  for (const [y, dy] of seeds) give(y, dy);

  const grads = new Map<string, Value>();
  for (let i = order.length - 1; i >= 0; i--) {
    const node = order[i]!;
    if (!onPath.has(node)) continue;
    const douts = node.outs.map((type, index) => {
      const list = contributions.get(`${node.id}.${index}`);
      return list ? sum(list, type) : null;
    });
    if (douts.every((d) => d === null)) continue;
    douts.forEach((d, i) => {
      if (d && wantedKeys.has(`${node.id}.${i}`)) grads.set(`${node.id}.${i}`, d);
    });
    if (isInput({ node, index: 0, type: node.outs[0]! })) continue;
    const op = opOf(node.op);
    if (!op.grad) throw new Error(`${node.op} (${node.label}) has no gradient`);
    op.grad(node, douts).forEach((thunk, k) => {
      const x = node.ins[k]!;
      if (thunk && onPath.has(x.node)) give(x, unbroadcast(thunk(), x));
    });
  }
  return grads;
}

/** Undo an operand's broadcast: sum over the columns of a one-column operand, over the rows of a vector. */
function unbroadcast(d: Value, x: Value): Value {
  if (x.type.kind === "vector" && d.type.kind === "rows") return colSum(d, x);
  if (x.type.kind === "rows" && x.type.cols === 1 && d.type.kind === "rows" && d.type.cols > 1)
    return rowSum(d);
  return d;
}

/**
 * Σ of contributions. Products with base matrices become one `linear_t` over all pairs: one launch, one
 * running sum.
 */
function sum(list: readonly Value[], type: Type): Value {
  if (type.kind !== "rows" && list.length > 1)
    throw new Error("a parameter or state is used twice in one region");
  const products = list.filter((d) => d.node.op === "linear_t");
  const rest = list.filter((d) => d.node.op !== "linear_t");
  // Oldest contributions last, as the residual stream: rest first, so that their kernels precede the product
  // whose epilogue adds them.
  let acc: Value | undefined;
  for (const d of rest) acc = acc ? add(acc, d) : d;
  if (products.length) {
    const product = linearT(pairsOf(products.flatMap((p) => p.node.ins)));
    acc = acc ? add(acc, product) : product;
  }
  return acc!;
}
