/**
 * The hand-written inner loops of the Wasm target: tiles of matrix products over 8-column panels, vector exp/log, the counter-based hash. All state
 * is in the memory the caller points at; no data section, no globals, no allocation.
 */
// exp: 2^n · poly(r), Cephes expf coefficients; relative error below 2e-7 on [-87, 88], inputs are clamped to that range.
function exp4(x: v128): v128 {
  x = f32x4.pmax(f32x4.pmin(x, f32x4.splat(88.3762626647949)), f32x4.splat(-87.3365447504019));
  const n: v128 = f32x4.floor(f32x4.add(f32x4.mul(x, f32x4.splat(1.44269504088896341)), f32x4.splat(0.5)));
  x = f32x4.sub(x, f32x4.mul(n, f32x4.splat(0.693359375)));
  x = f32x4.sub(x, f32x4.mul(n, f32x4.splat(-2.12194440e-4)));
  let y: v128 = f32x4.splat(1.9875691500e-4);
  y = f32x4.add(f32x4.mul(y, x), f32x4.splat(1.3981999507e-3));
  y = f32x4.add(f32x4.mul(y, x), f32x4.splat(8.3334519073e-3));
  y = f32x4.add(f32x4.mul(y, x), f32x4.splat(4.1665795894e-2));
  y = f32x4.add(f32x4.mul(y, x), f32x4.splat(1.6666665459e-1));
  y = f32x4.add(f32x4.mul(y, x), f32x4.splat(5.0000001201e-1));
  y = f32x4.add(f32x4.add(f32x4.mul(y, f32x4.mul(x, x)), x), f32x4.splat(1));
  const e: v128 = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(y, e);
}
function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(f32x4.splat(x)), 0);
}
// log: Cephes logf; relative error below 2e-7 for normal positive inputs.
function log1(x: f32): f32 {
  const bits: i32 = reinterpret<i32>(x);
  let e: f32 = <f32>((bits >> 23) - 126);
  let m: f32 = reinterpret<f32>((bits & 0x007fffff) | 0x3f000000);
  if (m < 0.707106781186547524) {
    e -= 1;
    m = m + m - 1;
  } else m -= 1;
  const z: f32 = m * m;
  let y: f32 = <f32>7.0376836292e-2;
  y = y * m + <f32>-1.1514610310e-1;
  y = y * m + <f32>1.1676998740e-1;
  y = y * m + <f32>-1.2420140846e-1;
  y = y * m + <f32>1.4249322787e-1;
  y = y * m + <f32>-1.6668057665e-1;
  y = y * m + <f32>2.0000714765e-1;
  y = y * m + <f32>-2.4999993993e-1;
  y = y * m + <f32>3.3333331174e-1;
  y = y * m * z + e * <f32>-2.12194440e-4 - <f32>0.5 * z;
  return m + y + e * <f32>0.693359375;
}
function log4(x: v128): v128 {
  let y: v128 = f32x4.splat(log1(f32x4.extract_lane(x, 0)));
  y = f32x4.replace_lane(y, 1, log1(f32x4.extract_lane(x, 1)));
  y = f32x4.replace_lane(y, 2, log1(f32x4.extract_lane(x, 2)));
  return f32x4.replace_lane(y, 3, log1(f32x4.extract_lane(x, 3)));
}
// tanh(x) = 1 - 2 / (exp(2x) + 1): absolute error below 2e-7.
function tanh4(x: v128): v128 {
  return f32x4.sub(f32x4.splat(1), f32x4.div(f32x4.splat(2), f32x4.add(exp4(f32x4.add(x, x)), f32x4.splat(1))));
}
function tanh1(x: f32): f32 {
  return f32x4.extract_lane(tanh4(f32x4.splat(x)), 0);
}
// @ts-ignore: decorator
@inline function sqrtf(x: f32): f32 {
  return sqrt<f32>(x);
}
function hsum(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
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
function rand1(key: i32, salt: i32, col: i32): f32 {
  let h: u32 = <u32>key ^ (<u32>(salt + 1) * 0x9e3779b9) ^ (<u32>(col + 1) * 0x85ebca6b);
  h = (h ^ (h >> 16)) * 0x7feb352d;
  h = (h ^ (h >> 15)) * 0x846ca68b;
  h = h ^ (h >> 16);
  return <f32>(h >> 8) * <f32>5.9604644775390625e-8;
}
function rand4(key: i32, salt: i32, col: i32): v128 {
  const c: v128 = i32x4.add(i32x4.splat(col + 1), i32x4(0, 1, 2, 3));
  let h: v128 = v128.xor(i32x4.splat(key ^ <i32>(<u32>(salt + 1) * 0x9e3779b9)), i32x4.mul(c, i32x4.splat(<i32>0x85ebca6b)));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 16)), i32x4.splat(0x7feb352d));
  h = i32x4.mul(v128.xor(h, i32x4.shr_u(h, 15)), i32x4.splat(<i32>0x846ca68b));
  h = v128.xor(h, i32x4.shr_u(h, 16));
  return f32x4.mul(f32x4.convert_i32x4_s(i32x4.shr_u(h, 8)), f32x4.splat(5.9604644775390625e-8));
}

