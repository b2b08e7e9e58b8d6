/** The graph verifier, run on every program: row domains never mix, and a state has one writer chain. */
import { type Node, opOf, type Type, toposort } from "../ops/index.ts";
import type { GraphProgram } from "./programs/index.ts";

/**
 * Throws when a program's graph breaks a rule of the language: an error here is a bug of ours, not of the
 * user.
 */
export function verify(program: GraphProgram): void {
  const writers = new Map<string, Node[]>();
  for (const node of toposort(program.roots)) {
    const op = opOf(node.op);
    const where = `${program.name}: ${node.op} (${node.label})`;
    if (op.kind !== "input") {
      const types = op.infer(
        node.ins.map((v) => v.type),
        node.attrs,
      );
      if (JSON.stringify(types) !== JSON.stringify(node.outs))
        throw new Error(`${where}: types do not follow from its operands`);
    }
    if (op.kind === "point" && !op.remote) {
      const out = node.outs[0] as Type & { kind: "rows" };
      for (const v of node.ins)
        if (v.type.kind === "rows" && v.type.domain !== out.domain)
          throw new Error(`${where}: crosses from ${v.type.domain} to ${out.domain} without a gather`);
    }
    if (op.kind === "effect") {
      const key = `${node.ins[0]!.node.id}.${node.ins[0]!.index}`;
      const list = writers.get(key) ?? [];
      list.push(node);
      writers.set(key, list);
      if (list.length > 1) throw new Error(`${where}: a second writer of one state`);
    }
  }
}
