/** Register tiles of products in WGSL: a lane owns four columns, from `col` on, of a few rows. */
import { wgslPrinter, wgslStores } from "../../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, type panelReader, rowAt, WG } from "./wgsl.ts";

/**
 * Rows of a product's register tile; a tail of at least so many takes a tile too, its missing rows being the
 * last one again.
 */
export const TILE = 8;
export const TILE_FROM = 3;

/** Where a row of an operand is. */
export interface Place {
  readonly cls: string;
  readonly at: string;
}
type Panel = ReturnType<typeof panelReader>;
/** a0 … += x·Wᵀ of a matrix [n, k] in panels, `at` the rows of x. */
export const ascending = (at: readonly Place[], panel: Panel, { k }: { readonly k: number }): Lines => lines`
  ${at.map((row, i) => `let x${i} = ${row.at};`)}
  for (var k = 0; k < ${k}; k++) {
    let w = ${panel("col / 16", "k", "col % 16")};
    ${at.map((row, i) => `a${i} = fma(vec4<f32>(${row.cls}[x${i} + k]), w, a${i});`)}
  }`;
const four = [0, 1, 2, 3];
/** a0 … += dy·W, `at` the rows of dy. Twelve loads for 32 products at eight rows and one column of dy. */
export function across(at: readonly Place[], panel: Panel, { n }: { readonly n: number }): Lines {
  /** The chains of `terms` columns of dy from j. */
  const chains = (terms: number): Lines => lines`
    ${four.map((c) => `let w${c} = ${panel("j / 16", `col + ${c}`, "j % 16")};`)}
    ${four
      .slice(0, terms)
      .flatMap((j) => [
        `let n${j} = vec4<f32>(${four.map((c) => `w${c}.${"xyzw"[j]}`).join(", ")});`,
        ...at.map((row, i) => `a${i} = fma(vec4<f32>(${row.cls}[y${i} + j + ${j}]), n${j}, a${i});`),
      ])}`;
  const [full, rest] = [n - (n % 4), n % 4];
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

/** `name_e`: one element of a product's epilogue. */
export function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = wgslPrinter(env);
  const stores = wgslStores(p, b.stores, env, b.cols, "col == 0");
  return fn(`${name}_e`, [...p.row, ...p.col, ...stores], "row: i32, col: i32, acc: f32");
}

/** Places of the rows of an operand that a tile of `n` rows reads. */
export const tileRows = (o: Operand, env: KernelEnv, n: number): Place[] =>
  Array.from({ length: n }, (_, i) => rowAt(o, env, n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));

/**
 * A product of `b.cols` columns, a lane owning four of them; `sums` adds into a0 … of a tile of n rows what
 * it reads. Each output is one ascending chain of fma over what is summed, in a tile and in a row alone.
 */
export function tiled(name: string, b: Body, env: KernelEnv, sums: (n: number) => Lines): string {
  const rows = (n: number): string[] => {
    const tile = Array.from({ length: n }, (_, i) => `a${i}`);
    const [row, last] = n === 1 ? ["r", "1"] : ["r0 + i", `min(${n}, n - r0)`];
    const columns = b.cols % 4 ? `min(4, ${b.cols} - col)` : "4";
    // One copy of the epilogue, whatever the tile: it is the larger part of the text.
    return lines`
      ${tile.map((a) => `var ${a} = vec4<f32>();`)}
      ${sums(n)}
      var out = array<vec4<f32>, ${n}>(${tile.join(", ")});
      for (var i = 0; i < ${last}; i++) {
        for (var c = 0; c < ${columns}; c++) { ${name}_e(${row}, col + c, out[i][c]); }
      }`;
  };
  const text = lines`
    let n = ${count(b.domain)};
    let r0 = wg.y * ${TILE};
    let col = (wg.x * ${WG} + lane) * 4;
    if (col >= ${b.cols}) { return; }
    if (n - r0 >= ${TILE_FROM}) {
      ${rows(TILE)}
    } else {
      for (var r = r0; r < n; r++) {
        ${rows(1)}
      }
    }`;
  return `${epilogue(name, b, env)}\n${fn(name, text)}`;
}