/** Four packed halves to f32: exact for every finite value, subnormals included. */
// @ts-ignore: decorator
@inline function half4(p: usize): v128 {
  const h: v128 = i32x4.extend_low_i16x8_u(v128.load64_zero(p));
  const mag: v128 = f32x4.mul(i32x4.shl(v128.and(h, i32x4.splat(0x7fff)), 13), f32x4.splat(reinterpret<f32>(0x77800000)));
  return v128.or(mag, i32x4.shl(v128.and(h, i32x4.splat(0x8000)), 16));
}
function weightf32(w: usize, n: i32, k: i32, K: i32): f32 {
  return load<f32>(w + ((<usize>(((n >> 3) * K + k) * 8 + (n & 7))) << 2));
}
function weightf16(w: usize, n: i32, k: i32, K: i32): f32 {
  const h: u32 = load<u16>(w + ((<usize>(((n >> 3) * K + k) * 8 + (n & 7))) << 1));
  return reinterpret<f32>(reinterpret<u32>(reinterpret<f32>((h & 0x7fff) << 13) * reinterpret<f32>(0x77800000)) | ((h & 0x8000) << 16));
}
/** Start of a row's keys or values in the paged cache: [block][k|v][head][32][head_dim]. */
function kvRow(kv: usize, meta: usize, table: i32, pos: i32, part: i32, heads: i32, hd: i32): usize {
  const block: i32 = load<i32>(meta + ((<usize>(table + (pos >> 5))) << 2));
  return kv + ((<usize>((block * 2 + part) * heads * 32 * hd + (pos & 31) * hd)) << 2);
}
function expand4(u: usize, f: usize, rank: i32, stride: i32): v128 {
  let acc: v128 = f32x4.splat(0);
  for (let r: i32 = 0; r < rank; r++) {
    acc = f32x4.add(acc, f32x4.mul(v128.load_splat<f32>(u), v128.load(f)));
    u += 4;
    f += stride;
  }
  return acc;
}
/**
 * Low-rank deltas of up to 4 rows × 8 columns, for a product's epilogue: out[row] = Σ_r u[row][r] · F[slot[row]][r], r ascending as in expand4. Rows of
 * one slot share the factor's loads. `half` is 1 for 8 columns, 0 for 4.
 */
