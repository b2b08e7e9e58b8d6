/** Register tiles of products in WGSL: a lane owns four columns of a few rows. */
import { wgslPrinter, wgslStores } from "../../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, rowAt, WG } from "./wgsl.ts";

/**
 * Rows of a product's register tile; a tail of at least so many takes a tile too, its missing rows being the
 * last one again.
 */
export const TILE = 8;
const TILE_FROM = 3;

/** `name_e`: one element of a product's epilogue. */
export function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = wgslPrinter(env);
  const stores = wgslStores(p, b.stores, env, b.cols, "col == 0");
  return fn(`${name}_e`, [...p.row, ...p.col, ...stores], "row: i32, col: i32, acc: f32");
}

/** Places of the rows of an operand that a tile of `n` rows reads. */
export const tileRows = (o: Operand, env: KernelEnv, n: number) =>
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
