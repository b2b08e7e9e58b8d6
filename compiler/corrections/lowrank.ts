/** Low-rank approximation of a matrix where it matters: weighed by what enters it. */
import { transpose } from "../../runtime/bundle.ts";
import type { Product } from "./product.ts";

/** ΔW ≈ Bᵀ·A: A [rank, in], B [rank, out]. */
export interface Factors {
  readonly a: Float32Array;
  readonly b: Float32Array;
}
/** Of the mean square of what enters, in every direction: rows that were not seen count a little too. */
const DAMPING = 0.01;
/** Of the power method. */
const ROUNDS = 8;

/**
 * The rank-r D that makes ‖(M − D)·Xᵀ‖² + damping · ‖M − D‖² least, for M [out, in] and rows X [n, in]: the
 * projection of M onto the `rank` leading eigenvectors of M·C·Mᵀ, C = XᵀX + damping · 1, which is what the
 * truncated SVD of M·C^½, times C^-½, comes to. The vectors are found by the block power method.
 */
export function leading(
  product: Product,
  m: Float32Array,
  x: Float32Array,
  [out, ins]: readonly [number, number],
  rank: number,
): Factors {
  const rows = x.length / ins;
  const [mT, xT] = [transpose(m, out, ins), transpose(x, rows, ins)];
  const damping = dampingOf(x, ins);
  const r = Math.min(rank, out, ins);
  let state = 1;
  let u: Float32Array = Float32Array.from({ length: r * out }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  });
  orthonormal(u, out);
  for (let round = 0; round < ROUNDS; round++) {
    const v = product(u, mT, r, ins, out);
    const seen = product(product(v, x, r, rows, ins), xT, r, ins, rows);
    for (let i = 0; i < v.length; i++) seen[i] = seen[i]! + damping * v[i]!;
    u = product(seen, m, r, out, ins);
    orthonormal(u, out);
  }
  const [a, b] = [new Float32Array(rank * ins), new Float32Array(rank * out)];
  a.set(product(u, mT, r, ins, out));
  b.set(u);
  return { a, b };
}
/** DAMPING times the mean over columns of their squares' sums. Of no rows 1: every direction counts alike. */
export function dampingOf(x: Float32Array, cols: number): number {
  if (!x.length) return 1;
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i]! * x[i]!;
  return (DAMPING * sum) / cols;
}
/**
 * Rows [n, cols] made orthonormal in place, in f64 (Gram-Schmidt, twice); one that others span becomes zero.
 */
function orthonormal(u: Float32Array, cols: number): void {
  const done: Float64Array[] = [];
  for (let at = 0; at < u.length; at += cols) {
    const row = Float64Array.from(u.subarray(at, at + cols));
    const length = (): number => Math.sqrt(dot(row, row));
    const before = length();
    for (let again = 0; again < 2; again++)
      for (const other of done) {
        const along = dot(row, other);
        for (let i = 0; i < cols; i++) row[i] = row[i]! - along * other[i]!;
      }
    const after = length();
    const scale = after > 1e-6 * before ? 1 / after : 0;
    for (let i = 0; i < cols; i++) row[i] = row[i]! * scale;
    if (scale) done.push(row);
    u.set(row, at);
  }
}
function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}
/** S⁻¹·R of a symmetric positive S [n, n] and R [n, cols], in f64 by Cholesky's factors; S is used up. */
export function solved(s: Float64Array, n: number, r: Float32Array, cols: number): Float32Array {
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) {
      let sum = s[i * n + j]!;
      for (let k = 0; k < j; k++) sum -= s[i * n + k]! * s[j * n + k]!;
      s[i * n + j] = i === j ? Math.sqrt(sum) : sum / s[j * n + j]!;
    }
  }
  const y = Float64Array.from(r);
  const take = (from: number, to: number, times: number): void => {
    for (let c = 0; c < cols; c++) y[to * cols + c] = y[to * cols + c]! - times * y[from * cols + c]!;
  };
  const divide = (i: number): void => {
    for (let c = 0; c < cols; c++) y[i * cols + c] = y[i * cols + c]! / s[i * n + i]!;
  };
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) take(k, i, s[i * n + k]!);
    divide(i);
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) take(k, i, s[k * n + i]!);
    divide(i);
  }
  return Float32Array.from(y);
}
