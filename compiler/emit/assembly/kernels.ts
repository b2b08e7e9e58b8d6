/**
 * The hand-written inner loops of the Wasm target, beside exp.ts: vector log and tanh, low-rank deltas, the
 * counter-based hash. All state is in the memory the caller points at; no data section, no globals, no
 * allocation.
 */
function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}
// log: Cephes logf; error below 2e-7 of the larger of 1 and |log x|, for normal positive inputs.
function log4(x: v128): v128 {
  let e: v128 = f32x4.convert_i32x4_s(i32x4.sub(i32x4.shr_s(x, 23), i32x4.splat(126)));
  let m: v128 = v128.or(v128.and(x, i32x4.splat(0x007fffff)), i32x4.splat(0x3f000000));
  const low: v128 = f32x4.lt(m, f32x4.splat(0.707106781186547524));
  e = f32x4.sub(e, v128.and(low, f32x4.splat(1)));
  m = f32x4.add(f32x4.sub(m, f32x4.splat(1)), v128.and(low, m));
  const z: v128 = f32x4.mul(m, m);
  let y: v128 = f32x4.splat(7.0376836292e-2);
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(-1.1514610310e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(1.1676998740e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(-1.2420140846e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(1.4249322787e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(-1.6668057665e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(2.0000714765e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(-2.4999993993e-1));
  y = f32x4.add(f32x4.mul(y, m), f32x4.splat(3.3333331174e-1));
  y = f32x4.sub(
    f32x4.sub(f32x4.mul(f32x4.mul(y, m), z), f32x4.mul(e, f32x4.splat(2.12194440e-4))),
    f32x4.mul(f32x4.splat(0.5), z));
  return f32x4.add(f32x4.add(m, y), f32x4.mul(e, f32x4.splat(0.693359375)));
}
function log1(x: f32): f32 {
  return f32x4.extract_lane(log4(f32x4.splat(x)), 0);
}
// tanh(x) = 1 - 2 / (exp(2x) + 1): absolute error below 2e-7.
function tanh4(x: v128): v128 {
  return f32x4.sub(
    f32x4.splat(1),
    f32x4.div(f32x4.splat(2), f32x4.add(exp4(f32x4.add(x, x)), f32x4.splat(1))));
}
function tanh1(x: f32): f32 {
  return f32x4.extract_lane(tanh4(f32x4.splat(x)), 0);
}
// @ts-ignore: decorator
@inline function sqrtf(x: f32): f32 {
  return sqrt<f32>(x);
}
function hsum(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1)
    + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}
function hmax(v: v128): f32 {
  const a: f32 = f32x4.extract_lane(v, 0);
  const b: f32 = f32x4.extract_lane(v, 1);
  const c: f32 = f32x4.extract_lane(v, 2);
  const d: f32 = f32x4.extract_lane(v, 3);
  const x: f32 = a < b ? b : a;
  const y: f32 = c < d ? d : c;
  return x < y ? y : x;
}
/** a · b + c, the inner step of every product. */
// @ts-ignore: decorator
@inline function madd(a: v128, b: v128, c: v128): v128 {
  return f32x4.add(f32x4.mul(a, b), c);
}
function rand1(key: i32, salt: i32, col: i32): f32 {
  let h: u32 = <u32>key ^ (<u32>(salt + 1) * 0x9e3779b9) ^ (<u32>(col + 1) * 0x85ebca6b);
  h = (h ^ (h >> 16)) * 0x7feb352d;
  h = (h ^ (h >> 15)) * 0x846ca68b;
  h = h ^ (h >> 16);
  return <f32>(h >> 8) * <f32>5.9604644775390625e-8;
}
function rand4(key: i32, salt: i32, col: i32): v128 {
  const c: v128 = i32x4.add(i32x4.splat(col + 1), i32x4(0, 1, 2, 3));
  let h: v128 = v128.xor(
    i32x4.splat(key ^ <i32>(<u32>(salt + 1) * 0x9e3779b9)),
    i32x4.mul(c, i32x4.splat(<i32>0x85ebca6b)));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 16)), i32x4.splat(0x7feb352d));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 15)), i32x4.splat(<i32>0x846ca68b));
  h = v128.xor(h, i32x4.shr_u(h, 16));
  return f32x4.mul(f32x4.convert_i32x4_s(i32x4.shr_u(h, 8)), f32x4.splat(5.9604644775390625e-8));
}

/** Halves, sign-extended to 32 bits, to f32: exact for every finite value, subnormals included. */
// @ts-ignore: decorator
@inline function widen(h: v128): v128 {
  return f32x4.mul(
    v128.and(i32x4.shl(h, 13), i32x4.splat(0x8fffe000)),
    f32x4.splat(reinterpret<f32>(0x77800000)));
}
/** Four packed halves to f32. */
// @ts-ignore: decorator
@inline function half4(p: usize): v128 {
  return widen(i32x4.extend_low_i16x8_s(v128.load64_zero(p)));
}
function half1(h: u32): f32 {
  return reinterpret<f32>(
    reinterpret<u32>(reinterpret<f32>((h & 0x7fff) << 13) * reinterpret<f32>(0x77800000))
      | ((h & 0x8000) << 16));
}
/**
 * f32 to halves, to nearest even, in the lower halves of lanes: at most 65504; what is no number stays so.
 */
