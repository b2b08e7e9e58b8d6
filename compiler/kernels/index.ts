/** The kernels, one line each: those that a graph's nodes become, and those of no graph. */
import { type Node, type Op, opOf } from "../../ops/index.ts";
import type { Kernel } from "../kernel.ts";
import { attend } from "./attend.ts";
import { attend_dkv } from "./attend_dkv.ts";
import { attend_dq } from "./attend_dq.ts";
import type { Body, GraphKernel } from "./body.ts";
import { candidates } from "./candidates.ts";
import { clip } from "./clip.ts";
import { col_sum } from "./col_sum.ts";
import { experts } from "./experts.ts";
import { experts_outer } from "./experts_outer.ts";
import { experts_shrink } from "./experts_shrink.ts";
import { experts_t } from "./experts_t.ts";
import { linear } from "./linear.ts";
import { linear_t } from "./linear_t.ts";
import { map } from "./map.ts";
import { optimizer } from "./optimizer.ts";
import { outer } from "./outer.ts";
import { row } from "./row.ts";
import { row_norms } from "./row_norms.ts";
import { sampled } from "./sampled.ts";
import { scatter_rows } from "./scatter_rows.ts";
import { shrink } from "./shrink.ts";
import { sumsq } from "./sumsq.ts";
import { topk } from "./topk.ts";

export const graphKernels = {
  map,
  row,
  linear,
  linear_t,
  experts,
  experts_t,
  experts_shrink,
  experts_outer,
  topk,
  shrink,
  outer,
  col_sum,
  sampled,
  scatter_rows,
  attend,
  attend_dq,
  attend_dkv,
} satisfies Readonly<Record<string, GraphKernel>>;
export type Skeleton = keyof typeof graphKernels;

export const bareKernels = { candidates, sumsq, clip, optimizer, row_norms };
type BodyOf<K> = K extends Kernel<infer B> ? B : never;
/** What runs over parameters, or what a program left. */
export type Bare = BodyOf<(typeof bareKernels)[keyof typeof bareKernels]>;

/** A body of any kernel; all bodies of a launch are of one. */
export type AnyBody = Body | Bare;
const all = { ...graphKernels, ...bareKernels };
/** Functions of AssemblyScript that single kernels call. */
export const libraries = (): string[] =>
  Object.values<Kernel<never>>(all).flatMap((k) => (k.library ? [k.library()] : []));
/** The kernel that runs a body, which is of the kind that this kernel takes. */
export const kernelOf = <B extends AnyBody>(body: B): Kernel<B> => all[body.skeleton] as unknown as Kernel<B>;
/** Do bodies of a launch write base weights? */
export const writesWeights = (bodies: readonly AnyBody[]): boolean =>
  bodies.some((b) => kernelOf(b).writesWeights?.(b));

const opens: Readonly<Record<Exclude<Op["kind"], "kernel">, Skeleton | null>> = {
  point: "map",
  effect: "map",
  reduce: "row",
  input: null,
};
/** The kernel that a node of an op opens: a heavy op has one of its own name. */
export function skeletonOf(op: Op): Skeleton {
  const name = op.kind === "kernel" ? op.name : opens[op.kind];
  if (name === null || !Object.hasOwn(graphKernels, name))
    throw new Error(`op ${op.name} has no kernel: kernels/index.ts has none named ${name ?? op.name}`);
  return name as Skeleton;
}
/** Does a kernel store the rows of its result itself? Without an epilogue, nobody else does. */
export const storesResult = (b: Body): boolean => graphKernels[b.skeleton].epilogue === null;
/** Does a body do nothing but save rows of a step's values? */
export const onlySaves = (b: Body): boolean => !storesResult(b) && b.stores.every((s) => s.to === "field");
/** The named state that a node's kernel adds to; none: "". */
export const stateOf = (node: Node): string =>
  opOf(node.op).kind === "kernel" ? (graphKernels[skeletonOf(opOf(node.op))].state ?? "") : "";
