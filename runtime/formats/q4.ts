/**
 * Blocks of 32 along a row, each with an f16 scale and minimum: q · scale + minimum, q of four bits. The
 * product is exact in f32 (4 + 11 bits), so the sum is rounded once, fused or not. Holds GGUF's Q4_1 as it
 * is, and Q4_0 with a minimum of -8 scales.
 */
import { floatToHalf, halfToFloat } from "../dtypes.ts";
import { type FormatValues, into, toHalf, type WeightFormat, WGSL_PANEL } from "./format.ts";

const BLOCK = 32;
const MOST = 15;

export const q4: WeightFormat = {
  planes: [
    // The lower half of a byte is the even row's.
    { suffix: "", dtype: "U8", every: 2, count: 1 },
    // Of each block the scale, then the minimum.
    { suffix: ".scales", dtype: "F16", every: BLOCK, count: 2 },
  ],
  fine: false,
  wgsl: {
    value: (w, j) => `fma(vec4<f32>((${w} >> vec4<u32>(${4 * j}u)) & vec4<u32>(15u)), s, m)`,
    // A word is a column's scale and minimum.
    scales: (h) => [`let s = halves_x(${h});`, `let m = halves_y(${h});`],
    weight: `
fn weight_q4(base: i32, n: i32, k: i32, K: i32, N: i32) -> f32 {
  let panels = (N + ${WGSL_PANEL - 1}) / ${WGSL_PANEL};
  let runs = (K + 7) / 8;
  let at = base + ((n / ${WGSL_PANEL}) * runs + k / 8) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  let block = base + panels * runs * ${WGSL_PANEL}
    + ((n / ${WGSL_PANEL}) * ((K + 31) / 32) + k / 32) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  let h = unpack2x16float(word_at(block));
  return fma(f32((word_at(at) >> u32(4 * (k % 8))) & 15u), h.x, h.y);
}`,
    integers: {
      one: (w, j) => `vec4<i32>((${w} >> vec4<u32>(${4 * j}u)) & vec4<u32>(15u))`,
      bytes: [
        (w) => `${w} & vec4<u32>(0x0f0f0f0fu)`,
        (w) => `(${w} >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu)`,
      ],
      value: (products, inputs) => `fma(s, ${products}, m * ${inputs})`,
    },
  },
  // Scales lie after all panels, [panel][block of 32 rows][2][8].
  assembly: {
    weight: `
function weightq4(w: usize, n: i32, k: i32, K: i32, N: i32): f32 {
  const pairs: i32 = (K + 1) >> 1;
  const at: usize = w + <usize>(((n >> 3) * pairs + (k >> 1)) * 8 + (n & 7));
  const scale: usize = w + <usize>(((N + 7) >> 3) * pairs) * 8
    + <usize>((((n >> 3) * ((K + 31) >> 5) + (k >> 5)) * 16 + (n & 7)) * 2);
  return <f32>((load<u8>(at) >> <u8>((k & 1) << 2)) & 15) * half1(load<u16>(scale))
    + half1(load<u16>(scale, 16));
}`,
    unpack: `
// @ts-ignore: decorator
@inline function q4of(q: v128, scale: v128, low: v128): v128 {
  return f32x4.add(f32x4.mul(f32x4.convert_i32x4_s(q), scale), low);
}
function unpack_q4(w: usize, N: i32, K: i32, p: i32, k: i32, count: i32, out: usize): void {
  const pairs: i32 = (K + 1) >> 1;
  let at: usize = w + <usize>(p * pairs + (k >> 1)) * 8;
  const scales: usize = w + <usize>(((N + 7) >> 3) * pairs) * 8 + <usize>(p * ((K + 31) >> 5)) * 32;
  const mask: v128 = i16x8.splat(15);
  const last: i32 = k + count;
  while (k < last) {
    const scale: usize = scales + <usize>(k >> 5) * 32;
    const s0: v128 = half4(scale), s1: v128 = half4(scale + 8);
    const m0: v128 = half4(scale + 16), m1: v128 = half4(scale + 24);
    const stop: i32 = min(last, (k | 31) + 1);
    const end: usize = out + <usize>(stop - k) * 32;
    while (out < end) {
      const e: v128 = v128.load_ext<u8>(at);
      let q: v128 = v128.and(e, mask);
      v128.store(out, q4of(i32x4.extend_low_i16x8_s(q), s0, m0));
      v128.store(out, q4of(i32x4.extend_high_i16x8_s(q), s1, m1), 16);
      out += 32;
      if (out < end) {
        q = i16x8.shr_u(e, 4);
        v128.store(out, q4of(i32x4.extend_low_i16x8_s(q), s0, m0));
        v128.store(out, q4of(i32x4.extend_high_i16x8_s(q), s1, m1), 16);
        out += 32;
      }
      at += 8;
    }
    k = stop;
  }
}`,
    load: (u) => {
      const e = `e${u >> 1}`;
      const [name, q] = [`g${u}`, u % 2 ? `i16x8.shr_u(${e}, 4)` : `v128.and(${e}, i16x8.splat(15))`];
      const half = (part: "low" | "high"): string =>
        `f32x4.convert_i32x4_s(i32x4.extend_${part}_i16x8_s(${name}))`;
      return [
        ...(u % 2 ? [] : [`const ${e}: v128 = v128.load_ext<u8>(w, ${u * 4});`]),
        `const ${name}: v128 = ${q};`,
        `const b${u}: v128 = madd(${half("low")}, s0, m0);`,
        `const d${u}: v128 = madd(${half("high")}, s1, m1);`,
      ];
    },
    scales: ["s0", "s1", "m0", "m1"],
    integers: {
      // Bytes of rows k and k + 2 of a column, each twice: pairs of 16 bits that begin and end with theirs.
      constants: [
        "const left: v128 = i8x16(0, 0, 8, 8, 1, 1, 9, 9, 2, 2, 10, 10, 3, 3, 11, 11);",
        "const right: v128 = i8x16(4, 4, 12, 12, 5, 5, 13, 13, 6, 6, 14, 14, 7, 7, 15, 15);",
      ],
      pairs: [
        "const e: v128 = v128.load(w);",
        "const g: v128 = i8x16.swizzle(e, left), h: v128 = i8x16.swizzle(e, right);",
        "const b0: v128 = v128.and(g, i16x8.splat(15)), d0: v128 = v128.and(h, i16x8.splat(15));",
        "const b1: v128 = i16x8.shr_u(g, 12), d1: v128 = i16x8.shr_u(h, 12);",
      ],
      value: (products, inputs, half) => `madd(s${half}, ${products}, f32x4.mul(m${half}, ${inputs}))`,
    },
  },
};
export const q4Values: FormatValues = {
  encode: (values, n, k, refuse) => {
    const [blocks, pairs] = [Math.ceil(k / BLOCK), Math.ceil(k / 2)];
    const q = new Uint8Array(n * pairs);
    const scales = new Uint16Array(n * blocks * 2);
    const block = new Float64Array(BLOCK);
    const line = new Float64Array(2);
    for (let row = 0; row < n; row++)
      for (let b = 0; b < blocks; b++) {
        const from = row * k + b * BLOCK;
        const most = Math.min(k - b * BLOCK, BLOCK);
        for (let i = 0; i < most; i++) block[i] = values[from + i]!;
        fit(block, most, line);
        const [scale, low] = [line[0]!, line[1]!];
        const at = (row * blocks + b) * 2;
        scales[at] = toHalf(scale, from, refuse);
        scales[at + 1] = toHalf(low, from, refuse);
        for (let i = 0, j = row * pairs + ((b * BLOCK) >> 1); i < most; i += 2, j++) {
          const odd = i + 1 < most ? stepOf(block[i + 1]!, scale, low) : 0;
          q[j] = stepOf(block[i]!, scale, low) | (odd << 4);
        }
      }
    return [q, scales];
  },
  decode: ([q, halves], n, k) => {
    const [blocks, pairs] = [Math.ceil(k / BLOCK), Math.ceil(k / 2)];
    const scales = into(new Float32Array(halves!.length), halves!, halfToFloat);
    const out = new Float32Array(n * k);
    for (let row = 0; row < n; row++)
      for (let i = 0; i < k; i++) {
        const block = (row * blocks + (i >> 5)) * 2;
        const step = (q![row * pairs + (i >> 1)]! >> ((i & 1) * 4)) & MOST;
        out[row * k + i] = step * scales[block]! + scales[block + 1]!;
      }
    return out;
  },
};