function halves4(x: v128): v128 {
  const sign: v128 = v128.and(x, i32x4.splat(0x80000000));
  const a: v128 = f32x4.pmin(f32x4.splat(65504), v128.xor(x, sign));
  const odd: v128 = v128.and(i32x4.shr_u(a, 13), i32x4.splat(1));
  const normal: v128 = i32x4.shr_u(i32x4.add(a, i32x4.add(odd, i32x4.splat(0xc8000fff))), 13);
  // Below 2^-14 a sum with 1/2 leaves the half's bits at its end.
  const small: v128 = i32x4.sub(f32x4.add(a, f32x4.splat(0.5)), i32x4.splat(0x3f000000));
  const h: v128 = v128.bitselect(small, normal, f32x4.lt(a, f32x4.splat(reinterpret<f32>(0x38800000))));
  const number: v128 = v128.bitselect(h, i32x4.splat(0x7e00), f32x4.eq(x, x));
  return v128.or(number, i32x4.shr_u(sign, 16));
}
/** Four packed halves, in the lower half of the vector. */
function narrow4(x: v128): v128 {
  const h: v128 = halves4(x);
  return i8x16.shuffle(h, h, 0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13);
}
function narrow1(x: f32): u16 {
  return <u16>i32x4.extract_lane(halves4(f32x4.splat(x)), 0);
}
/** Start of a row's keys or values in the paged cache: [block][k|v][head][32] rows of so many bytes. */
function kvRow(kv: usize, meta: usize, table: i32, pos: i32, part: i32, heads: i32, bytes: i32): usize {
  const block: i32 = load<i32>(meta + ((<usize>(table + (pos >> 5))) << 2));
  return kv + <usize>((block * 2 + part) * heads * 32 + (pos & 31)) * <usize>bytes;
}
/** Σ_r u[r] · F[r], r ascending: four rows to a quad, which begins at f past the place that *quads says. */
function expand4(u: usize, quads: usize, f: usize, rank: i32, stride: i32): v128 {
  let acc: v128 = f32x4.splat(0);
  const row: usize = <usize>stride;
  let r: i32 = 0;
  for (; r + 4 <= rank; r += 4) {
    const q: usize = f + ((<usize>load<i32>(quads)) << 2);
    acc = madd(v128.load_splat<f32>(u), v128.load(q), acc);
    acc = madd(v128.load_splat<f32>(u, 4), v128.load(q + row), acc);
    acc = madd(v128.load_splat<f32>(u, 8), v128.load(q + 2 * row), acc);
    acc = madd(v128.load_splat<f32>(u, 12), v128.load(q + 3 * row), acc);
    u += 16;
    quads += 8;
  }
  if (r < rank) {
    let q: usize = f + ((<usize>load<i32>(quads)) << 2);
    for (; r < rank; r++) {
      acc = madd(v128.load_splat<f32>(u), v128.load(q), acc);
      u += 4;
      q += row;
    }
  }
  return acc;
}
/**
 * Low-rank deltas for a product's epilogue: out[row][panels × 8] = Σ_r u[row][r] · F[slot[row]][r], r
 * ascending as in expand4. Four rows of one slot share the factor's loads. A slot's rank is at `ranks`, what
 * its quads are two words after it.
 */
