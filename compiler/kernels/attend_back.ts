/**
 * What the gradients of attention have in common: of one attention they run side by side, each of what it
 * owns: rows, and keys. A GPU has workgroups of both then, and one alone would fill it badly. Of workgroup
 * memory they have one share. CPUs behind WebGPU have a launch for each.
 */
import { headsOf, kvOf } from "./attend.ts";
import type { Body, GraphKernel } from "./body.ts";
import { fixed, plainRows, tileRows } from "./grid.ts";
import * as wgsl from "./text/wgsl.ts";
import { dkvCut, dkvShared } from "./text/wgsl_attend_dkv.ts";
import { dqCut, dqLanes, dqShared } from "./text/wgsl_attend_dq.ts";

/** Operands: q, the cache, and of the forward its output and log-sum-exp; then the output's gradient. */
export const operands = { Q: 0, O: 2, LSE: 3, DO: 4 } as const;

type Which = "attend_dq" | "attend_dkv";
const find = (bodies: readonly Body[], which: Which): Body | undefined => {
  const found = bodies.filter((b) => b.skeleton === which);
  if (found.length > 1) throw new Error("attention runs beside no other");
  return found[0];
};
/** Workgroups of tiles: those of keys say what a workgroup has room for. */
const lanesOf = (bodies: readonly Body[]): number => {
  const dkv = find(bodies, "attend_dkv");
  return dkv ? dkvCut(dkv).lanes : dqLanes(bodies[0]!);
};

export const attendBack = {
  epilogue: null,
  together: "attend_back",
  variants: () => ["plain", "many"],
  splits: true,
  lanes: (bodies, variant) => (variant === "many" ? lanesOf(bodies) : wgsl.WG),
  grid: (bodies, _env, variant) => {
    const [dq, dkv] = [find(bodies, "attend_dq"), find(bodies, "attend_dkv")];
    if (variant === "plain") {
      const { heads } = kvOf(bodies[0]!);
      return dq
        ? [plainRows(bodies, wgsl.WG, headsOf(dq) / heads), fixed(heads)]
        : [{ count: "plain_keys", mul: 1, div: wgsl.WG }, fixed(heads)];
    }
    const cut = dq && dqCut(dq, lanesOf(bodies));
    const y = [cut ? headsOf(dq) / cut.together : 0, dkv ? kvOf(dkv).heads * dkvCut(dkv).parts : 0];
    const x = !dkv
      ? tileRows(bodies, cut!.rows)
      : ({ count: cut ? "tile_spans" : "tile_keys", mul: 1, div: cut?.rows ?? 1 } as const);
    return [x, fixed(Math.max(...y))];
  },
  shared: (variant, lanes, bodies) => {
    if (variant === "plain") return [];
    const shares = bodies.map((b) => (b.skeleton === "attend_dq" ? dqShared : dkvShared)(b, lanes));
    return (["q", "p", "s", "m", "d"] as const).flatMap((name) => {
      const most = Math.max(...shares.map((share) => share[name]));
      const type = name === "m" || name === "d" ? "f32" : "vec4<f32>";
      return most ? [`var<workgroup> shared_${name}: array<${type}, ${most}>;`] : [];
    });
  },
} as const satisfies Partial<GraphKernel>;