/** The step of a block whose value lies nearest. */
function stepOf(x: number, scale: number, low: number): number {
  if (!scale) return 0;
  const steps = (x - low) / scale + 0.5;
  return steps < 0 ? 0 : steps > MOST ? MOST : steps | 0;
}
const half = (x: number): number => halfToFloat(floatToHalf(x));

/**
 * Scale and minimum, as halves, of the least squared error over the first `n` of a block: from those that
 * reach from its least value to its largest, steps and line are fitted to each other in turns until nothing
 * is gained.
 */
function fit(values: Float64Array, n: number, line: Float64Array): void {
  let [least, largest, sx] = [Infinity, -Infinity, 0];
  for (let i = 0; i < n; i++) {
    const x = values[i]!;
    if (x < least) least = x;
    if (x > largest) largest = x;
    sx += x;
  }
  let scale = half((largest - least) / MOST);
  let low = half(least);
  let best = Infinity;
  for (let turn = 0; turn < 8; turn++) {
    let [error, sq, sqq, sqx] = [0, 0, 0, 0];
    for (let i = 0; i < n; i++) {
      const x = values[i]!;
      const q = stepOf(x, scale, low);
      const off = q * scale + low - x;
      error += off * off;
      sq += q;
      sqq += q * q;
      sqx += q * x;
    }
    if (!(error < best)) return;
    best = error;
    line[0] = scale;
    line[1] = low;
    const spread = n * sqq - sq * sq;
    if (!spread || !error) return;
    scale = half((n * sqx - sq * sx) / spread);
    low = half((sx - scale * sq) / n);
    // Of the same line nothing is gained.
    if (scale === line[0] && low === line[1]) return;
  }
}
