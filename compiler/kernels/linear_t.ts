/** dx = dy·W, summed over all pairs of dy and W. */
import { pairsOf, type Type } from "../../ops/index.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { linear } from "./linear.ts";
import { inTurn } from "./text/alike.ts";
import { product, productScratch } from "./text/assemblyscript_products.ts";
import { type Lines, lines } from "./text/lines.ts";
import { panelReader } from "./text/wgsl.ts";
import { tiled, tileRows } from "./text/wgsl_products.ts";

const four = [0, 1, 2, 3];

/** Adds dy·W into the tile's rows a0 …. Twelve loads for 32 products at eight rows and one column of dy. */
function sums(dy: Operand, w: Operand, b: Body, env: KernelEnv, rows: number): Lines {
  const t = w.value.type as Type & { kind: "weight" };
  const panel = panelReader(t.format, env.address(w.value).offset, t.n, b.cols);
  const at = tileRows(dy, env, rows);
  /** The chains of `terms` columns of dy from j. */
  const chains = (terms: number): Lines => lines`
    ${four.map((c) => `let w${c} = ${panel("j / 16", `col + ${c}`, "j % 16")};`)}
    ${four
      .slice(0, terms)
      .flatMap((j) => [
        `let n${j} = vec4<f32>(${four.map((c) => `w${c}.${"xyzw"[j]}`).join(", ")});`,
        ...at.map((row, i) => `a${i} = fma(vec4<f32>(${row.cls}[y${i} + j + ${j}]), n${j}, a${i});`),
      ])}`;
  const [full, rest] = [t.n - (t.n % 4), t.n % 4];
  return lines`
    ${at.map((row, i) => `let y${i} = ${row.at};`)}
    for (var j = 0; j < ${full}; j += 4) {
      ${chains(4)}
    }
    ${
      rest
        ? lines`
      { let j = ${full};
        ${chains(rest)}
      }`
        : []
    }`;
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