function delta(u: usize, uStride: i32, rows: i32, slots: usize, ranks: usize, slotEntry: i32, f: usize, slotBytes: i32, colBytes: i32, half: i32, out: usize): void {
  const s0: i32 = load<i32>(slots);
  if (rows == 4 && load<i32>(slots, 4) == s0 && load<i32>(slots, 8) == s0 && load<i32>(slots, 12) == s0) {
    const rank: i32 = load<i32>(ranks + <usize>(s0 * slotEntry));
    for (let h: i32 = 0; h <= half; h++) {
      let a: v128 = f32x4.splat(0), b: v128 = a, c: v128 = a, d: v128 = a;
      let fp: usize = f + <usize>(s0 * slotBytes) + <usize>h * 16;
      let up: usize = u;
      const u1: usize = <usize>uStride;
      for (let r: i32 = 0; r < rank; r++) {
        const w: v128 = v128.load(fp);
        a = f32x4.add(a, f32x4.mul(v128.load_splat<f32>(up), w));
        b = f32x4.add(b, f32x4.mul(v128.load_splat<f32>(up + u1), w));
        c = f32x4.add(c, f32x4.mul(v128.load_splat<f32>(up + 2 * u1), w));
        d = f32x4.add(d, f32x4.mul(v128.load_splat<f32>(up + 3 * u1), w));
        up += 4;
        fp += <usize>colBytes;
      }
      const o: usize = out + <usize>h * 16;
      v128.store(o, a);
      v128.store(o, b, 32);
      v128.store(o, c, 64);
      v128.store(o, d, 96);
    }
    return;
  }
  for (let i: i32 = 0; i < rows; i++) {
    const s: i32 = load<i32>(slots + ((<usize>i) << 2));
    const rank: i32 = load<i32>(ranks + <usize>(s * slotEntry));
    const fp: usize = f + <usize>(s * slotBytes);
    for (let h: i32 = 0; h <= half; h++) v128.store(out + <usize>i * 32 + <usize>h * 16, expand4(u + <usize>(i * uStride), fp + <usize>h * 16, rank, colBytes));
  }
}
/** Σ of a sparse matrix's row (or, through `order`, column) with a vector: values[e] · x[at[e]], entries from *start to *(start + 1). */
function sparse1(x: usize, values: usize, start: usize, order: usize, at: usize): f32 {
  let sum: f32 = 0;
  const end: i32 = <i32>load<f32>(start, 4);
  for (let k: i32 = <i32>load<f32>(start); k < end; k++) {
    const e: usize = order == 0 ? (<usize>k) << 2 : (<usize>load<f32>(order + ((<usize>k) << 2))) << 2;
    sum += load<f32>(values + e) * load<f32>(x + ((<usize>load<f32>(at + e)) << 2));
  }
  return sum;
}
function expand1(u: usize, f: usize, rank: i32, stride: i32): f32 {
  let acc: f32 = 0;
  for (let r: i32 = 0; r < rank; r++) {
    acc += load<f32>(u) * load<f32>(f);
    u += 4;
    f += stride;
  }
  return acc;
}

