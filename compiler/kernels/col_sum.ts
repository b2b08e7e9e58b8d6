/** A gradient dv += Σ x over a unit's rows, each segment summed on its own. */
import type { GraphKernel } from "./body.ts";
import { most, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export const col_sum: GraphKernel = {
  epilogue: null,
  grid: (bodies) => [most(bodies, (b) => b.cols), one],
  wgsl: (name, b, env) => {
    const x = wgsl.rowAt(b.operands[0]!, env, "r");
    return wgsl.fn(
      name,
      lines`
        ${wgsl.guard(b.bits)}
        let col = wg.x * ${wgsl.WG} + lane;
        if (col >= ${b.cols}) { return; }
        let o = ${wgsl.gradient(b, env)} + col;
        var total = accum[o];
        ${wgsl.overSegments(b.domain, env, {
          before: ["var sum = 0.0f;"],
          row: [`sum = sum + ${x.space}[${x.at} + col];`],
          after: ["total = total + sum;"],
        })}
        accum[o] = total;`,
    );
  },
  assembly: (name, b, env) => {
    const x = assembly.rowPtr(b.operands[0]!, env, "r");
    return assembly.fn(
      name,
      lines`
        ${assembly.guard(b.bits)}
        const out: usize = ${assembly.gradient(b, env)};
        ${assembly.shareOf(b.cols)}
        ${assembly.overSegments(
          b.domain,
          env,
          lines`
            for (let c: i32 = lo; c < hi; c++) {
              let sum: f32 = 0;
              for (let r: i32 = r0; r < r0 + n; r++)
                sum += load<f32>(${x} + ((<usize>c) << 2));
              store<f32>(out + ((<usize>c) << 2), load<f32>(out + ((<usize>c) << 2)) + sum);
            }`,
        )}`,
    );
  },
};
