/** Functions of WGSL that kernels call. A module has those that its text calls. */
import { KV_BLOCK } from "../../../ops/index.ts";
import { kvFormats, QUAD, QUAD_WORDS, weightFormats } from "../../../runtime/bundle.ts";
import { type Lines, lines } from "./lines.ts";
import { shared } from "./quads.ts";
import { fn } from "./wgsl.ts";
import { indices } from "./wgsl_products.ts";

/** `kv_NAME`, `kv_quad_NAME` and `kv_put_NAME` of every format of the cache. */
const caches = Object.fromEntries(
  Object.entries(kvFormats).flatMap(([name, { wgsl }]) => [
    [`kv_${name}`, wgsl.at],
    [`kv_quad_${name}`, wgsl.quad],
    [`kv_put_${name}`, wgsl.put],
  ]),
);
/** `weight_NAME` of every format. */
const weights = Object.fromEntries(
  Object.entries(weightFormats).map(([name, f]) => [`weight_${name}`, f.wgsl.weight]),
);

/** Lanes of a workgroup that folds a number of each of them into one. */
export const FOLD_LANES = 128;
export const FOLDED = 8;
const FIRST = FOLD_LANES / FOLDED;
/** What such a workgroup shares: a number of each lane, and of each of those that fold first. */
export const foldShared: Lines = [
  `var<workgroup> part: array<f32, ${FOLD_LANES}>;`,
  `var<workgroup> parts: array<f32, ${FOLDED}>;`,
];
const folds = {
  sum: (a: string, b: string): string => `(${a} + ${b})`,
  max: (a: string, b: string): string => `max(${a}, ${b})`,
} as const;
/** A tree over `n` numbers, those that lie side by side first. */
export function treeOf(reduce: keyof typeof folds, n: number, at: (i: number) => string, from = 0): string {
  if (n === 1) return at(from);
  return folds[reduce](treeOf(reduce, n / 2, at, from), treeOf(reduce, n / 2, at, from + n / 2));
}
/**
 * `fold_NAME`: a few lanes fold those that lie so many apart, then every lane these. A tree, the same
 * whatever the batch; what is read of it is asked for at once.
 */
function fold(name: keyof typeof folds): string {
  const tree = (n: number): string => treeOf(name, n, (i) => `p${i}`);
  return fn(
    `fold_${name}`,
    lines`
      part[lane] = v;
      workgroupBarrier();
      if (lane < ${FOLDED}) {
        ${indices(FIRST).map((i) => `let p${i} = part[lane + ${i * FOLDED}];`)}
        parts[lane] = ${tree(FIRST)};
      }
      workgroupBarrier();
      ${indices(FOLDED).map((i) => `let p${i} = parts[${i}];`)}
      return ${tree(FOLDED)};`,
    "v: f32, lane: i32",
    "f32",
  );
}

