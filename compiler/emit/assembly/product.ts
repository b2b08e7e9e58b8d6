/**
 * The compiler's own product of matrices, for what it computes ahead of time. All operands are the caller's.
 */

// @ts-ignore: decorator
@inline function dot4(a: usize, b: usize, sum: v128): v128 {
  return f32x4.add(f32x4.mul(v128.load(a), v128.load(b)), sum);
}
// @ts-ignore: decorator
@inline function across(v: v128): f32 {
  return (f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1))
    + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}
/** C [m, n] = A [m, k] · B [n, k]ᵀ in f32: m even, n and k multiples of 4. */
export function product(a: usize, b: usize, c: usize, m: i32, n: i32, k: i32): void {
  const row: usize = <usize>k << 2;
  for (let i: i32 = 0; i < m; i += 2)
    for (let j: i32 = 0; j < n; j += 4) {
      let a0: usize = a + <usize>i * row;
      let b0: usize = b + <usize>j * row;
      const end: usize = a0 + row;
      let c00: v128 = f32x4.splat(0);
      let c01: v128 = f32x4.splat(0);
      let c02: v128 = f32x4.splat(0);
      let c03: v128 = f32x4.splat(0);
      let c10: v128 = f32x4.splat(0);
      let c11: v128 = f32x4.splat(0);
      let c12: v128 = f32x4.splat(0);
      let c13: v128 = f32x4.splat(0);
      for (; a0 < end; a0 += 16, b0 += 16) {
        c00 = dot4(a0, b0, c00);
        c10 = dot4(a0 + row, b0, c10);
        c01 = dot4(a0, b0 + row, c01);
        c11 = dot4(a0 + row, b0 + row, c11);
        c02 = dot4(a0, b0 + 2 * row, c02);
        c12 = dot4(a0 + row, b0 + 2 * row, c12);
        c03 = dot4(a0, b0 + 3 * row, c03);
        c13 = dot4(a0 + row, b0 + 3 * row, c13);
      }
      const to: usize = c + (<usize>(i * n + j) << 2);
      const next: usize = to + (<usize>n << 2);
      f32.store(to, across(c00));
      f32.store(to, across(c01), 4);
      f32.store(to, across(c02), 8);
      f32.store(to, across(c03), 12);
      f32.store(next, across(c10));
      f32.store(next, across(c11), 4);
      f32.store(next, across(c12), 8);
      f32.store(next, across(c13), 12);
    }
}
