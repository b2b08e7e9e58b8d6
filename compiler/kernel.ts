/** Kernels as the emitters see them: launches whose every value has an address. */
import type { Domain, Format, Type, Value } from "../ops/index.ts";
import type { MemoryClass } from "../runtime/bundle.ts";
import type { Body } from "./fuse.ts";
import type { BlockLayout } from "./metadata.ts";
import type { Capacities } from "./target.ts";

/**
 * Memory classes. Each is one buffer per group (a layer, or the outer region), except `meta` and `arena`,
 * which all groups share. Eight storage bindings serve every kernel, so one bind group a group serves every
 * program.
 */
export { type MemoryClass, memoryClasses } from "../runtime/bundle.ts";

/** Where a value lives: words from the start of its class's chamber; `stride` words a row. */
export interface Address {
  readonly cls: MemoryClass;
  readonly offset: number;
  readonly stride: number;
}
export interface ParamAddress {
  readonly name: string;
  readonly kind: "weight" | "vector" | "factor";
  /** weight: n × k, packed in panels; vector: n; factor: rank × k at a slot. */
  readonly n: number;
  readonly k: number;
  /** Adapter branch of a slot tensor. */
  readonly branch: number | null;
  readonly rows: "rank" | "one";
  /** Words from the chamber's start (weights), or from the slot's start (adapters). */
  readonly offset: number;
  /** Words of the tensor as stored, padding included. */
  readonly words: number;
  /**
   * Offset of its gradient inside a job's accumulators; states follow at `accum + words`, `accum + 2·words`.
   */
  readonly accum: number;
}

/** Everything an emitter needs beside the launch. */
export interface KernelEnv {
  readonly capacities: Capacities;
  readonly layout: BlockLayout;
  readonly panel: number;
  readonly branches: number;
  /** Words of one slot in `adapters`, of one job in `accum`. */
  readonly slotWords: number;
  readonly jobWords: number;
  readonly groups: number;
  readonly address: (v: Value) => Address;
  readonly param: (name: string) => ParamAddress;
  /** Words from the arena's start: gradient norms [jobs][groups + 2]. */
  readonly norms: number;
}
/** Metadata arrays that say where each segment of a unit begins, and how many rows it has, in a domain. */
export const SEGMENT_ROWS: Readonly<Partial<Record<Domain, readonly [string, string]>>> = {
  W: ["seg_row", "seg_rows"],
  R: ["seg_head", "seg_heads"],
};
export const ROWS_HEADER: Readonly<Record<Domain, string>> = { T: "n_rows", W: "n_rows", R: "n_head" };

/** Update kernels have no graph: they run over a region's parameters. */
export interface UpdateBody {
  readonly name: string;
  readonly skeleton: "sumsq" | "clip" | "optimizer" | "row_norms";
  readonly params: readonly ParamAddress[];
  readonly optimizer: "adamw" | "sgd" | null;
  readonly norms?: readonly RowNorms[];
}
/** out[o] = 1 / ‖W[o] + s·Σ_r b[r][o]·a[r]‖₂ in the slot of the block. */
export interface RowNorms {
  readonly branch: number;
  readonly weight: ParamAddress;
  readonly format: Format;
  readonly a: ParamAddress;
  readonly b: ParamAddress;
  readonly out: ParamAddress;
}
/** Kernels of one launch for steps of few rows and of many, where they differ; `any` otherwise. */
export type Variant = "any" | "few" | "many";
export const variantsOf = (bodies: readonly AnyBody[]): readonly Variant[] =>
  bodies[0]!.skeleton === "attend" ? ["few", "many"] : ["any"];
export type AnyBody = Body | UpdateBody;
export const isUpdate = (b: AnyBody): b is UpdateBody =>
  ["sumsq", "clip", "optimizer", "row_norms"].includes(b.skeleton);

/** The slot table of a group: word 0 = group index; from word 64, [slot][branch] (rank u32, scale f32). */
export const SLOT_TABLE = 64;
export const colsOf = (t: Type): number =>
  t.kind === "rows" || t.kind === "field" || t.kind === "factor" || t.kind === "table"
    ? t.cols
    : t.kind === "weight"
      ? t.k
      : t.kind === "vector"
        ? t.n
        : 0;
