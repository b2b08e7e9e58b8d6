/** Workgroups of a launch on WebGPU, as multiples of counts that each step knows. */
import type { GridDim } from "../../runtime/bundle.ts";
import type { Body } from "./body.ts";
import { WG } from "./text/wgsl.ts";

export const one: GridDim = { count: "one", mul: 1, div: 1 };
export const fixed = (n: number): GridDim => ({ count: "one", mul: n, div: 1 });
/** One for every `div` rows of the domain that the bodies share. */
export const rows = (bodies: readonly Body[], div = 1): GridDim => ({
  count: bodies[0]!.domain === "R" ? "n_head" : "n_rows",
  mul: 1,
  div,
});
/** A lane for each of the most that a body has. */
export const most = <B>(bodies: readonly B[], lanes: (b: B) => number): GridDim =>
  fixed(Math.max(...bodies.map((b) => Math.ceil(lanes(b) / WG))));
