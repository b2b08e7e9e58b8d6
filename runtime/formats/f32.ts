import { type FormatValues, type WeightFormat, WGSL_PANEL } from "./format.ts";

export const f32: WeightFormat = {
  planes: [{ suffix: "", dtype: "F32", every: 1, count: 1 }],
  fine: true,
  wgsl: {
    value: (w) => `bitcast<vec4<f32>>(${w})`,
    scales: null,
    weight: `
fn weight_f32(base: i32, n: i32, k: i32, K: i32) -> f32 {
  return vector_at(base + ((n / ${WGSL_PANEL}) * K + k) * ${WGSL_PANEL} + n % ${WGSL_PANEL});
}`,
    integers: null,
  },
  assembly: {
    weight: `
function weightf32(w: usize, n: i32, k: i32, K: i32): f32 {
  return load<f32>(w + ((<usize>(((n >> 3) * K + k) * 8 + (n & 7))) << 2));
}`,
    unpack: null,
    load: (u) => [
      `const b${u}: v128 = v128.load(w, ${u * 32});`,
      `const d${u}: v128 = v128.load(w, ${u * 32 + 16});`,
    ],
    scales: [],
    integers: null,
  },
};
export const f32Values: FormatValues = {
  encode: (values, n, k) => [new Uint32Array(values.buffer, values.byteOffset, n * k)],
  decode: ([bits]) => new Float32Array(bits!.buffer, bits!.byteOffset, bits!.length),
};
