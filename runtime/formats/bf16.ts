/** The upper half of f32, as checkpoints have it: widens exactly. Rounds to nearest even. */
import { type FormatValues, into, type WeightFormat, WGSL_PANEL } from "./format.ts";

export const bf16: WeightFormat = {
  planes: [{ suffix: "", dtype: "BF16", every: 1, count: 1 }],
  fine: true,
  wgsl: {
    value: (w, j) => `bitcast<vec4<f32>>(${w} ${j ? "& vec4<u32>(0xffff0000u)" : "<< vec4<u32>(16u)"})`,
    scales: null,
    weight: `
fn weight_bf16(base: i32, n: i32, k: i32, K: i32) -> f32 {
  let word = base + ((n / ${WGSL_PANEL}) * ((K + 1) / 2) + k / 2) * ${WGSL_PANEL} + n % ${WGSL_PANEL};
  let v = word_at(word);
  return bitcast<f32>(select(v << 16u, v & 0xffff0000u, k % 2 == 1));
}`,
    integers: null,
  },
  assembly: {
    weight: `
function weightbf16(w: usize, n: i32, k: i32, K: i32): f32 {
  return reinterpret<f32>(<u32>load<u16>(w + ((<usize>(((n >> 3) * K + k) * 8 + (n & 7))) << 1)) << 16);
}`,
    unpack: `
function unpack_bf16(w: usize, N: i32, K: i32, p: i32, k: i32, count: i32, out: usize): void {
  let at: usize = w + <usize>(p * K + k) * 16;
  const end: usize = out + <usize>count * 32;
  for (; out < end; out += 32) {
    const h: v128 = v128.load(at);
    v128.store(out, i32x4.shl(i32x4.extend_low_i16x8_u(h), 16));
    v128.store(out, i32x4.shl(i32x4.extend_high_i16x8_u(h), 16), 16);
    at += 16;
  }
}`,
    load: (u) => [
      `const h${u}: v128 = v128.load(w, ${u * 16});`,
      `const b${u}: v128 = i32x4.shl(i32x4.extend_low_i16x8_u(h${u}), 16);`,
      `const d${u}: v128 = i32x4.shl(i32x4.extend_high_i16x8_u(h${u}), 16);`,
    ],
    scales: [],
    integers: null,
  },
};
export const bf16Values: FormatValues = {
  encode: (values, n, k, refuse) => {
    const bits = new Uint32Array(values.buffer, values.byteOffset, n * k);
    return [
      into(new Uint16Array(bits.length), bits, (b, at) => {
        const h = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
        const finite = (b & 0x7f800000) !== 0x7f800000 && (h & 0x7f80) !== 0x7f80;
        return finite ? h : refuse(at, "values within the range of bf16");
      }),
    ];
  },
  decode: ([halves]) =>
    new Float32Array(into(new Uint32Array(halves!.length), halves!, (h) => h << 16).buffer),
};
