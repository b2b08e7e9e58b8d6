/**
 * Products of the same rows whose results meet in one epilogue, as gate and up of a gated feed-forward do:
 * the two are one body, which reads the rows once and has both sums at hand.
 */
import { type Node, opOf, type Type, type Value, valueKey } from "../../ops/index.ts";
import { graphKernels, skeletonOf } from "../kernels/index.ts";

type Rows = Type & { kind: "rows" };
type UsesOf = (key: string) => readonly Node[];

/** Pointwise nodes over the elements of `v` that an epilogue of what makes it may have. */
function above(v: Value, usesOf: UsesOf, found = new Set<Node>()): ReadonlySet<Node> {
  const { domain, cols } = v.type as Rows;
  for (const node of usesOf(valueKey(v))) {
    const [op, type] = [opOf(node.op), node.outs[0] as Rows];
    if (op.kind !== "point" || op.remote || op.conditional || op.drops || found.has(node)) continue;
    if (type.domain !== domain || type.cols !== cols) continue;
    found.add(node);
    above({ node, index: 0, type }, usesOf, found);
  }
  return found;
}
function meet(a: Node, b: Node, usesOf: UsesOf): boolean {
  const [of, other] = [a, b].map((node) => above({ node, index: 0, type: node.outs[0]! }, usesOf));
  return [...of!].some((node) => other!.has(node));
}
/** What two nodes have in common that one body can compute: rows, and a matrix's shape and format. */
const kindOf = ({ op, ins: [x, w] }: Node): string => JSON.stringify([op, valueKey(x!), w!.type]);

/**
 * Nodes in an order in which the two of a pair follow one another, and the first of each by its second. What
 * is made of a first waits for the second, which needs nothing but what the first needs.
 */
export function paired(
  order: readonly Node[],
  usesOf: UsesOf,
): { readonly order: readonly Node[]; readonly firstOf: ReadonlyMap<Node, Node> } {
  const alone = new Map<string, Node>();
  const firstOf = new Map<Node, Node>();
  for (const node of order) {
    const op = opOf(node.op);
    if (op.kind !== "kernel" || !graphKernels[skeletonOf(op)].pairs) continue;
    const first = alone.get(kindOf(node));
    if (first && meet(first, node, usesOf)) {
      firstOf.set(node, first);
      alone.delete(kindOf(node));
    } else alone.set(kindOf(node), node);
  }
  const firsts = new Set(firstOf.values());
  const out: Node[] = [];
  const waiting = new Set<Node>();
  const put = (node: Node): void => {
    if (firsts.has(node) || node.ins.some((v) => waiting.has(v.node))) {
      waiting.add(node);
      return;
    }
    const first = firstOf.get(node);
    if (!first) {
      out.push(node);
      return;
    }
    out.push(first, node);
    waiting.delete(first);
    const others = [...waiting];
    waiting.clear();
    others.forEach(put);
  };
  order.forEach(put);
  return { order: out, firstOf };
}
