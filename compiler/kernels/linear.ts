/** y = x·Wᵀ. */
import type { Type } from "../../ops/index.ts";
import type { GraphKernel } from "./body.ts";
import { most, rows } from "./grid.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { panelReader } from "./text/wgsl.ts";
import { ascending, TILE, tiled, tileRows } from "./text/wgsl_products.ts";

export const linear: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => [most(bodies, (b) => Math.ceil(b.cols / 4)), rows(bodies, TILE)],
  wgsl: (name, b, env) => {
    const [x, w] = [b.operands[0]!, b.operands[1]!.value];
    const t = w.type as Type & { kind: "weight" };
    const panel = panelReader(t.format, env.address(w).offset, t.n, t.k);
    return tiled(name, b, env, (n) => ascending(tileRows(x, env, n), panel, t));
  },
  scratch: productScratch,
  assembly: (name, b, env) => product("product", name, b, env),
};
