/** Kinds of adapter tensors, one line each. */
import { beside } from "./beside.ts";
import { type DenseStart, dense } from "./dense.ts";
import { type EntriesStart, entries } from "./entries.ts";
import { type SelectionStart, selection } from "./selection.ts";
import { type SharedStart, shared } from "./shared.ts";
import type { TensorKind } from "./tensor.ts";

export const tensorKinds = { dense, beside, shared, selection, entries } as const satisfies Readonly<
  Record<string, TensorKind>
>;
export type TensorKindName = keyof typeof tensorKinds;
export type StartName = DenseStart | SharedStart | SelectionStart | EntriesStart;
export const startNames = [
  ...new Set(Object.values(tensorKinds).flatMap((k: TensorKind) => Object.keys(k.starts))),
] as StartName[];
