/** The base's own tensors among the inputs of a graph. */
import { toposort, type Value } from "../../ops/index.ts";

export const isParameter = ({ type: { kind } }: Value): boolean =>
  kind === "weight" || kind === "experts" || kind === "vector";
/** Those that a value is made of, in the order in which they were declared. */
export const parametersOf = (v: Value): Value[] =>
  toposort([v])
    .filter((n) => n.op === "input")
    .sort((a, b) => a.id - b.id)
    .map((node): Value => ({ node, index: 0, type: node.outs[0]! }))
    .filter(isParameter);