const library: Readonly<Record<string, string>> = {
  word_at: `
fn word_at(i: i32) -> u32 {
  return weights[i >> 2u][i & 3];
}`,
  vector_at: `
fn vector_at(i: i32) -> f32 {
  return bitcast<f32>(weights[i >> 2u][i & 3]);
}`,
  halves_x: `
// The lower half of each word.
fn halves_x(h: vec4<u32>) -> vec4<f32> {
  return vec4<f32>(
    unpack2x16float(h.x).x, unpack2x16float(h.y).x, unpack2x16float(h.z).x, unpack2x16float(h.w).x);
}`,
  halves_y: `
// The upper half.
fn halves_y(h: vec4<u32>) -> vec4<f32> {
  return vec4<f32>(
    unpack2x16float(h.x).y, unpack2x16float(h.y).y, unpack2x16float(h.z).y, unpack2x16float(h.w).y);
}`,
  halves_of: `
fn halves_of(h: vec4<u32>, upper: bool) -> vec4<f32> {
  return halves_x(select(h, h >> vec4<u32>(16u), upper));
}`,
  signed: `
// The uppermost byte of each word, with its sign.
fn signed(h: vec4<u32>) -> vec4<i32> {
  return bitcast<vec4<i32>>(h) >> vec4<u32>(24u);
}`,
  ...weights,
  ...caches,
  ...shared,
  most_of: `
// Of the lanes of a quad, the largest number.
fn most_of(own: i32) -> i32 {
  let all = neighbours(own);
  return max(max(all.x, all.y), max(all.z, all.w));
}`,
  expand: `
fn expand(u: i32, quads: i32, f: i32, rank: i32, cols: i32) -> f32 {
  var sum = 0.0f;
  for (var r = 0; r < rank; r += ${QUAD}) {
    let quad = tables[quads + r / ${QUAD / QUAD_WORDS}] + f;
${indices(QUAD)
  .map((i) => {
    const term = `fma(arena[u + r + ${i}], adapters[quad + ${i} * cols], sum)`;
    return `    sum = ${i ? `select(sum, ${term}, r + ${i} < rank)` : term};`;
  })
  .join("\n")}
  }
  return sum;
}`,
  dot_of: `
fn dot_of(a: i32, b: i32, step: i32, n: i32) -> f32 {
  var sum = 0.0f;
  for (var k = 0; k < n * step; k += step) {
    sum = fma(arena[a + k], arena[b + k], sum);
  }
  return sum;
}`,
  sparse: `
// order < 0: entries are in the order wanted.
fn sparse(x: i32, values: i32, start: i32, order: i32, at: i32) -> f32 {
  var sum = 0.0f;
  let end = i32(adapters[start + 1]);
  for (var k = i32(adapters[start]); k < end; k++) {
    var e = k;
    if (order >= 0) { e = i32(adapters[order + k]); }
    sum = fma(adapters[values + e], arena[x + i32(adapters[at + e])], sum);
  }
  return sum;
}`,
  rand: `
fn rand(key: i32, salt: i32, col: i32) -> f32 {
  var h = u32(key) ^ (u32(salt + 1) * 0x9e3779b9u) ^ (u32(col + 1) * 0x85ebca6bu);
  h = (h ^ (h >> 16u)) * 0x7feb352du;
  h = (h ^ (h >> 15u)) * 0x846ca68bu;
  h = h ^ (h >> 16u);
  return f32(h >> 8u) * 5.9604644775390625e-8f;
}`,
  kv_index: `
fn kv_index(table: i32, pos: i32, half: i32, head: i32, heads: i32, stride: i32) -> i32 {
  return (((batch[table + pos / ${KV_BLOCK}] * 2 + half) * heads + head) * ${KV_BLOCK}
    + pos % ${KV_BLOCK}) * stride;
}`,
  order_of: `
// The bits of a float as a number that is ordered as floats are; both zeros are one.
fn order_of(v: u32) -> u32 {
  let bits = select(v, 0u, v == 0x80000000u);
  return select(bits | 0x80000000u, ~bits, bits > 0x7fffffffu);
}`,
  leading: `
// The first n of four numbers.
fn leading(v: vec4<f32>, n: i32) -> vec4<f32> {
  return select(vec4<f32>(), v, vec4<i32>(0, 1, 2, 3) < vec4<i32>(n));
}`,
  to_half: `
// Rounded to f16; zero is 0, which a compiler does not know: some drop what is packed and unpacked at once.
fn to_half(v: vec4<f32>, zero: u32) -> vec4<f32> {
  let h = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)) ^ vec2<u32>(zero);
  return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}`,
  step_of: `
// By what a block of numbers is multiplied, so that 14 bits and a sign hold them; of their largest magnitude,
// as bits. A power of two; of numbers that are all as good as zero, and of what is no number, 0.
fn step_of(most: u32) -> f32 {
  let e = most >> 23u;
  return select(bitcast<f32>((267u - e) << 23u), 0.0f, e < 27u || e == 255u);
}`,
  scale_of: `
// What a step is: 0 where all are, and no number where one is none.
fn scale_of(most: u32) -> f32 {
  let e = most >> 23u;
  return bitcast<f32>(select(select((e - 13u) << 23u, 0u, e < 27u), most, e == 255u));
}`,
  magnitude: `
fn magnitude(v: vec4<f32>) -> u32 {
  let b = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
  return max(max(b.x, b.y), max(b.z, b.w));
}`,
  rounded: `
// The integers nearest to v in steps, of two equally near the even one, in the lower half of each word.
fn rounded(v: vec4<f32>, step: f32) -> vec4<u32> {
  return bitcast<vec4<u32>>(fma(v, vec4<f32>(step), vec4<f32>(12582912.0f)));
}`,
  lower: `
// Of four integers, the lower bytes: each has a sign.
fn lower(v: vec4<u32>) -> u32 {
  return (v.x & 255u) | ((v.y & 255u) << 8u) | ((v.z & 255u) << 16u) | (v.w << 24u);
}`,
  upper: `
// And what is left of them, in units of 256.
fn upper(v: vec4<u32>) -> u32 {
  return lower((v + vec4<u32>(128u)) >> vec4<u32>(8u));
}`,
  dots: `
// Sums p of four columns, and four products more of each.
fn dots(x: u32, w: vec4<u32>, p: vec4<i32>) -> vec4<i32> {
  return p + vec4<i32>(
    dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w));
}`,
  fold_sum: fold("sum"),
  fold_max: fold("max"),
};

/** The functions that a text calls, and those that they call, in the order above. */
export function called(text: string): string {
  const need = new Set<string>();
  const visit = (t: string): void => {
    for (const [name, code] of Object.entries(library))
      if (!need.has(name) && new RegExp(`\\b${name}\\(`).test(t)) {
        need.add(name);
        visit(code.slice(code.indexOf("{")));
      }
  };
  visit(text);
  return Object.entries(library)
    .filter(([name]) => need.has(name))
    .map(([, code]) => code.trim())
    .join("\n");
}
