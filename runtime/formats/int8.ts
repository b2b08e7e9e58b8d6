/**
 * Blocks of 32 along a row, each with an f16 scale: q · scale, which f32 holds exactly (7 + 11 bits). Rounds
 * to nearest even, scales upwards.
 */
import { halfToFloat } from "../dtypes.ts";
import { type FormatValues, into, toHalf, type WeightFormat, WGSL_PANEL } from "./format.ts";

const BLOCK = 32;

export const int8: WeightFormat = {
  planes: [
    { suffix: "", dtype: "I8", every: 1, count: 1 },
    { suffix: ".scales", dtype: "F16", every: BLOCK, count: 1 },
  ],
  fine: false,
  wgsl: {
    // Exact: 7 + 11 bits.
    value: (w, j) => `vec4<f32>(signed(${w} << vec4<u32>(${24 - 8 * j}u))) * s`,
    scales: (h, upper) => [`let s = halves_of(${h}, ${upper});`],
    weight: `
fn weight_int8(base: i32, n: i32, k: i32, K: i32, N: i32) -> f32 {
  let panels = (N + ${WGSL_PANEL - 1}) / ${WGSL_PANEL};
  let runs = (K + 3) / 4;
  let at = base + ((n / ${WGSL_PANEL}) * runs + k / 4) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  let blocks = ((K + 31) / 32 + 1) / 2;
  let scale = base + panels * runs * ${WGSL_PANEL}
    + ((n / ${WGSL_PANEL}) * blocks + k / 64) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  let q = bitcast<i32>(word_at(at) << u32(24 - 8 * (k % 4))) >> 24u;
  return f32(q) * unpack2x16float(word_at(scale))[k / 32 % 2];
}`,
    integers: {
      one: (w, j) => `signed(${w} << vec4<u32>(${24 - 8 * j}u))`,
      bytes: [(w) => w],
      value: (products) => `s * ${products}`,
    },
  },
  // Scales lie after all panels, [panel][block of 32 rows][8].
  assembly: {
    weight: `
function weightint8(w: usize, n: i32, k: i32, K: i32, N: i32): f32 {
  const at: usize = w + <usize>(((n >> 3) * K + k) * 8 + (n & 7));
  const scale: usize = w + <usize>(((N + 7) >> 3) * K) * 8
    + <usize>((((n >> 3) * ((K + 31) >> 5) + (k >> 5)) * 8 + (n & 7)) * 2);
  return <f32>load<i8>(at) * half1(load<u16>(scale));
}`,
    unpack: `
function unpack_int8(w: usize, N: i32, K: i32, p: i32, k: i32, count: i32, out: usize): void {
  let at: usize = w + <usize>(p * K + k) * 8;
  const scales: usize = w + <usize>(((N + 7) >> 3) * K) * 8 + <usize>(p * ((K + 31) >> 5)) * 16;
  const last: i32 = k + count;
  while (k < last) {
    const scale: usize = scales + <usize>(k >> 5) * 16;
    const s0: v128 = half4(scale);
    const s1: v128 = half4(scale + 8);
    const stop: i32 = min(last, (k | 31) + 1);
    const end: usize = out + <usize>(stop - k) * 32;
    while (out < end) {
      const q: v128 = i16x8.extend_low_i8x16_s(v128.load64_zero(at));
      v128.store(out, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(q)), s0));
      v128.store(out, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(q)), s1), 16);
      at += 8;
      out += 32;
    }
    k = stop;
  }
}`,
    load: (u) => [
      `const e${u}: v128 = v128.load_ext<i8>(w, ${u * 8});`,
      `const b${u}: v128 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(e${u})), s0);`,
      `const d${u}: v128 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(e${u})), s1);`,
    ],
    scales: ["s0", "s1"],
    integers: {
      constants: [],
      pairs: [
        "const e: v128 = v128.load(w), f: v128 = v128.load(w, 16);",
        "const g: v128 = i8x16.shuffle(e, f, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);",
        "const h: v128 = i8x16.shuffle(e, f, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);",
        "const b0: v128 = i16x8.extend_low_i8x16_s(g), d0: v128 = i16x8.extend_high_i8x16_s(g);",
        "const b1: v128 = i16x8.extend_low_i8x16_s(h), d1: v128 = i16x8.extend_high_i8x16_s(h);",
      ],
      value: (products, _inputs, half) => `f32x4.mul(s${half}, ${products})`,
    },
  },
};
export const int8Values: FormatValues = {
  encode: (values, n, k, refuse) => {
    const blocks = Math.ceil(k / BLOCK);
    const q = new Int8Array(n * k);
    const scales = new Uint16Array(n * blocks);
    for (let row = 0; row < n; row++)
      for (let b = 0; b < blocks; b++) {
        const [from, to] = [row * k + b * BLOCK, row * k + Math.min(k, (b + 1) * BLOCK)];
        let max = 0;
        for (let i = from; i < to; i++) {
          const x = Math.abs(values[i]!);
          if (x > max) max = x;
        }
        let h = toHalf(max / 127, from, refuse);
        // The next half up where it was rounded down: no value may need more than 127 steps.
        if (halfToFloat(h) * 127 < max) h++;
        const scale = halfToFloat(h);
        scales[row * blocks + b] = h;
        for (let i = from; scale && i < to; i++) {
          const x = values[i]! / scale;
          const r = Math.round(x);
          q[i] = r - x === 0.5 && r % 2 ? r - 1 : r;
        }
      }
    return [q, scales];
  },
  decode: ([q, halves], n, k) => {
    const blocks = Math.ceil(k / BLOCK);
    const scales = into(new Float32Array(halves!.length), halves!, halfToFloat);
    const out = new Float32Array(n * k);
    for (let row = 0; row < n; row++)
      for (let i = 0; i < k; i++) out[row * k + i] = q![row * k + i]! * scales[row * blocks + (i >> 5)]!;
    return out;
  },
};
