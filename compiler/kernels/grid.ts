/** Workgroups of a launch on WebGPU, as multiples of counts that each step knows. */
import type { GridDim } from "../../runtime/bundle.ts";
import type { Body } from "./body.ts";
import { WG } from "./text/wgsl.ts";

export const one: GridDim = { count: "one", mul: 1, div: 1 };
export const fixed = (n: number): GridDim => ({ count: "one", mul: n, div: 1 });
/** `mul` for every `div` rows of the domain that the bodies share. */
export const rows = (bodies: readonly Body[], div = 1, mul = 1): GridDim => ({
  count: bodies[0]!.domain === "R" ? "n_head" : "n_rows",
  mul,
  div,
});
/**
 * Of the rows of a product, those that whole tiles take, and a few that these leave; or all, where kernels
 * without workgroup memory do. `mul` for every `div`.
 */
const part =
  (of: "plain" | "tile" | "rest" | "wide") =>
  (bodies: readonly Body[], div: number, mul = 1): GridDim => ({
    count: `${of}_${bodies[0]!.domain === "R" ? "head" : "rows"}`,
    mul,
    div,
  });
export const [plainRows, tileRows, restRows] = [part("plain"), part("tile"), part("rest")];
/** A row that the kernels for a few have alone, and all others. */
export const loneRow: GridDim = { count: "lone_row", mul: 1, div: 1 };
export const moreRows: GridDim = { count: "more_rows", mul: 1, div: 1 };
/** All rows, where kernels have workgroup memory; one for every `div`. */
export const wideRows = (bodies: readonly Body[], div = 1): GridDim => part("wide")(bodies, div);
/** A lane for each of the most that a body has. */
export const most = <B>(bodies: readonly B[], lanes: (b: B) => number, of = WG): GridDim =>
  fixed(Math.max(...bodies.map((b) => Math.ceil(lanes(b) / of))));
