/** Kernels as the emitters see them: launches whose every value has an address. */
import type { Domain, Value } from "../ops/index.ts";
import { type Format, type GridDim, type MemorySpace, type Products, ranked } from "../runtime/bundle.ts";
import type { BlockLayout } from "./metadata.ts";
import type { Capacities } from "./target.ts";

/**
 * Memory spaces. Each is one buffer per group (a layer, or the outer region), except `meta` and `arena`,
 * which all groups share. Eight storage bindings serve every kernel, so one bind group a group serves every
 * program.
 */
export { type MemorySpace, memorySpaces } from "../runtime/bundle.ts";

/**
 * Where a value lives: words from the start of its class's chamber; `stride` words a row, or from one
 * expert's matrix to the next.
 */
export interface Address {
  readonly space: MemorySpace;
  readonly offset: number;
  readonly stride: number;
  /** Of a matrix that is a group of its own, in WGSL: its number among those. A launch has a shard of it. */
  readonly own?: number | null;
}
export interface ParamAddress {
  readonly name: string;
  readonly kind: "weight" | "vector" | "factor";
  /** weight: n × k, packed in panels; vector: n; factor: rank × k at a slot. */
  readonly n: number;
  readonly k: number;
  /** How a weight is stored; f32 for all else. */
  readonly format: Format;
  /** Adapter branch of a slot tensor. */
  readonly branch: number | null;
  readonly rows: "rank" | "one";
  /**
   * Words from the chamber's start (weights); from the start of a quad, or of the branch's vectors
   * (adapters).
   */
  readonly offset: number;
  /** Words of the tensor as stored, padding included. */
  readonly words: number;
  /**
   * Offset of its gradient inside a job's accumulators; an optimizer's states follow, each as long.
   */
  readonly accum: number;
  /** Of a matrix that is a group of its own: its number among those. */
  readonly own: number | null;
  /** It is the first of several that lie evenly, as those of experts do. */
  readonly several?: Several;
}
/** How many there are, and words from one to the next, and from its gradient to the next's. */
export interface Several {
  readonly count: number;
  readonly offset: number;
  readonly accum: number;
}
export const severalOf = (p: ParamAddress): Several => p.several ?? { count: 1, offset: 0, accum: 0 };

/** Does a slot have a tensor's rows in quads? Others are vectors, side by side at the branch's home. */
export const inQuads = (p: Pick<ParamAddress, "kind" | "rows" | "k">): boolean =>
  p.kind === "factor" && ranked({ rows: p.rows, cols: p.k });

/** Words of a slot's row of the table, and where each branch begins in it. */
export interface SlotTable {
  readonly row: number;
  readonly branches: readonly { readonly at: number; readonly quads: number }[];
}
/** Everything an emitter needs beside the launch. */
export interface KernelEnv {
  readonly capacities: Capacities;
  readonly layout: BlockLayout;
  readonly panel: number;
  readonly slots: SlotTable;
  /** Words of one job in `accum`. */
  readonly jobWords: number;
  readonly groups: number;
  readonly address: (v: Value) => Address;
  readonly param: (name: string) => ParamAddress;
  /** Words from the arena's start: gradient norms [jobs][groups + 2]; what splits of attention leave. */
  readonly norms: number;
  readonly partials: number;
  /** What products with matrices are made of. */
  readonly products: Products;
  /** WGSL: rows of a tile of plain products. A driver has more to compile for more. */
  readonly plainRows: number;
}
/** Metadata arrays that say where each segment of a unit begins, and how many rows it has, in a domain. */
export const SEGMENT_ROWS: Readonly<Partial<Record<Domain, readonly [string, string]>>> = {
  W: ["seg_row", "seg_rows"],
  R: ["seg_head", "seg_heads"],
};
export const ROWS_HEADER: Readonly<Record<Domain, string>> = { T: "n_rows", W: "n_rows", R: "n_head" };
/** Header words that say how many rows at a domain's end kernels for a few take. */
export const REST_HEADER: Readonly<Record<Domain, string>> = {
  T: "rest_rows",
  W: "rest_rows",
  R: "rest_head",
};

/**
 * Versions of one launch for few rows and for many, what folds the parts that those for few leave, and a
 * plain one for CPUs, where they differ; `any` otherwise, and where those for few are beside what all have.
 */
export type Variant = "any" | "plain" | "few" | "many" | "merge";

/**
 * A kernel, which runs bodies of kind `B`: all that planning and both targets must know of it. One file each
 * in kernels/, and a line of their index.
 */
export interface Kernel<B> {
  /** WGSL: workgroups in x and y that cover the largest body; z picks the body. */
  readonly grid: (bodies: readonly B[], env: KernelEnv, variant: Variant) => readonly [GridDim, GridDim];
  /** WGSL: versions of the launch, where there are several. */
  readonly variants?: (body: B, env: KernelEnv) => readonly Variant[];
  /** WGSL: of the plain variant, has each body a launch of its own? */
  readonly splits?: true;
  /** WGSL: lanes of a workgroup; without it, 64. */
  readonly lanes?: (bodies: readonly B[], variant: Variant, env: KernelEnv) => number;
  /** WGSL: how many functions `name_0` … a body has, which run side by side; without it, one `name`. */
  readonly parts?: (body: B) => number;
  /** WGSL: declarations of what a workgroup of so many lanes shares. */
  readonly shared?: (
    variant: Variant,
    lanes: number,
    bodies: readonly B[],
    env: KernelEnv,
  ) => readonly string[];
  /**
   * WGSL: the dimension of its workgroups that goes over the rows of a matrix that is a group of its own, or
   * null where all go over all of its shard. Without it, none of its bodies can be over such a matrix.
   */
  readonly over?: "x" | "y" | null;
  /**
   * WGSL: launches with one sum, in functions `name` and `name_…`, are one module, whatever the epilogue
   * `name_e`. Where the epilogue is all there is, a module of several runs half as fast on a CPU.
   */
  readonly joins?: true;
  /** WGSL: does a body write base weights? They are bound as words then, not as packed panels. */
  readonly writesWeights?: (body: B) => boolean;
  readonly wgsl: (name: string, body: B, env: KernelEnv, variant: Variant, lanes: number) => string;
  /** Wasm: bytes of a thread's scratch. */
  readonly scratch?: (body: B, env: KernelEnv) => number;
  /** Wasm: functions that its text calls, beside those that all kernels share. */
  readonly library?: () => string;
  readonly assembly: (name: string, body: B, env: KernelEnv) => string;
}

/** A body without a graph: it runs over a region's parameters, or over what a program left. */
export interface BareBody<S extends string> {
  readonly name: string;
  readonly skeleton: S;
  /** Mask bits without any of which it has nothing to do; none: always. */
  readonly bits: readonly number[];
}
