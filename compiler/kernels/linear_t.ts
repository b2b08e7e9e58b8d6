/** dx = dy·W, summed over all pairs of dy and W. */
import { pairsOf, type Type } from "../../ops/index.ts";
import { ROW_TILE } from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import type { GraphKernel, Operand } from "./body.ts";
import { most, plainRows, tileRows } from "./grid.ts";
import { inTurn } from "./text/alike.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { type Lines, lines } from "./text/lines.ts";
import { WG } from "./text/wgsl.ts";
import { GEMM_LANES, gemm, gemmColumns, gemmShared, summed } from "./text/wgsl_gemm.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { across, PLAIN_ROWS, plain } from "./text/wgsl_plain.ts";
import { indices } from "./text/wgsl_products.ts";

const four = indices(4);
const matrixOf = (w: Operand, env: KernelEnv) => {
  const { format, n, k } = w.value.type as Type & { kind: "weight" };
  return { terms: n, panels: panelsOf(format, env.address(w.value).offset, n, k) };
};
/**
 * Sums over the rows of W: a panel's 16 are turned on their way into workgroup memory. Two lanes read the
 * same four rows of four columns, and each stores two of the rows.
 */
function tile(x: Operand, w: Operand, env: KernelEnv): Lines {
  const { terms, panels } = matrixOf(w, env);
  const load = panels.some(4, "k >> 4u", "n0 + ((lane >> 2u) & 15) * 4", "(lane & 3)");
  const store = lines`
    let half = (lane >> 6u) & 1;
    ${four.map((i) => `let h${i} = select(v${i}.xy, v${i}.zw, half == 1);`)}
    let o = ((lane & 3) * 4 + half * 2) * 16 + ((lane >> 2u) & 15);
    tile_b[o] = vec4<f32>(${four.map((i) => `h${i}.x`).join(", ")});
    tile_b[o + 16] = vec4<f32>(${four.map((i) => `h${i}.y`).join(", ")});`;
  return summed({ x, terms, load, store }, env);
}
export const linear_t: GraphKernel = {
  epilogue: "elements",
  variants: () => ["plain", "many"],
  lanes: (_bodies, variant) => (variant === "many" ? GEMM_LANES : WG),
  grid: (bodies, _env, variant) =>
    variant === "many"
      ? [most(bodies, (b) => b.cols / gemmColumns(b), 1), tileRows(bodies, ROW_TILE)]
      : [most(bodies, (b) => b.cols / 4), plainRows(bodies, PLAIN_ROWS)],
  shared: (variant) => (variant === "many" ? gemmShared : []),
  wgsl: (name, b, env, variant) => {
    const pairs = pairsOf(b.operands);
    const sums = (of: (x: Operand, w: Operand) => Lines): Lines =>
      inTurn(
        pairs.map(([x, w]) => of(x, w)),
        "s",
      );
    return variant === "many"
      ? gemm(
          name,
          b,
          env,
          sums((x, w) => tile(x, w, env)),
        )
      : plain(name, b, env, [
          (at) =>
            sums((x, w) => {
              const { terms, panels } = matrixOf(w, env);
              return across(at(x), panels, { n: terms });
            }),
        ]);
  },
  scratch: productScratch("turned"),
  assembly: (name, b, env) => product("turned", name, b, env),
};
