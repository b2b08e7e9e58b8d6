/** What a kernel of a graph is asked to do: the operands, the sums and the stores of its part of a launch. */
import type { Domain, Expr, Node, Value } from "../../ops/index.ts";
import type { Kernel } from "../kernel.ts";
import type { Skeleton } from "./index.ts";

/** What an element is; `shift`: how many columns it lies from the one that the body is at. */
export interface Element {
  readonly expr: Expr;
  readonly cols: number;
  readonly shift?: number;
}
export type Store = Element &
  /** A step value [rows, cols]. */
  (
    | { readonly to: "rows"; readonly value: Value }
    /** field[index[row]], rows with a negative index are skipped. */
    | { readonly to: "field"; readonly field: Value; readonly index: string }
    /** Keys (part 0) or values (part 1) of the paged cache at each row's position. */
    | { readonly to: "kv"; readonly kv: Value; readonly part: 0 | 1 }
  );

/** A row operand of a heavy node: a step value, or rows of a stored field picked by a metadata array. */
export interface Operand {
  readonly value: Value;
  readonly index: string | null;
  /** Read instead of `value` in steps where no row drops anything: then the masked copy is never made. */
  readonly undropped: Value | null;
  /** What its rows are of other rows: of a row that is alone its product makes it anew. */
  readonly made?: Made;
}
/** An element of rows, and the reductions over a row that it needs. */
export interface Made {
  readonly stats: readonly Stat[];
  readonly expr: Expr;
}
export interface Stat {
  readonly id: number;
  readonly reduce: "sum" | "max";
  readonly expr: Expr;
}
export interface Body {
  readonly name: string;
  readonly skeleton: Skeleton;
  readonly domain: Domain;
  readonly cols: number;
  readonly node: Node | null;
  /** A second product of the same rows, by a matrix like the first's; the epilogue has the sums of both. */
  readonly beside: Node | null;
  /**
   * Its sums are those of two columns of one matrix, the second so many after the first, which is of the
   * lower half of a part of twice as many. Null: a sum is of a column.
   */
  readonly half: number | null;
  /** Of the node, then of the one beside it. */
  readonly operands: readonly Operand[];
  readonly stats: readonly Stat[];
  readonly stores: readonly Store[];
  /** Mask bits (adapter branches, or a flag) without any of which it has nothing to do; none: always. */
  readonly bits: readonly number[];
  /**
   * Of whole rows: a row that is alone is made anew where it is read, so it has that only in steps with one
   * of these mask bits, for other readers. Null: it has all rows.
   */
  readonly rest: readonly number[] | null;
  /** Values read, in arena terms (for liveness) and inputs (for hazards). */
  readonly reads: readonly Value[];
}
/** How many sums of a body an epilogue has. */
export const sumsOf = (b: Body): 1 | 2 => (b.beside || b.half ? 2 : 1);
/** Columns at which a body has sums. */
export const widthOf = (b: Body): number => (b.half ? b.cols / 2 : b.cols);
/** Bodies of one kernel that run side by side. */
export interface Launch {
  readonly name: string;
  readonly bodies: readonly Body[];
}

/** A kernel that a graph's nodes become. */
export interface GraphKernel extends Kernel<Body> {
  /**
   * What fusion may put on top of its result: elements, each where it is; whole rows, with the reductions
   * over them; or nothing, because it stores its result itself.
   */
  readonly epilogue: "elements" | "rows" | null;
  /** May a body have two sums: of two nodes, of the same rows and of matrices alike, or of two columns? */
  readonly pairs?: true;
  /**
   * May it make a row of its first operand anew, where that is alone? "undropped": also of what may be
   * dropped, in steps where nothing is.
   */
  readonly makes?: true | "undropped";
  /** Kernels of one such name share launches, as bodies of one kernel do. */
  readonly together?: string;
  /** The named state that it adds to. */
  readonly state?: string;
}
