/** IEEE half precision: widens exactly, subnormals included. */
import { halvesToFloats } from "../dtypes.ts";
import { type FormatValues, into, toHalf, type WeightFormat, WGSL_PANEL } from "./format.ts";

export const f16: WeightFormat = {
  planes: [{ suffix: "", dtype: "F16", every: 1, count: 1 }],
  fine: true,
  wgsl: {
    value: (w, j) => `halves_${"xy"[j]}(${w})`,
    scales: null,
    weight: `
fn weight_f16(base: i32, n: i32, k: i32, K: i32) -> f32 {
  let word = base + ((n / ${WGSL_PANEL}) * ((K + 1) / 2) + k / 2) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  return unpack2x16float(word_at(word))[k % 2];
}`,
    integers: null,
  },
  // Of the prelude: half1, half4 and widen.
  assembly: {
    weight: `
function weightf16(w: usize, n: i32, k: i32, K: i32): f32 {
  return half1(load<u16>(w + ((<usize>(((n >> 3) * K + k) * 8 + (n & 7))) << 1)));
}`,
    unpack: `
function unpack_f16(w: usize, N: i32, K: i32, p: i32, k: i32, count: i32, out: usize): void {
  let at: usize = w + <usize>(p * K + k) * 16;
  const end: usize = out + <usize>count * 32;
  for (; out < end; out += 32) {
    v128.store(out, half4(at));
    v128.store(out, half4(at + 8), 16);
    at += 16;
  }
}`,
    load: (u) => [
      `const h${u}: v128 = v128.load(w, ${u * 16});`,
      `const b${u}: v128 = widen(i32x4.extend_low_i16x8_s(h${u}));`,
      `const d${u}: v128 = widen(i32x4.extend_high_i16x8_s(h${u}));`,
    ],
    scales: [],
    integers: null,
  },
};
export const f16Values: FormatValues = {
  encode: (values, _n, _k, refuse) => [
    into(new Uint16Array(values.length), values, (x, at) => toHalf(x, at, refuse)),
  ],
  decode: ([halves]) => halvesToFloats(halves as Uint16Array, new Float32Array(halves!.length)),
};