// y tile [4 rows][8] = x · panelᵀ, k ascending in every lane.
function nt4_f32(x0: usize, x1: usize, x2: usize, x3: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0, c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
  const end: usize = x0 + ((<usize>K) << 2);
  while (x0 < end) {
    const w0: v128 = v128.load(w);
    const w1: v128 = v128.load(w, 16);
    let x: v128 = v128.load_splat<f32>(x0);
    a0 = f32x4.add(a0, f32x4.mul(x, w0));
    a1 = f32x4.add(a1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x1);
    b0 = f32x4.add(b0, f32x4.mul(x, w0));
    b1 = f32x4.add(b1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x2);
    c0 = f32x4.add(c0, f32x4.mul(x, w0));
    c1 = f32x4.add(c1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x3);
    d0 = f32x4.add(d0, f32x4.mul(x, w0));
    d1 = f32x4.add(d1, f32x4.mul(x, w1));
    x0 += 4;
    x1 += 4;
    x2 += 4;
    x3 += 4;
    w += 32;
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
  v128.store(out, b0, 32);
  v128.store(out, b1, 48);
  v128.store(out, c0, 64);
  v128.store(out, c1, 80);
  v128.store(out, d0, 96);
  v128.store(out, d1, 112);
}
// y [1 row][4 panels × 8]: four panels at once hide the latency of one running sum.
function nt1x4_f32(x: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0, c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
  const end: usize = x + ((<usize>K) << 2);
  const p1: usize = w + <usize>K * 32;
  const p2: usize = p1 + <usize>K * 32;
  const p3: usize = p2 + <usize>K * 32;
  let o: usize = 0;
  while (x < end) {
    const s: v128 = v128.load_splat<f32>(x);
    a0 = f32x4.add(a0, f32x4.mul(s, v128.load(w + o)));
    a1 = f32x4.add(a1, f32x4.mul(s, v128.load(w + o, 16)));
    b0 = f32x4.add(b0, f32x4.mul(s, v128.load(p1 + o)));
    b1 = f32x4.add(b1, f32x4.mul(s, v128.load(p1 + o, 16)));
    c0 = f32x4.add(c0, f32x4.mul(s, v128.load(p2 + o)));
    c1 = f32x4.add(c1, f32x4.mul(s, v128.load(p2 + o, 16)));
    d0 = f32x4.add(d0, f32x4.mul(s, v128.load(p3 + o)));
    d1 = f32x4.add(d1, f32x4.mul(s, v128.load(p3 + o, 16)));
    x += 4;
    o += 32;
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
  v128.store(out, b0, 32);
  v128.store(out, b1, 48);
  v128.store(out, c0, 64);
  v128.store(out, c1, 80);
  v128.store(out, d0, 96);
  v128.store(out, d1, 112);
}
function nt1_f32(x: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0;
  const end: usize = x + ((<usize>K) << 2);
  while (x < end) {
    const s: v128 = v128.load_splat<f32>(x);
    a0 = f32x4.add(a0, f32x4.mul(s, v128.load(w)));
    a1 = f32x4.add(a1, f32x4.mul(s, v128.load(w, 16)));
    x += 4;
    w += 32;
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
}
// The same tile over packed halves: each panel row is widened as it is read.
function nt4_f16(x0: usize, x1: usize, x2: usize, x3: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0, c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
  const end: usize = x0 + ((<usize>K) << 2);
  while (x0 < end) {
    const w0: v128 = half4(w);
    const w1: v128 = half4(w + 8);
    let x: v128 = v128.load_splat<f32>(x0);
    a0 = f32x4.add(a0, f32x4.mul(x, w0));
    a1 = f32x4.add(a1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x1);
    b0 = f32x4.add(b0, f32x4.mul(x, w0));
    b1 = f32x4.add(b1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x2);
    c0 = f32x4.add(c0, f32x4.mul(x, w0));
    c1 = f32x4.add(c1, f32x4.mul(x, w1));
    x = v128.load_splat<f32>(x3);
    d0 = f32x4.add(d0, f32x4.mul(x, w0));
    d1 = f32x4.add(d1, f32x4.mul(x, w1));
    x0 += 4;
    x1 += 4;
    x2 += 4;
    x3 += 4;
    w += 16;
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
  v128.store(out, b0, 32);
  v128.store(out, b1, 48);
  v128.store(out, c0, 64);
  v128.store(out, c1, 80);
  v128.store(out, d0, 96);
  v128.store(out, d1, 112);
}
function nt1_f16(x: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0;
  const end: usize = x + ((<usize>K) << 2);
  while (x < end) {
    const s: v128 = v128.load_splat<f32>(x);
    a0 = f32x4.add(a0, f32x4.mul(s, half4(w)));
    a1 = f32x4.add(a1, f32x4.mul(s, half4(w + 8)));
    x += 4;
    w += 16;
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
}
function nt1x4_f16(x: usize, w: usize, K: i32, out: usize): void {
  for (let i: usize = 0; i < 4; i++) nt1_f16(x, w + i * (<usize>K) * 16, K, out + i * 32);
}

/** Four rows of every panel, one panel after the other: [panel][4][8], widened to f32. */
function pack4_f32(w: usize, K: i32, panels: i32, out: usize): void {
  for (let p: i32 = 0; p < panels; p++) {
    for (let i: usize = 0; i < 128; i += 16) v128.store(out + i, v128.load(w + i));
    out += 128;
    w += <usize>K * 32;
  }
}
function pack4_f16(w: usize, K: i32, panels: i32, out: usize): void {
  for (let p: i32 = 0; p < panels; p++) {
    for (let i: usize = 0; i < 128; i += 16) v128.store(out + i, half4(w + (i >> 1)));
    out += 128;
    w += <usize>K * 16;
  }
}
// dx lanes: acc[row][k] (a vector over 8 columns folded to 4 lanes) += dy panel · four packed rows of w, panels ascending.
function nn4(y0: usize, y1: usize, y2: usize, y3: usize, w: usize, panels: i32, acc: usize): void {
  for (let half: usize = 0; half < 4; half += 2) {
    let a0: v128 = v128.load(acc + half * 16), a1: v128 = v128.load(acc + half * 16, 16);
    let b0: v128 = v128.load(acc + half * 16, 64), b1: v128 = v128.load(acc + half * 16, 80);
    let c0: v128 = v128.load(acc + half * 16, 128), c1: v128 = v128.load(acc + half * 16, 144);
    let d0: v128 = v128.load(acc + half * 16, 192), d1: v128 = v128.load(acc + half * 16, 208);
    let wp: usize = w + half * 32;
    let o: usize = 0;
    for (let p: i32 = 0; p < panels; p++) {
      for (let h: usize = 0; h < 32; h += 16) {
        const w0: v128 = v128.load(wp + h);
        const w1: v128 = v128.load(wp + h, 32);
        let y: v128 = v128.load(y0 + o + h);
        a0 = f32x4.add(a0, f32x4.mul(y, w0));
        a1 = f32x4.add(a1, f32x4.mul(y, w1));
        y = v128.load(y1 + o + h);
        b0 = f32x4.add(b0, f32x4.mul(y, w0));
        b1 = f32x4.add(b1, f32x4.mul(y, w1));
        y = v128.load(y2 + o + h);
        c0 = f32x4.add(c0, f32x4.mul(y, w0));
        c1 = f32x4.add(c1, f32x4.mul(y, w1));
        y = v128.load(y3 + o + h);
        d0 = f32x4.add(d0, f32x4.mul(y, w0));
        d1 = f32x4.add(d1, f32x4.mul(y, w1));
      }
      o += 32;
      wp += 128;
    }
    v128.store(acc + half * 16, a0);
    v128.store(acc + half * 16, a1, 16);
    v128.store(acc + half * 16, b0, 64);
    v128.store(acc + half * 16, b1, 80);
    v128.store(acc + half * 16, c0, 128);
    v128.store(acc + half * 16, c1, 144);
    v128.store(acc + half * 16, d0, 192);
    v128.store(acc + half * 16, d1, 208);
  }
}
function nn1(y: usize, w: usize, panels: i32, acc: usize): void {
  let a0: v128 = v128.load(acc), a1: v128 = v128.load(acc, 16), a2: v128 = v128.load(acc, 32), a3: v128 = v128.load(acc, 48);
  for (let p: i32 = 0; p < panels; p++) {
    for (let h: usize = 0; h < 32; h += 16) {
      const v: v128 = v128.load(y + h);
      a0 = f32x4.add(a0, f32x4.mul(v, v128.load(w + h)));
      a1 = f32x4.add(a1, f32x4.mul(v, v128.load(w + h, 32)));
      a2 = f32x4.add(a2, f32x4.mul(v, v128.load(w + h, 64)));
      a3 = f32x4.add(a3, f32x4.mul(v, v128.load(w + h, 96)));
    }
    y += 32;
    w += 128;
  }
  v128.store(acc, a0);
  v128.store(acc, a1, 16);
  v128.store(acc, a2, 32);
  v128.store(acc, a3, 48);
}
/** Lane sums of [rows][4] accumulators, to acc + 256 as [rows][4]. */
function fold4(acc: usize, rows: i32): void {
  for (let i: usize = 0; i < <usize>rows * 4; i++) store<f32>(acc + 256 + i * 4, hsum(v128.load(acc + i * 16)));
}
/** The last columns of a row, zero-padded to a panel. */
function pad8(src: usize, count: i32, dst: usize): void {
  for (let i: i32 = 0; i < 8; i++) store<f32>(dst + ((<usize>i) << 2), i < count ? load<f32>(src + ((<usize>i) << 2)) : <f32>0);
}
/** u[0..4) = x · rows of a factor. */
function shrink4(x: usize, f: usize, cols: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, a2: v128 = a0, a3: v128 = a0;
  const f1: usize = f + ((<usize>cols) << 2);
  const f2: usize = f1 + ((<usize>cols) << 2);
  const f3: usize = f2 + ((<usize>cols) << 2);
  let c: i32 = 0;
  for (; c + 4 <= cols; c += 4) {
    const o: usize = (<usize>c) << 2;
    const v: v128 = v128.load(x + o);
    a0 = f32x4.add(a0, f32x4.mul(v, v128.load(f + o)));
    a1 = f32x4.add(a1, f32x4.mul(v, v128.load(f1 + o)));
    a2 = f32x4.add(a2, f32x4.mul(v, v128.load(f2 + o)));
    a3 = f32x4.add(a3, f32x4.mul(v, v128.load(f3 + o)));
  }
  let s0: f32 = hsum(a0), s1: f32 = hsum(a1), s2: f32 = hsum(a2), s3: f32 = hsum(a3);
  for (; c < cols; c++) {
    const o: usize = (<usize>c) << 2;
    const v: f32 = load<f32>(x + o);
    s0 += v * load<f32>(f + o);
    s1 += v * load<f32>(f1 + o);
    s2 += v * load<f32>(f2 + o);
    s3 += v * load<f32>(f3 + o);
  }
  store<f32>(out, s0);
  store<f32>(out, s1, 4);
  store<f32>(out, s2, 8);
  store<f32>(out, s3, 12);
}
/** shrink4 of four rows at once: each dot as in shrink4. */
function shrink4x4(x0: usize, x1: usize, x2: usize, x3: usize, f: usize, cols: i32, out: usize, outStride: i32): void {
  const fs: usize = (<usize>cols) << 2;
  for (let half: usize = 0; half < 2; half++) {
    const fa: usize = f + half * 2 * fs;
    const fb: usize = fa + fs;
    let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0, c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
    let c: i32 = 0;
    for (; c + 4 <= cols; c += 4) {
      const o: usize = (<usize>c) << 2;
      const w0: v128 = v128.load(fa + o);
      const w1: v128 = v128.load(fb + o);
      let x: v128 = v128.load(x0 + o);
      a0 = f32x4.add(a0, f32x4.mul(x, w0));
      a1 = f32x4.add(a1, f32x4.mul(x, w1));
      x = v128.load(x1 + o);
      b0 = f32x4.add(b0, f32x4.mul(x, w0));
      b1 = f32x4.add(b1, f32x4.mul(x, w1));
      x = v128.load(x2 + o);
      c0 = f32x4.add(c0, f32x4.mul(x, w0));
      c1 = f32x4.add(c1, f32x4.mul(x, w1));
      x = v128.load(x3 + o);
      d0 = f32x4.add(d0, f32x4.mul(x, w0));
      d1 = f32x4.add(d1, f32x4.mul(x, w1));
    }
    let sa0: f32 = hsum(a0), sa1: f32 = hsum(a1), sb0: f32 = hsum(b0), sb1: f32 = hsum(b1), sc0: f32 = hsum(c0), sc1: f32 = hsum(c1), sd0: f32 = hsum(d0), sd1: f32 = hsum(d1);
    for (; c < cols; c++) {
      const o: usize = (<usize>c) << 2;
      const w0: f32 = load<f32>(fa + o);
      const w1: f32 = load<f32>(fb + o);
      sa0 += load<f32>(x0 + o) * w0;
      sa1 += load<f32>(x0 + o) * w1;
      sb0 += load<f32>(x1 + o) * w0;
      sb1 += load<f32>(x1 + o) * w1;
      sc0 += load<f32>(x2 + o) * w0;
      sc1 += load<f32>(x2 + o) * w1;
      sd0 += load<f32>(x3 + o) * w0;
      sd1 += load<f32>(x3 + o) * w1;
    }
    const o: usize = out + half * 8;
    const os: usize = <usize>outStride;
    store<f32>(o, sa0);
    store<f32>(o, sa1, 4);
    store<f32>(o + os, sb0);
    store<f32>(o + os, sb1, 4);
    store<f32>(o + 2 * os, sc0);
    store<f32>(o + 2 * os, sc1, 4);
    store<f32>(o + 3 * os, sd0);
    store<f32>(o + 3 * os, sd1, 4);
  }
}
/** out[i][0..8) += Σ_rows down[row][i] · lanes[row][0..8), i < 4: summed from zero in row order, then added once. */
function outer4(down: usize, downStride: i32, lanes: usize, lanesStride: i32, rows: i32, out: usize, outRow: i32): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0, c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
  for (let t: i32 = 0; t < rows; t++) {
    const l0: v128 = v128.load(lanes);
    const l1: v128 = v128.load(lanes, 16);
    let x: v128 = v128.load_splat<f32>(down);
    a0 = f32x4.add(a0, f32x4.mul(x, l0));
    a1 = f32x4.add(a1, f32x4.mul(x, l1));
    x = v128.load_splat<f32>(down, 4);
    b0 = f32x4.add(b0, f32x4.mul(x, l0));
    b1 = f32x4.add(b1, f32x4.mul(x, l1));
    x = v128.load_splat<f32>(down, 8);
    c0 = f32x4.add(c0, f32x4.mul(x, l0));
    c1 = f32x4.add(c1, f32x4.mul(x, l1));
    x = v128.load_splat<f32>(down, 12);
    d0 = f32x4.add(d0, f32x4.mul(x, l0));
    d1 = f32x4.add(d1, f32x4.mul(x, l1));
    down += <usize>downStride;
    lanes += <usize>lanesStride;
  }
  const o1: usize = out + <usize>outRow;
  const o2: usize = o1 + <usize>outRow;
  const o3: usize = o2 + <usize>outRow;
  v128.store(out, f32x4.add(v128.load(out), a0));
  v128.store(out, f32x4.add(v128.load(out, 16), a1), 16);
  v128.store(o1, f32x4.add(v128.load(o1), b0));
  v128.store(o1, f32x4.add(v128.load(o1, 16), b1), 16);
  v128.store(o2, f32x4.add(v128.load(o2), c0));
  v128.store(o2, f32x4.add(v128.load(o2, 16), c1), 16);
  v128.store(o3, f32x4.add(v128.load(o3), d0));
  v128.store(o3, f32x4.add(v128.load(o3, 16), d1), 16);
}
/** One row of out, `count` columns (up to 8). */
function outer1(down: usize, downStride: i32, lanes: usize, lanesStride: i32, rows: i32, out: usize, count: i32): void {
  for (let j: i32 = 0; j < count; j++) {
    let sum: f32 = 0;
    let a: usize = down;
    let b: usize = lanes + ((<usize>j) << 2);
    for (let t: i32 = 0; t < rows; t++) {
      sum += load<f32>(a) * load<f32>(b);
      a += <usize>downStride;
      b += <usize>lanesStride;
    }
    const o: usize = out + ((<usize>j) << 2);
    store<f32>(o, load<f32>(o) + sum);
  }
}
/** Σ g²: chunks of 4096 words, each in four lanes, chunk sums in order. */
function sumsq(g: usize, words: i32): f32 {
  let total: f32 = 0;
  for (let at: i32 = 0; at < words; at += 4096) {
    let v: v128 = f32x4.splat(0);
    const end: i32 = min(at + 4096, words);
    for (let i: i32 = at; i < end; i += 4) {
      const x: v128 = v128.load(g + ((<usize>i) << 2));
      v = f32x4.add(v, f32x4.mul(x, x));
    }
    total += hsum(v);
  }
  return total;
}
/** out[o] = 1 / ‖W[o] + scale · Σ_r b[r][o]·a[r]‖₂, k ascending in every lane; `acc` is scratch. */
function rowNorms_f32(w: usize, n: i32, K: i32, a: usize, b: usize, rank: i32, scale: f32, out: usize, acc: usize): void {
  for (let o: i32 = 0; o < n; o += 4) {
    let sum: v128 = f32x4.splat(0);
    const panel: usize = w + <usize>(o >> 3) * <usize>K * 32 + <usize>(o & 7) * 4;
    for (let k: i32 = 0; k < K; k++) sum = rowNormStep(v128.load(panel + <usize>k * 32), k, o, n, K, a, b, rank, scale, sum);
    rowNormsOut(sum, o, n, out, acc);
  }
}
function rowNorms_f16(w: usize, n: i32, K: i32, a: usize, b: usize, rank: i32, scale: f32, out: usize, acc: usize): void {
  for (let o: i32 = 0; o < n; o += 4) {
    let sum: v128 = f32x4.splat(0);
    const panel: usize = w + <usize>(o >> 3) * <usize>K * 16 + <usize>(o & 7) * 2;
    for (let k: i32 = 0; k < K; k++) sum = rowNormStep(half4(panel + <usize>k * 16), k, o, n, K, a, b, rank, scale, sum);
    rowNormsOut(sum, o, n, out, acc);
  }
}
// @ts-ignore: decorator
@inline function rowNormStep(w: v128, k: i32, o: i32, n: i32, K: i32, a: usize, b: usize, rank: i32, scale: f32, sum: v128): v128 {
  let d: v128 = f32x4.splat(0);
  let ap: usize = a + ((<usize>k) << 2);
  let bp: usize = b + ((<usize>o) << 2);
  for (let r: i32 = 0; r < rank; r++) {
    d = f32x4.add(d, f32x4.mul(v128.load_splat<f32>(ap), v128.load(bp)));
    ap += (<usize>K) << 2;
    bp += (<usize>n) << 2;
  }
  const x: v128 = f32x4.add(w, f32x4.mul(f32x4.splat(scale), d));
  return f32x4.add(sum, f32x4.mul(x, x));
}
function rowNormsOut(sum: v128, o: i32, n: i32, out: usize, acc: usize): void {
  v128.store(acc, f32x4.div(f32x4.splat(1), f32x4.sqrt(sum)));
  for (let i: i32 = 0; i < min(4, n - o); i++) store<f32>(out + ((<usize>(o + i)) << 2), load<f32>(acc + ((<usize>i) << 2)));
}
