/**
 * Products without workgroup memory or barriers, which a CPU behind WebGPU pays dearly for: a lane owns four
 * columns of up to eight rows.
 */
import type { KernelEnv } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { count, fn, rowAt, WG } from "./wgsl.ts";
import type { Panels } from "./wgsl_panels.ts";
import { CHUNK, epilogue, indices } from "./wgsl_products.ts";

/** Rows of a tile; a tail of at least so many takes a tile too, its missing rows being the last one again. */
export const PLAIN_ROWS = 8;
export const PLAIN_FROM = 3;

/** Where a row of an operand is. */
export interface Place {
  readonly space: string;
  readonly at: string;
}
/** Places of the rows of an operand that a tile of `n` rows reads. */
const rowsOf = (o: Operand, env: KernelEnv, n: number): Place[] =>
  indices(n).map((i) => rowAt(o, env, n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));
/**
 * Adds products of so many terms to the sums t0 …, one for each row in `at`. `values` are statements that
 * declare, as `name` and a number, four columns at each of `count` terms from k on, at most `step`.
 */
function sumsOf(
  at: readonly Place[],
  terms: number,
  step: number,
  name: string,
  values: (count: number) => Lines,
): Lines {
  const rows = indices(at.length);
  const sums = (count: number): Lines => lines`
    ${values(count)}
    ${indices(count).flatMap((j) =>
      at.map(({ space }, i) => `a${i} = fma(vec4<f32>(${space}[x${i} + k + ${j}]), ${name}${j}, a${i});`),
    )}`;
  const chunk = (first: string, length: number): Lines => lines`
    ${rows.map((i) => `var a${i} = vec4<f32>();`)}
    for (var i = 0; i < ${Math.floor(length / step)}; i++) {
      let k = ${first} + i * ${step};
      ${sums(step)}
    }
    ${
      length % step
        ? lines`
    {
      let k = ${first} + ${length - (length % step)};
      ${sums(length % step)}
    }`
        : []
    }
    ${rows.map((i) => `t${i} = t${i} + a${i};`)}`;
  const [full, rest] = [Math.floor(terms / CHUNK), terms % CHUNK];
  return lines`
    ${at.map((row, i) => `let x${i} = ${row.at};`)}
    for (var c = 0; c < ${full}; c++) {
      ${chunk(`c * ${CHUNK}`, CHUNK)}
    }
    ${
      rest
        ? lines`
    {
      ${chunk(String(full * CHUNK), rest)}
    }`
        : []
    }`;
}
/** t0 … += x·Wᵀ of a matrix [n, k], `at` the rows of x. */
export const ascending = (at: readonly Place[], panels: Panels, { k }: { readonly k: number }): Lines => {
  const place = ["col >> 4u", "k", "((col >> 2u) & 3)"] as const;
  return sumsOf(
    at,
    k,
    panels.run,
    "v",
    (count) => lines`
      let w = weights[${panels.at(...place)}];
      ${panels.scales(...place)}
      ${indices(count).map((j) => `let v${j} = ${panels.value("w", j)};`)}`,
  );
};
const four = indices(4);
/** Of v0 … v3, four rows of W at each of four columns, row j at all of them. */
export const turned = (j: number): string => `vec4<f32>(${four.map((i) => `v${i}.${"xyzw"[j]}`).join(", ")})`;
/** t0 … += dy·W, `at` the rows of dy. */
export const across = (at: readonly Place[], panels: Panels, { n }: { readonly n: number }): Lines =>
  sumsOf(
    at,
    n,
    4,
    "q",
    (count) => lines`
      ${panels.some(4, "k >> 4u", "col", "((k >> 2u) & 3)")}
      ${four.slice(0, count).map((j) => `let q${j} = ${turned(j)};`)}`,
  );

/** The product; `sums` adds into t0 … of a tile, of rows of x at such places. */
export function plain(
  name: string,
  b: Body,
  env: KernelEnv,
  sums: (at: (x: Operand) => readonly Place[]) => Lines,
): string {
  const rows = (n: number): string[] => {
    const tile = indices(n).map((i) => `t${i}`);
    const [row, last] = n === 1 ? ["r", "1"] : ["r0 + i", `min(${n}, n - r0)`];
    const columns = b.cols % 4 ? `min(4, ${b.cols} - col)` : "4";
    // One copy of the epilogue, whatever the tile: it is the larger part of the text.
    return lines`
      ${tile.map((t) => `var ${t} = vec4<f32>();`)}
      ${sums((x) => rowsOf(x, env, n))}
      var out = array<vec4<f32>, ${n}>(${tile.join(", ")});
      for (var i = 0; i < ${last}; i++) {
        for (var c = 0; c < ${columns}; c++) { ${name}_e(${row}, col + c, out[i][c]); }
      }`;
  };
  const text = lines`
    let n = ${count(b.domain)};
    let r0 = wg.y * ${PLAIN_ROWS};
    let col = (wg.x * ${WG} + lane) * 4;
    if (col >= ${b.cols}) { return; }
    if (n - r0 >= ${PLAIN_FROM}) {
      ${rows(PLAIN_ROWS)}
    } else {
      for (var r = r0; r < n; r++) {
        ${rows(1)}
      }
    }`;
  return `${epilogue(name, b, env)}\n${fn(name, text)}`;
}
