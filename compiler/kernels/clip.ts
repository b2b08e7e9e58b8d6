/** The norm of a job's gradient over all groups, and its scale: -1 where the gradient is not finite. */
import type { BareBody, Kernel } from "../kernel.ts";
import { one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export type ClipBody = BareBody<"clip">;

export const clip: Kernel<ClipBody> = {
  grid: () => [one, one],
  wgsl: (name, _b, env) =>
    wgsl.fn(
      name,
      lines`
        if (lane != 0) { return; }
        let at = ${wgsl.norms(env)};
        var total = 0.0f;
        for (var i = 0; i < ${env.groups}; i++) { total = total + arena[at + i]; }
        let norm = sqrt(total);
        let limit = ${wgsl.headerF("max_norm")};
        var scale = 1.0f;
        if (limit > 0.0f && norm > limit) { scale = limit / (norm + 1.0e-6f); }
        if ((bitcast<u32>(norm) & 0x7f800000u) == 0x7f800000u) { scale = -1.0f; }
        arena[at + ${env.groups}] = scale;
        arena[at + ${env.groups + 1}] = norm;`,
    ),
  assembly: (name, _b, env) =>
    assembly.fn(
      name,
      lines`
        if (part) return;
        const at: usize = ${assembly.norms(env)};
        let total: f32 = 0;
        for (let i: i32 = 0; i < ${env.groups}; i++) total += load<f32>(at + ((<usize>i) << 2));
        const norm: f32 = sqrtf(total);
        const limit: f32 = ${assembly.headerF("max_norm")};
        const finite: bool = (reinterpret<u32>(norm) & 0x7f800000) != 0x7f800000;
        const scale: f32 =
          !finite ? <f32>-1 : limit > 0 && norm > limit ? limit / (norm + <f32>1e-6) : <f32>1;
        store<f32>(at, scale, ${env.groups * 4});
        store<f32>(at, norm, ${(env.groups + 1) * 4});`,
    ),
};
