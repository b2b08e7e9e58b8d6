/** dx = dy·W, summed over all pairs of dy and W. */
import { pairsOf, type Type } from "../../ops/index.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { linear } from "./linear.ts";
import { inTurn } from "./text/alike.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import type { Lines } from "./text/lines.ts";
import { panelReader } from "./text/wgsl.ts";
import { across, tiled, tileRows } from "./text/wgsl_products.ts";

/** Adds dy·W into the tile's rows a0 …. */
function sums(dy: Operand, w: Operand, b: Body, env: KernelEnv, rows: number): Lines {
  const t = w.value.type as Type & { kind: "weight" };
  const panel = panelReader(t.format, env.address(w.value).offset, t.n, b.cols);
  return across(tileRows(dy, env, rows), panel, t);
}

export const linear_t: GraphKernel = {
  epilogue: "elements",
  grid: linear.grid,
  wgsl: (name, b, env) =>
    tiled(name, b, env, (rows) =>
      inTurn(
        pairsOf(b.operands).map(([dy, w]) => sums(dy, w, b, env, rows)),
        "s",
      ),
    ),
  scratch: productScratch,
  assembly: (name, b, env) => product("turned", name, b, env),
};
