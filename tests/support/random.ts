/**
 * Deterministic numbers from integers alone, so that another language can make the same ones
 * (tests/fixtures/make.py).
 */
export function generator(name: string): () => number {
  let s = 2166136261;
  for (let i = 0; i < name.length; i++) s = Math.imul(s ^ name.charCodeAt(i), 16777619) >>> 0;
  s = (s | 1) >>> 0;
  return () => {
    s ^= s << 13;
    s >>>= 0;
    s ^= s >>> 17;
    s ^= s << 5;
    s >>>= 0;
    return s;
  };
}
/** Uniform in [-1, 1) on a 2^-23 grid. */
export function uniform(name: string, n: number): Float32Array {
  const next = generator(name);
  const out = new Float32Array(n);
  for (let i = 0; i < n; i++) out[i] = (next() >>> 8) / 8388608 - 1;
  return out;
}
/** A random model tensor: matrices scaled by 2 / sqrt(fan in), gains around 1, biases around 0. */
export function tensor(name: string, shape: readonly number[], seed = 0): Float32Array {
  const n = shape.reduce((a, b) => a * b, 1);
  const u = uniform(`${name}#${seed}`, n);
  if (name.endsWith("bias")) return u.map((x) => x * 0.25);
  if (shape.length === 1) return u.map((x) => 1 + x * 0.25);
  const scale = 2 ** Math.round(Math.log2(1.5 / Math.sqrt(shape[1]!)));
  return u.map((x) => x * scale);
}
