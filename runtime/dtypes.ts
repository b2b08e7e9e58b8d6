/** Numbers as files have them: their kinds, and halves, which JavaScript has none of. */
export type Dtype = "F32" | "F16" | "BF16" | "I32" | "I8" | "U8";
export const dtypeBytes: Readonly<Record<Dtype, number>> = { F32: 4, F16: 2, BF16: 2, I32: 4, I8: 1, U8: 1 };

const half = new Float32Array(1);
const halfBits = new Uint32Array(half.buffer);
/** What each half is, by its bits. */
let table: Float32Array | undefined;
const halves = (): Float32Array =>
  (table ??= Float32Array.from({ length: 2 ** 16 }, (_, bits) => widened(bits)));
/** IEEE half bits → number. */
export const halfToFloat = (h: number): number => halves()[h]!;
/** As many halves as `to` has room for: three times as fast as one by one. */
export function halvesToFloats(from: Uint16Array, to: Float32Array): Float32Array {
  const all = halves();
  for (let i = 0; i < to.length; i++) to[i] = all[from[i]!]!;
  return to;
}
function widened(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const e = (h >> 10) & 31;
  const m = h & 1023;
  if (e === 0) return sign * m * 2 ** -24;
  if (e === 31) return m ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + m / 1024) * 2 ** (e - 15);
}
/** number → IEEE half bits, round to nearest even; values beyond the range saturate to infinity. */
export function floatToHalf(x: number): number {
  half[0] = x;
  const b = halfBits[0]!;
  const sign = (b >>> 16) & 0x8000;
  const abs = b & 0x7fffffff;
  if (abs >= 0x7f800000) return sign | (abs > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (abs >= 0x477ff000) return sign | 0x7c00;
  if (abs < 0x38800000) {
    const m = Math.abs(half[0]!) * 2 ** 24;
    const r = Math.round(m);
    return sign | (Math.abs(m - Math.trunc(m)) === 0.5 && r % 2 ? r - 1 : r);
  }
  const rounded = abs + 0xfff + ((abs >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}
