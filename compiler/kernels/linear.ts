/** y = x·Wᵀ. */
import type { Type } from "../../ops/index.ts";
import type { GraphKernel } from "./body.ts";
import { most, rows } from "./grid.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { lines } from "./text/lines.ts";
import { panelReader } from "./text/wgsl.ts";
import { TILE, tiled, tileRows } from "./text/wgsl_products.ts";

export const linear: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => [most(bodies, (b) => Math.ceil(b.cols / 4)), rows(bodies, TILE)],
  wgsl: (name, b, env) => {
    const [x, w] = [b.operands[0]!, b.operands[1]!.value];
    const t = w.type as Type & { kind: "weight" };
    const panel = panelReader(t.format, env.address(w).offset, t.n, t.k);
    return tiled(name, b, env, (n) => {
      const at = tileRows(x, env, n);
      return lines`
        ${at.map((row, i) => `let x${i} = ${row.at};`)}
        for (var k = 0; k < ${t.k}; k++) {
          let w = ${panel("col / 16", "k", "col % 16")};
          ${at.map((row, i) => `a${i} = fma(vec4<f32>(${row.cls}[x${i} + k]), w, a${i});`)}
        }`;
    });
  },
  scratch: productScratch,
  assembly: (name, b, env) => product("product", name, b, env),
};
