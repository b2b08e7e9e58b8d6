/** out[o] = 1 / ‖W[o] + s·Σ_r b[r][o]·a[r]‖₂ in the slot of the block: what DoRA scales rows by. */
import { type Format, formatOf, formats, QUAD, QUAD_WORDS } from "../../runtime/bundle.ts";
import type { BareBody, Kernel, ParamAddress } from "../kernel.ts";
import { most, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { panelsOf } from "./text/wgsl_panels.ts";

/** Norms of one branch: of the matrix `weight`, with the branch's delta b·a. */
export interface RowNorms {
  readonly branch: number;
  readonly weight: ParamAddress;
  readonly a: ParamAddress;
  readonly b: ParamAddress;
  readonly out: ParamAddress;
}
export interface RowNormsBody extends BareBody<"row_norms"> {
  readonly norms: readonly RowNorms[];
}

/**
 * DoRA's norms, four outputs at a time: out[o] = 1 / ‖W[o] + scale · Σ_r b[r][o]·a[r]‖₂, k ascending in every
 * lane; `pack` is scratch.
 */
function normsOf(name: Format): Lines {
  const direct = formatOf(name).assembly.unpack === null;
  return lines`
    function rowNorms_${name}(
      w: usize, N: i32, K: i32, a: usize, b: usize, quads: usize, rank: i32, out: usize, pack: usize,
      part: i32, parts: i32
    ): void {
      const groups: i32 = (N + 3) >> 2;
      for (let o: i32 = share(groups, part, parts) << 2; o < share(groups, part + 1, parts) << 2; o += 4) {
        let sum: v128 = f32x4.splat(0);
        for (let k: i32 = 0; k < K; k += ${assembly.K_CHUNK}) {
          const terms: i32 = min(${assembly.K_CHUNK}, K - k);
          const panel: usize = ${direct ? "w + <usize>((o >> 3) * K + k) * 32" : "pack"} + <usize>(o & 7) * 4;
          ${direct ? [] : [`unpack_${name}(w, N, K, o >> 3, k, terms, pack);`]}
          for (let i: i32 = 0; i < terms; i++)
            sum = rowNormStep(v128.load(panel + <usize>i * 32), k + i, o, N, K, a, b, quads, rank, sum);
        }
        rowNormsOut(sum, o, N, out, pack);
      }
    }`;
}
const steps = `
// @ts-ignore: decorator
@inline function rowNormStep(
  w: v128, k: i32, o: i32, n: i32, K: i32, a: usize, b: usize, quads: usize, rank: i32, sum: v128
): v128 {
  let d: v128 = f32x4.splat(0);
  let ap: usize = 0;
  let bp: usize = 0;
  for (let r: i32 = 0; r < rank; r++) {
    if (!(r & 3)) {
      const q: usize = (<usize>load<i32>(quads + ((<usize>r) << 1))) << 2;
      ap = a + q + ((<usize>k) << 2);
      bp = b + q + ((<usize>o) << 2);
    }
    d = madd(v128.load_splat<f32>(ap), v128.load(bp), d);
    ap += (<usize>K) << 2;
    bp += (<usize>n) << 2;
  }
  // All quads of an adapter that is not a sum have one scale.
  const x: v128 = f32x4.add(w, f32x4.mul(v128.load_splat<f32>(quads, 4), d));
  return f32x4.add(sum, f32x4.mul(x, x));
}
function rowNormsOut(sum: v128, o: i32, n: i32, out: usize, acc: usize): void {
  v128.store(acc, f32x4.div(f32x4.splat(1), f32x4.sqrt(sum)));
  for (let i: i32 = 0; i < min(4, n - o); i++)
    store<f32>(out + ((<usize>(o + i)) << 2), load<f32>(acc + ((<usize>i) << 2)));
}
`;

export const row_norms: Kernel<RowNormsBody> = {
  grid: ([b]) => [most(b!.norms, (r) => r.weight.n / 4), one],
  parts: (b) => b.norms.length,
  wgsl: (name, b, env) =>
    b.norms
      .map(({ branch, weight, a, b: up, out }, i) => {
        const quads = wgsl.jobQuads(branch, env);
        const panels = panelsOf(weight.format, weight.offset, weight.n, weight.k);
        const place = ["col >> 4u", "k", "((col >> 2u) & 3)"] as const;
        /** Adds the square of W + scale·Σ b·a at k + j of a word. */
        const term = (j: number): string[] => lines`
          {
            var d = vec4<f32>();
            for (var r = 0; r < rank; r++) {
              let quad = tables[${quads} + (r / ${QUAD}) * ${QUAD_WORDS}];
              let p = quad + ${up.offset} + (r % ${QUAD}) * ${weight.n} + col;
              d = fma(
                vec4<f32>(adapters[quad + ${a.offset} + (r % ${QUAD}) * ${weight.k} + k + ${j}]),
                vec4<f32>(adapters[p], adapters[p + 1], adapters[p + 2], adapters[p + 3]),
                d);
            }
            let x = fma(vec4<f32>(scale), d, ${panels.value("w", j)});
            sum = fma(x, x, sum);
          }`;
        const full = weight.k - (weight.k % panels.run);
        const word = (terms: number): string[] => lines`
          let w = weights[${panels.at(...place)}];
          ${panels.scales(...place)}
          ${Array.from({ length: terms }, (_, j) => term(j)).flat()}`;
        return wgsl.fn(
          `${name}_${i}`,
          lines`
            ${wgsl.guard([branch])}
            let col = (wg.x * ${wgsl.WG} + lane) * 4;
            if (col >= ${weight.n}) { return; }
            // All quads of an adapter that is not a sum have one scale.
            let scale = bitcast<f32>(tables[${quads} + 1]);
            let home = ${wgsl.jobVector(out, env)};
            let rank = ${wgsl.jobRank(branch, env)};
            var sum = vec4<f32>();
            for (var k = 0; k < ${full}; k += ${panels.run}) {
              ${word(panels.run)}
            }
            ${
              full < weight.k
                ? lines`
            {
              let k = ${full};
              ${word(weight.k - full)}
            }`
                : []
            }
            for (var c = 0; c < min(4, ${weight.n} - col); c++) {
              adapters[home + col + c] = 1.0f / sqrt(sum[c]);
            }`,
        );
      })
      .join("\n"),
  scratch: () => assembly.K_CHUNK * assembly.P * 4,
  library: () => [steps, ...formats.flatMap(normsOf)].join("\n"),
  assembly: (name, b, env) =>
    assembly.fn(
      name,
      b.norms.flatMap(
        ({ branch, weight, a, b: up, out }) => lines`
          if ${assembly.maskBit(branch)} rowNorms_${weight.format}(
            weights + ${weight.offset * 4}, ${weight.n}, ${weight.k},
            adapters + ${a.offset * 4},
            adapters + ${up.offset * 4},
            ${assembly.jobQuads(branch, env)},
            ${assembly.jobRank(branch, env)},
            ${assembly.jobVector(out, env)},
            scratch, part, parts);`,
      ),
    ),
};
