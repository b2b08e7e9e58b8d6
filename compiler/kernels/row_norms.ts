/** out[o] = 1 / ‖W[o] + s·Σ_r b[r][o]·a[r]‖₂ in the slot of the block: what DoRA scales rows by. */
import type { Format } from "../../runtime/bundle.ts";
import type { Kernel, ParamAddress, UpdateBody } from "../kernel.ts";
import { most, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

/** Norms of one branch: of the matrix `weight`, with the branch's delta b·a. */
export interface RowNorms {
  readonly branch: number;
  readonly weight: ParamAddress;
  readonly format: Format;
  readonly a: ParamAddress;
  readonly b: ParamAddress;
  readonly out: ParamAddress;
}
export interface RowNormsBody extends UpdateBody<"row_norms"> {
  readonly norms: readonly RowNorms[];
}

export const row_norms: Kernel<RowNormsBody> = {
  grid: ([b]) => [most(b!.norms, (r) => r.weight.n / 4), one],
  parts: (b) => b.norms.length,
  wgsl: (name, b, env) =>
    b.norms
      .map(({ branch, weight, format, a, b: up, out }, i) => {
        const slot = (p: ParamAddress): string => wgsl.inSlot(p.offset, env);
        const panel = wgsl.panelReader(format, weight.offset, weight.n, weight.k);
        return wgsl.fn(
          `${name}_${i}`,
          lines`
            ${wgsl.guard([branch])}
            let col = (wg.x * ${wgsl.WG} + lane) * 4;
            if (col >= ${weight.n}) { return; }
            let scale = bitcast<f32>(${wgsl.inTable(branch, 1, env)});
            let rank = ${wgsl.jobRank(branch, env)};
            var sum = vec4<f32>();
            for (var k = 0; k < ${weight.k}; k++) {
              var d = vec4<f32>();
              for (var r = 0; r < rank; r++) {
                let p = ${slot(up)} + r * ${weight.n} + col;
                d = fma(
                  vec4<f32>(adapters[${slot(a)} + r * ${weight.k} + k]),
                  vec4<f32>(adapters[p], adapters[p + 1], adapters[p + 2], adapters[p + 3]),
                  d);
              }
              let x = fma(vec4<f32>(scale), d, ${panel("col / 16", "k", "col % 16")});
              sum = fma(x, x, sum);
            }
            for (var c = 0; c < min(4, ${weight.n} - col); c++) {
              adapters[${slot(out)} + col + c] = 1.0f / sqrt(sum[c]);
            }`,
        );
      })
      .join("\n"),
  scratch: () => assembly.K_CHUNK * assembly.P * 4,
  assembly: (name, b, env) =>
    assembly.fn(
      name,
      b.norms.flatMap(({ branch, weight, format, a, b: up, out }) => {
        const slot = (p: ParamAddress): string => assembly.inSlot(p.offset, env);
        return lines`
          if ${assembly.maskBit(branch)} rowNorms_${format}(
            weights + ${weight.offset * 4}, ${weight.n}, ${weight.k},
            ${slot(a)},
            ${slot(up)},
            ${assembly.jobRank(branch, env)},
            load<f32>(${assembly.inTable(branch, 1, env)}),
            ${slot(out)},
            scratch, part, parts);`;
      }),
    ),
};
