/**
 * Matrix products in WGSL, all in one order, whatever the kernel: what is summed is cut into chunks of 128, a
 * chunk is one ascending chain of fma from zero, and the chunks' sums are added in order, from zero. Who
 * makes a chunk, and how many rows and columns a workgroup has, is then free, and a row has the same bits
 * alone and in a tile.
 */
import { wgslPrinter, wgslStores } from "../../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import { type Body, sumsOf, widthOf } from "../body.ts";
import { type Expand, sameDelta } from "../deltas.ts";
import { type Lines, lines } from "./lines.ts";
import { fn, shard } from "./wgsl.ts";

/** Terms of a chunk. */
export const CHUNK = 128;
/** Terms that a matrix unit sums; or, without, a chunk of what is rounded as for one. */
export const SPAN = 512;
export const indices = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

/**
 * Adds the terms of chunk `c`, of `all` that a sum has: `terms` says what so many numbers from k on add,
 * `step` of them asked for in one go. Loops are of constant length, which a driver unrolls.
 */
export function chunkOf(all: number, step: number, terms: (count: number) => Lines): Lines {
  const chain = (length: number): Lines => {
    const [steps, tail] = [Math.floor(length / step), length % step];
    const whole = lines`
      for (var i = 0; i < ${steps}; i++) {
        let k = c * ${CHUNK} + i * ${step};
        ${terms(step)}
      }`;
    const last = lines`
      {
        let k = c * ${CHUNK} + ${length - tail};
        ${terms(tail)}
      }`;
    return [...(steps ? whole : []), ...(tail ? last : [])];
  };
  const [full, rest] = [Math.floor(all / CHUNK), all % CHUNK];
  const chunk = (condition: string, length: number): Lines =>
    length
      ? lines`
      if (${condition}) {
        ${chain(length)}
      }`
      : [];
  return [...chunk(`c < ${full}`, full && CHUNK), ...chunk(`c == ${full}`, rest)];
}

/** A list of what is there of both sums of a body, or of its one. */
export const ofSums = (b: Body, each: (i: number) => string): string =>
  indices(sumsOf(b)).map(each).join(", ");
/**
 * Where four columns of a matrix are in its panels: those of quad `quad` of the columns at which a body has
 * sums, for sum `which` of two, or null. Numbers are variables, so that bodies with two sums share a text.
 * Names of variables end with `tag`.
 */
export function quadAt(b: Body, quad: string, which: string | null, tag = "") {
  const at = `at_quad${tag}`;
  const place = { panel: `(${at} >> 2u)`, quad: `(${at} & 3)` };
  if (which === null) return { before: [`let ${at} = ${quad};`], ...place };
  // Behind so many quads, as many are the other sum's; of two matrices, none.
  const [half, over] = b.half ? [b.half / 4, b.half / 4] : [WHOLE_QUADS, 0];
  const before = lines`
    let half${tag} = ${half};
    let over${tag} = ${over};
    let own_quad${tag} = ${quad};
    let ${at} = own_quad${tag} + (own_quad${tag} / half${tag} + ${which}) * over${tag};`;
  return { before, ...place };
}
/** More quads than a matrix has. */
const WHOLE_QUADS = 2 ** 24;

/**
 * What a launch makes of a product, as text: how many columns, and where one goes when its sums are there.
 */
export interface Span {
  /** Is it all of the product? */
  readonly whole: boolean;
  readonly count: string;
  readonly put: (name: string, row: string, col: string, sums: string) => string;
}
export const wholeOf = (b: Body): Span => ({
  whole: true,
  count: String(widthOf(b)),
  put: (name, row, col, sums) => `${name}_e(${row}, ${col}, ${sums});`,
});
/** The columns of the shard that a launch is over. */
export const columnsOfShard: Span = {
  whole: false,
  count: shard.rows,
  put: (name, row, col, sums) => `${name}_e(${row}, ${shard.first} + ${col}, ${sums});`,
};

/** Terms of a product; `sharded`: those that a launch sums are the rows of a shard. */
export interface Terms {
  readonly all: number;
  readonly sharded: boolean;
}
/** Is it the last shard of so many rows? */
export const isLast = (all: number): string => `${shard.first} + ${shard.rows} == ${all}`;
/** Where sums wait for the shards that are still to come: in the place of the product. */
function waiting(b: Body, env: KernelEnv): (row: string, col: string) => string {
  const to = b.stores.find((s) => s.to === "rows" && s.cols === b.cols);
  if (to?.to !== "rows") throw new Error(`${b.name}: no place for the sums of a shard`);
  const { space, offset, stride } = env.address(to.value);
  return (row, col) => `${space}[${offset} + (${row}) * ${stride} + ${col}]`;
}
/** All columns of a sum over shards, of so many terms in all. */
export const sumOfShards = (b: Body, env: KernelEnv, all: number): Span => ({
  whole: false,
  count: String(b.cols),
  put: (name, row, col, sum) =>
    `if (${isLast(all)}) { ${name}_e(${row}, ${col}, ${sum}); } ` +
    `else { ${waiting(b, env)(row, col)} = ${sum}; }`,
});
/** The sum of four columns of a row as the shards before this one left it. */
export const sumSoFar = (b: Body, env: KernelEnv, row: string, col: string): string =>
  `vec4<f32>(${indices(4)
    .map((c) => waiting(b, env)(row, `min(${col} + ${c}, ${b.cols - 1})`))
    .join(", ")})`;

/**
 * `name_e`: one element of a product's epilogue, of its sums and of low-rank deltas that are made beside
 * them.
 */
export function epilogue(name: string, b: Body, env: KernelEnv, deltas: readonly Expand[] = []): string {
  const n = sumsOf(b);
  const p = wgslPrinter(env, (e) => {
    const ready = deltas.findIndex((d) => sameDelta(d, e));
    return ready < 0 ? null : `acc${n + ready}`;
  });
  const stores = wgslStores(p, b.stores, env, b.cols, "col == 0");
  const where = b.half ? [`let col = at + at / ${b.half} * ${b.half};`] : [];
  return fn(
    `${name}_e`,
    [...where, ...p.row, ...p.col, ...stores],
    `row: i32, ${where.length ? "at" : "col"}: i32, ` +
      indices(n + deltas.length)
        .map((i) => `acc${i}: f32`)
        .join(", "),
  );
}
