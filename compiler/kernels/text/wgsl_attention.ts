/**
 * What the kernels of attention share in WGSL. All do the same operations in the same order on every number:
 * dims ascending in a dot product, key tiles of 32 from position 0, keys ascending in a tile.
 */
import { KV_BLOCK, type Type } from "../../../ops/index.ts";
import { kvStride, layerWord, SPLIT } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { f32, header, pin, rowAt } from "./wgsl.ts";
import { indices } from "./wgsl_products.ts";

type Kv = Type & { kind: "kv" };
/** Which operands of a gradient are what. */
export type Operands = Readonly<Record<"Q" | "O" | "LSE" | "DO", number>>;
/**
 * What a workgroup of a gradient shares: numbers of queries and of the output's gradient, and of pairs with a
 * key their probabilities and score gradients, in fours; of rows the log-sum-exp and Σ dO · O, one by one.
 */
export type Sharing = (b: Body, lanes: number) => Readonly<Record<"q" | "p" | "s" | "m" | "d", number>>;

/** The sum of four partial sums. */
export const sumOf = (v: string): string => `(${v}.x + ${v}.y) + (${v}.z + ${v}.w)`;

/** The fold of another split, whose maximum and sum are `m` and `l`, into `top` and `sum`, by `a` and `b`. */
export const fold: Lines = lines`
  let next = max(top, m);
  let a = exp(top - next);
  let b = exp(m - next);
  top = next;
  sum = fma(sum, a, l * b);`;
export const nothing: Lines = ["var top = -1.0e30f;", "var sum = 0.0f;"];
/** Does a context have several splits? */
export const isSplit = (env: KernelEnv): boolean => env.capacities.context > SPLIT;

export function attentionOf(b: Body, env: KernelEnv) {
  const node = b.node!;
  const kv = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  const offset = env.address(node.ins[1]!).offset;
  const { scale: s, softcap: cap, window } = node.attrs;
  const scale = f32(Number(s));
  const capped = cap !== undefined;
  const stride = kvStride(kv.headDim);
  const word = (array: string, row: string): string => `batch[${env.layout.arrays[array]} + ${row}]`;
  /** Of four numbers from dim 4 · i on, those of the head. */
  const ofHead = (v: string, i: string): string =>
    kv.headDim % 4 ? `leading(${v}, ${kv.headDim} - 4 * ${i})` : v;
  return {
    hd: kv.headDim,
    /** Numbers from a row of the cache to the next, and fours in a row. */
    stride,
    quads: stride / 4,
    heads,
    kvHeads: kv.heads,
    group: heads / kv.heads,
    /** Under a soft cap: `z`, the score of `dot` in units of the cap. */
    bound: capped ? [`let z = tanh(clamp(dot * ${f32(Number(s) / Number(cap))}, -20.0f, 20.0f));`] : [],
    /**
     * `dot`, a product of q and k, in the scale of the softmax; what is subtracted from it next must not be
     * contracted into it.
     */
    score: pin(capped ? `z * ${f32(Number(cap))}` : `dot * ${scale}`),
    /** The score's derivative. */
    slope: capped ? `(${scale} * (1.0f - ${pin("z * z")}))` : scale,
    /** The first tile that a row sees, and in tile t its first key; with a window these need `seen`. */
    seen: window ? [`let seen = max(0, keys - tables[${layerWord("window")}]);`] : [],
    firstTile: window ? `seen / ${KV_BLOCK} * ${KV_BLOCK}` : "0",
    firstKey: window ? "max(0, seen - t)" : "0",
    /** Does a row see key `j` of tile t, of which it has `c`, the first of them `firstKey`? */
    seesKey: window ? "j < c && j >= seen - t" : "j < c",
    /** Of the rows `r0` to `end` of a segment, the end of those that see `key`. */
    lastRow: (end: string, r0: string, pos0: string): string =>
      window ? `min(${end}, ${r0} + max(0, key + tables[${layerWord("window")}] - ${pos0}))` : end,
    /** Number i of the cache; of the row that begins at `at`, the four from dim 4 · i on. */
    cached: (i: string): string => `kv_${kv.format}(${i})`,
    quad: (at: string, i: string): string => ofHead(`kv_quad_${kv.format}(${at} + 4 * ${i})`, i),
    /** The same of a row of f32 numbers. */
    row: (space: string, at: string, i: string): string =>
      ofHead(`vec4<f32>(${[0, 1, 2, 3].map((d) => `${space}[${at} + 4 * ${i} + ${d}]`).join(", ")})`, i),
    /** Which of four rows, that see so many keys (or the last of them), see `key`. */
    sees: (key: string, keys: string): string => {
      const before = `vec4<i32>(${key}) < ${keys}`;
      const since = `vec4<i32>(${key}) >= ${keys} - tables[${layerWord("window")}]`;
      return window ? `(${before}) & (${since})` : before;
    },
    /** The first number of a position's key (part 0) or value (1). */
    kvAt: (part: 0 | 1, position: string, kh: string): string =>
      `${offset} + kv_index(table, ${position}, ${part}, ${kh}, ${kv.heads}, ${stride})`,
    /** Row `row` of operand `i`. */
    operand: (i: number) => rowAt(b.operands[i]!, env, "row"),
    out: (index: number) => env.address({ node, index, type: node.outs[index]! }),
    word,
    posOf: (row: string): string => word("pos", row),
    tableOf: (row: string): string => word("table", row),
    /** Dot products by name, of fours i of two rows; a loop that no compiler unrolls into all registers. */
    dots: (products: Readonly<Record<string, readonly [string, string]>>): Lines => {
      const all = Object.entries(products);
      return lines`
        ${all.map(([name]) => `var ${name}_ = vec4<f32>();`)}
        for (var i = ${header("zero")}; i < ${stride / 4}; i++) {
          ${all.map(([name, [x, y]]) => `${name}_ = fma(${x}, ${y}, ${name}_);`)}
        }
        ${all.map(([name]) => `let ${name} = ${sumOf(`${name}_`)};`)}`;
    },
    /** Of kernels for lanes alone: what they have of a head, in fours; a statement for each four. */
    fours: (...names: string[]): Lines =>
      names.map((name) => `var ${name} = array<vec4<f32>, ${stride / 4}>();`),
    each: (...statements: string[]): string =>
      `for (var i = 0; i < ${stride / 4}; i++) { ${statements.join(" ")} }`,
    /** The same, in a text for each: their numbers are known. */
    unrolled: (text: (i: number) => string | Lines): Lines => indices(stride / 4).flatMap(text),
    /** Fours of the cache, or of a row of f32 numbers, that lanes read alike. */
    alikeQuad: (at: string, i: number): string =>
      ofHead(`kv_alike_${kv.format}(${at} + ${4 * i})`, String(i)),
    alikeRow: (space: string, at: string, i: number): string => {
      const last = Math.min(3, kv.headDim - 4 * i - 1);
      return ofHead(`four_${space}(${at} + ${4 * i}, 1, ${last})`, String(i));
    },
  };
}