function delta(
  u: usize, uStride: i32, rows: i32, slots: usize, ranks: usize, slotEntry: i32,
  f: usize, colBytes: i32, panels: i32, out: usize
): void {
  const u1: usize = <usize>uStride;
  let i: i32 = 0;
  while (i < rows) {
    const s: i32 = load<i32>(slots);
    const entry: usize = ranks + <usize>(s * slotEntry);
    const rank: i32 = load<i32>(entry);
    const quads: usize = entry + 8;
    if (i + 4 <= rows && load<i32>(slots, 4) == s && load<i32>(slots, 8) == s && load<i32>(slots, 12) == s) {
      for (let p: i32 = 0; p < panels; p++) {
        let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0,
          c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
        let fp: usize = 0;
        let up: usize = u;
        for (let r: i32 = 0; r < rank; r++) {
          if (!(r & 3)) fp = f + ((<usize>load<i32>(quads + ((<usize>r) << 1))) << 2) + <usize>p * 32;
          const w0: v128 = v128.load(fp);
          const w1: v128 = v128.load(fp, 16);
          let x: v128 = v128.load_splat<f32>(up);
          a0 = madd(x, w0, a0);
          a1 = madd(x, w1, a1);
          x = v128.load_splat<f32>(up + u1);
          b0 = madd(x, w0, b0);
          b1 = madd(x, w1, b1);
          x = v128.load_splat<f32>(up + 2 * u1);
          c0 = madd(x, w0, c0);
          c1 = madd(x, w1, c1);
          x = v128.load_splat<f32>(up + 3 * u1);
          d0 = madd(x, w0, d0);
          d1 = madd(x, w1, d1);
          up += 4;
          fp += <usize>colBytes;
        }
        const o: usize = out + <usize>p * 32;
        v128.store(o, a0);
        v128.store(o, a1, 16);
        v128.store(o, b0, 256);
        v128.store(o, b1, 272);
        v128.store(o, c0, 512);
        v128.store(o, c1, 528);
        v128.store(o, d0, 768);
        v128.store(o, d1, 784);
      }
      i += 4;
      u += 4 * u1;
      slots += 16;
      out += 1024;
    } else {
      for (let h: i32 = 0; h < panels * 2; h++)
        v128.store(out + <usize>h * 16, expand4(u, quads, f + <usize>h * 16, rank, colBytes));
      i++;
      u += u1;
      slots += 4;
      out += 256;
    }
  }
}
/**
 * Σ of a sparse matrix's row (or, through `order`, column) with a vector: values[e] · x[at[e]], entries from
 * *start to *(start + 1).
 */
function sparse1(x: usize, values: usize, start: usize, order: usize, at: usize): f32 {
  let sum: f32 = 0;
  const end: i32 = <i32>load<f32>(start, 4);
  for (let k: i32 = <i32>load<f32>(start); k < end; k++) {
    const e: usize = order == 0 ? (<usize>k) << 2 : (<usize>load<f32>(order + ((<usize>k) << 2))) << 2;
    sum += load<f32>(values + e) * load<f32>(x + ((<usize>load<f32>(at + e)) << 2));
  }
  return sum;
}
function dot1(a: usize, b: usize, step: i32, n: i32): f32 {
  let sums: v128 = f32x4.splat(0);
  let k: i32 = 0;
  if (step == 1)
    for (; k + 4 <= n; k += 4, a += 16, b += 16) sums = madd(v128.load(a), v128.load(b), sums);
  let sum: f32 = hsum(sums);
  for (; k < n; k++) {
    sum += load<f32>(a) * load<f32>(b);
    a += (<usize>step) << 2;
    b += (<usize>step) << 2;
  }
  return sum;
}
function expand1(u: usize, quads: usize, f: usize, rank: i32, stride: i32): f32 {
  let acc: f32 = 0;
  let q: usize = 0;
  for (let r: i32 = 0; r < rank; r++) {
    if (!(r & 3)) q = f + ((<usize>load<i32>(quads + ((<usize>r) << 1))) << 2);
    acc += load<f32>(u) * load<f32>(q);
    u += 4;
    q += stride;
  }
  return acc;
}

/** One thread's share of `total` pieces begins here; the next thread's begins where it ends. */
// @ts-ignore: decorator
@inline function share(total: i32, part: i32, parts: i32): i32 {
  return total * part / parts;
}
function clear(at: usize, bytes: i32): void {
  const end: usize = at + <usize>bytes;
  for (; at < end; at += 32) {
    v128.store(at, f32x4.splat(0));
    v128.store(at, f32x4.splat(0), 16);
  }
}
// Lanes a0 a1 a2 a3 of four vectors as columns of the other three.
// @ts-ignore: decorator
@inline function turn4(a: v128, b: v128, c: v128, d: v128, out: usize): void {
  const ab: v128 = i32x4.shuffle(a, b, 0, 4, 1, 5);
  const cd: v128 = i32x4.shuffle(c, d, 0, 4, 1, 5);
  const AB: v128 = i32x4.shuffle(a, b, 2, 6, 3, 7);
  const CD: v128 = i32x4.shuffle(c, d, 2, 6, 3, 7);
  v128.store(out, i64x2.shuffle(ab, cd, 0, 2));
  v128.store(out, i64x2.shuffle(ab, cd, 1, 3), 32);
  v128.store(out, i64x2.shuffle(AB, CD, 0, 2), 64);
  v128.store(out, i64x2.shuffle(AB, CD, 1, 3), 96);
}
/**
 * `count` blocks of [8 k][8 n] below one another, each turned to [8 n][8 k] at a place of its own, `apart`
 * bytes apart.
 */
function turn(w: usize, count: i32, out: usize, apart: usize): void {
  for (let i: i32 = 0; i < count; i++) {
    for (let half: usize = 0; half < 32; half += 16) {
      const p: usize = w + half;
      const o: usize = out + half * 8;
      turn4(v128.load(p), v128.load(p, 32), v128.load(p, 64), v128.load(p, 96), o);
      turn4(v128.load(p, 128), v128.load(p, 160), v128.load(p, 192), v128.load(p, 224), o + 16);
    }
    w += 256;
    out += apart;
  }
}
