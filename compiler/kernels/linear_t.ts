/** dx = dy·W, summed over all pairs of dy and W. */
import { pairsOf, type Type, type Value } from "../../ops/index.ts";
import { blockRows, ROW_TILE } from "../../runtime/bundle.ts";
import type { Address, KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { most, plainRows, tileRows } from "./grid.ts";
import { inTurn } from "./text/alike.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { type Lines, lines } from "./text/lines.ts";
import {
  GEMM_LANES,
  gemm,
  gemmColumns,
  gemmShared,
  summed,
  summedShared,
  tileGoesOn,
} from "./text/wgsl_gemm.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { across, goesOn, PLAIN_LANES, plain } from "./text/wgsl_plain.ts";
import { indices, sumOfShards, wholeOf } from "./text/wgsl_products.ts";

const four = indices(4);
const matrixOf = (w: Operand, env: KernelEnv) => {
  const { format, n, k } = w.value.type as Type & { kind: "weight" };
  const { offset, own = null } = env.address(w.value);
  const panels = panelsOf(format, offset, n, k, { rows: blockRows({ own, n }) });
  return { terms: { all: n, sharded: own !== null }, panels };
};
/**
 * Sums over the rows of W: a panel's 16 are turned on their way into workgroup memory. Two lanes read the
 * same four rows of four columns, and each stores two of the rows.
 */
function tile(b: Body, x: Operand, w: Operand, env: KernelEnv): Lines {
  const { terms, panels } = matrixOf(w, env);
  const load = panels.some(4, "k >> 4u", "n0 + ((lane >> 2u) & 15) * 4", "(lane & 3)");
  const store = lines`
    let half = (lane >> 6u) & 1;
    ${four.map((i) => `let h${i} = select(v${i}.xy, v${i}.zw, half == 1);`)}
    let o = ((lane & 3) * 4 + half * 2) * 16 + ((lane >> 2u) & 15);
    tile_b[o] = vec4<f32>(${four.map((i) => `h${i}.x`).join(", ")});
    tile_b[o + 16] = vec4<f32>(${four.map((i) => `h${i}.y`).join(", ")});`;
  const sums = summed({ x, terms, load, store }, env);
  return terms.sharded ? [...tileGoesOn(b, env), ...sums] : sums;
}
/** A pair like one, of other sizes and elsewhere: its text has all numbers that depend on these. */
function modelOf([x, w]: readonly [Operand, Operand], env: KernelEnv): [Operand, Operand, KernelEnv] {
  const t = w.value.type as Type & { kind: "weight" };
  const [n, k] = [t.n + 128 * 1009, t.k + 128 * 2003];
  const value = { ...w.value, type: { ...t, n, k } };
  const address = (v: Value): Address => {
    const a = env.address(v);
    return v === value ? { ...a, offset: 64 * 30011 } : { ...a, offset: 64 * 40009, stride: n };
  };
  return [x, { ...w, value }, { ...env, address }];
}
export const linear_t: GraphKernel = {
  epilogue: "elements",
  joins: true,
  variants: () => ["plain", "many"],
  lanes: (_bodies, variant) => (variant === "many" ? GEMM_LANES : PLAIN_LANES),
  grid: (bodies, env, variant) =>
    variant === "many"
      ? [most(bodies, (b) => b.cols / gemmColumns(b), 1), tileRows(bodies, ROW_TILE)]
      : [most(bodies, (b) => b.cols / 4, PLAIN_LANES), plainRows(bodies, env.plainRows)],
  over: null,
  shared: (variant) => (variant === "many" ? [...summedShared, ...gemmShared] : []),
  wgsl: (name, b, env, variant) => {
    const pairs = pairsOf(b.operands);
    const { terms } = matrixOf(pairs[0]![1], env);
    const span = terms.sharded ? sumOfShards(b, env, terms.all) : wholeOf(b);
    const sums = (of: (x: Operand, w: Operand, env: KernelEnv) => Lines): Lines =>
      inTurn(
        pairs.map(([x, w]) => of(x, w, env)),
        "s",
        terms.sharded ? undefined : { model: of(...modelOf(pairs[0]!, env)), upTo: 3 },
      );
    return variant === "many"
      ? gemm(
          name,
          b,
          env,
          sums((x, w, env) => tile(b, x, w, env)),
          span,
        )
      : plain(
          name,
          b,
          env,
          1,
          [
            ({ at, rows }) =>
              sums((x, w, env) => {
                const { terms, panels } = matrixOf(w, env);
                const text = across(at(x, env), panels, terms);
                return terms.sharded ? [...goesOn(b, env, rows), ...text] : text;
              }),
          ],
          span,
        );
  },
  scratch: productScratch("turned"),
  assembly: (name, b, env) => product("turned", name, b, env),
};
