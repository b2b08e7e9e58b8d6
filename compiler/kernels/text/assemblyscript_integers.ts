/**
 * Products of integers on the CPU, a class of numerics of its own: rows are rounded to 16 bits, with a scale
 * for every 32 values, and a block of a weight's integers is summed with them exactly, eight multiply-adds an
 * instruction. What a block adds, `scale of the row · what the format makes of the sum`, goes to its output
 * in f32, blocks ascending: the same for few rows, whose tiles take integers out of packed panels, and for
 * many, whose panels are made 16 bits wide before.
 */
import { type Format, formatOf, formats, planeBytes } from "../../../runtime/bundle.ts";
import { BLOCK_STRIDE, K_CHUNK, P } from "./assemblyscript.ts";
import { type Lines, lines } from "./lines.ts";

const each = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
/** Values of a row, and of a column, that share a scale. */
const BLOCK = 32;
/** Bytes of a rounded block: values k and k + 2 of every four side by side, then its scale and its sum. */
const ROUNDED = BLOCK * 2 + 8;
/** Bytes of rounded rows of K values. */
export const roundedBytes = (rows: number, K: number): number =>
  rows * Math.ceil(K / BLOCK) * ROUNDED + BLOCK * 4;

/** Are a format's matrices multiplied as integers, in a bundle that does so? */
export const isIntegral = (name: string): boolean => formatOf(name).assembly.integers !== null;

/**
 * 1.5 · 2^23 is added to what is rounded: the last bits of the sum are the integer, nearest to even. A block
 * with a value that is no number, or infinite, has such a scale, and so makes such outputs; one whose largest
 * value is below 2^-100 counts as zeros.
 */
const rounding = lines`
  function roundBlock(x: usize, out: usize): void {
    let most: v128 = i32x4.splat(0);
    for (let i: usize = 0; i < ${BLOCK * 4}; i += 16)
      most = i32x4.max_s(most, v128.and(v128.load(x + i), i32x4.splat(0x7fffffff)));
    const largest: f32 = reinterpret<f32>(max(
      max(i32x4.extract_lane(most, 0), i32x4.extract_lane(most, 1)),
      max(i32x4.extract_lane(most, 2), i32x4.extract_lane(most, 3))));
    const tiny: bool = largest < <f32>7.888609e-31;
    const steps: v128 = f32x4.splat(tiny ? 0 : <f32>32767 / largest);
    const magic: v128 = f32x4.splat(12582912);
    let sums: v128 = i32x4.splat(0);
    for (let i: usize = 0; i < ${BLOCK * 4}; i += 32) {
      const a: v128 = f32x4.add(f32x4.mul(v128.load(x + i), steps), magic);
      const b: v128 = f32x4.add(f32x4.mul(v128.load(x + i, 16), steps), magic);
      const even: v128 = v128.and(i32x4.shuffle(a, b, 0, 1, 4, 5), i32x4.splat(0xffff));
      const pairs: v128 = v128.or(even, i32x4.shl(i32x4.shuffle(a, b, 2, 3, 6, 7), 16));
      sums = i32x4.add(sums, i32x4.dot_i16x8_s(pairs, i16x8.splat(1)));
      v128.store(out, pairs);
      out += 16;
    }
    store<f32>(out, tiny ? 0 : largest / <f32>32767);
    store<f32>(out, <f32>(i32x4.extract_lane(sums, 0) + i32x4.extract_lane(sums, 1)
      + i32x4.extract_lane(sums, 2) + i32x4.extract_lane(sums, 3)), 4);
  }
  /**
   * The K values of rows at \`xs\` (pointers), rounded, one row after the other; behind them a spare block.
   */
  function roundRows(xs: usize, rows: i32, K: i32, out: usize): void {
    const blocks: i32 = (K + ${BLOCK - 1}) >> 5;
    const spare: usize = out + <usize>(rows * blocks * ${ROUNDED});
    for (let r: i32 = 0; r < rows; r++) {
      let x: usize = <usize>load<u32>(xs + ((<usize>r) << 2));
      for (let k: i32 = 0; k < K; k += ${BLOCK}) {
        let from: usize = x;
        if (K - k < ${BLOCK}) {
          clear(spare, ${BLOCK * 4});
          for (let i: usize = 0; i < ((<usize>(K - k)) << 2); i += 4)
            store<f32>(spare + i, load<f32>(x + i));
          from = spare;
        }
        roundBlock(from, out);
        x += ${BLOCK * 4};
        out += ${ROUNDED};
      }
    }
  }`;

/** Groups of four rows of a panel in a block. */
const GROUPS = BLOCK / 4;
/** Bytes of a panel's block, 16 bits wide: pairs of rows, of eight columns. */
const WIDE = BLOCK * P * 2;
/** Blocks of a chunk. */
const CHUNK = K_CHUNK / BLOCK;
const WIDE_PANEL = CHUNK * WIDE;

function integers(name: Format): Lines {
  const { planes, assembly } = formatOf(name);
  const { constants, pairs, value } = assembly.integers!;
  const bytes = (planeBytes(planes[0]!) * P) / planes[0]!.every;
  const scaleBytes = assembly.scales.length * 8;
  const wideScales = assembly.scales.length * 16;
  const whole = `<usize>(K + ${planes[0]!.every - 1} & ${-planes[0]!.every}) * ${bytes}`;
  const xs = (rows: number): string =>
    each(rows)
      .map((i) => `x${i}: usize,`)
      .join(" ");
  const start = (rows: number): Lines =>
    each(rows).map((i) => `let p${i}: v128 = i32x4.splat(0), q${i}: v128 = p${i};`);
  /** Two pairs of rows more; the rounded rows' are at `x`. */
  const term = (rows: number, n: number): Lines => lines`
    ${each(rows).flatMap((i) =>
      each(n).flatMap(
        (j) => lines`
          const t${i}_${j}: v128 = v128.load_splat<i32>(x${i}, ${j * 4});
          p${i} = i32x4.add(p${i}, i32x4.dot_i16x8_s(b${j}, t${i}_${j}));
          q${i} = i32x4.add(q${i}, i32x4.dot_i16x8_s(d${j}, t${i}_${j}));`,
      ),
    )}
    ${each(rows)
      .map((i) => `x${i} += ${n * 4};`)
      .join(" ")}`;
  /** A block is over: what it adds. */
  const fold = (rows: number): Lines => lines`
    ${each(rows).flatMap(
      (i) => lines`
        const f${i}: v128 = v128.load_splat<f32>(x${i}), g${i}: v128 = v128.load_splat<f32>(x${i}, 4);
        ${["p", "q"].flatMap((sum, j) => {
          const of = value(`f32x4.convert_i32x4_s(${sum}${i})`, `g${i}`, j);
          const at = `acc, ${i * BLOCK_STRIDE + j * 16}`;
          return [`v128.store(acc, madd(f${i}, ${of}, v128.load(${at})), ${i * BLOCK_STRIDE + j * 16});`];
        })}
        x${i} += 8;`,
    )}`;
  // What is read behind a panel's last rows meets zeros.
  const few = (rows: number): Lines => lines`
    function integers${rows}_${name}(
      ${xs(rows)} w: usize, scales: usize, blocks: i32, acc: usize
    ): void {
      ${constants}
      const last: usize = scales + <usize>blocks * ${scaleBytes};
      while (scales < last) {
        ${start(rows)}
        const end: usize = w + ${BLOCK * bytes};
        while (w < end) {
          ${pairs}
          ${term(rows, 2)}
          w += ${4 * bytes};
        }
        ${assembly.scales.map((s, i) => `const ${s}: v128 = half4(scales + ${i * 8});`)}
        ${fold(rows)}
        scales += ${scaleBytes};
      }
    }`;
  const many = lines`
    function widen_${name}(w: usize, scales: usize, blocks: i32, out: usize, wide: usize): void {
      ${constants}
      for (let i: i32 = 0; i < blocks * ${GROUPS}; i++) {
        ${pairs}
        ${["b0", "d0", "b1", "d1"].map((v, i) => `v128.store(out, ${v}, ${i * 16});`)}
        w += ${4 * bytes};
        out += 64;
      }
      const last: usize = scales + <usize>blocks * ${scaleBytes};
      for (; scales < last; scales += 8) {
        v128.store(wide, half4(scales));
        wide += 16;
      }
    }
    function wide4_${name}(${xs(4)} w: usize, scales: usize, blocks: i32, acc: usize): void {
      const last: usize = scales + <usize>blocks * ${wideScales};
      while (scales < last) {
        ${start(4)}
        const end: usize = w + ${WIDE};
        while (w < end) {
          const b0: v128 = v128.load(w), d0: v128 = v128.load(w, 16);
          ${term(4, 1)}
          w += 32;
        }
        ${assembly.scales.map((s, i) => `const ${s}: v128 = v128.load(scales, ${i * 16});`)}
        ${fold(4)}
        scales += ${wideScales};
      }
    }`;
  const rowsAt = (rows: number): string =>
    each(rows)
      .map((i) => (i ? `x + ${i} * row, ` : "x, "))
      .join("");
  const rest = (rows: number): Lines => lines`
    for (; r + ${rows} <= rows; r += ${rows}) {
      const x: usize = xs + <usize>r * row;
      for (let p: i32 = p0; p < p1; p++)
        integers${rows}_${name}(
          ${rowsAt(rows)}w + <usize>p * ${whole}, scales + <usize>(p * blocks * ${scaleBytes}), blocks,
          acc + <usize>(r * ${BLOCK_STRIDE} + (p - p0) * ${P * 4}));
    }`;
  return lines`
    ${few(1)}
    ${few(2)}
    ${many}
    /** acc[rows][panels × 8] += rounded rows at \`xs\` · panels p0 to p1. */
    function integers_${name}(
      xs: usize, rows: i32, w: usize, N: i32, K: i32, p0: i32, p1: i32, acc: usize, pack: usize
    ): void {
      const blocks: i32 = (K + ${BLOCK - 1}) >> 5;
      const row: usize = <usize>(blocks * ${ROUNDED});
      const scales: usize = w + <usize>((N + 7) >> 3) * ${whole};
      const fours: i32 = rows & ~3;
      const wide: usize = pack + ${4 * WIDE_PANEL};
      for (let b: i32 = 0; b < blocks && fours; b += ${CHUNK}) {
        const n: i32 = min(${CHUNK}, blocks - b);
        for (let p: i32 = p0; p < p1; p += 4) {
          const c: i32 = min(4, p1 - p);
          for (let j: i32 = 0; j < c; j++)
            widen_${name}(
              w + <usize>(p + j) * ${whole} + <usize>b * ${BLOCK * bytes},
              scales + <usize>(((p + j) * blocks + b) * ${scaleBytes}),
              n, pack + <usize>j * ${WIDE_PANEL}, wide + <usize>j * ${CHUNK * wideScales});
          for (let r: i32 = 0; r < fours; r += 4) {
            const x: usize = xs + <usize>r * row + <usize>(b * ${ROUNDED});
            for (let j: i32 = 0; j < c; j++)
              wide4_${name}(
                ${rowsAt(4)}pack + <usize>j * ${WIDE_PANEL}, wide + <usize>j * ${CHUNK * wideScales}, n,
                acc + <usize>(r * ${BLOCK_STRIDE} + (p - p0 + j) * ${P * 4}));
          }
        }
      }
      let r: i32 = fours;
      ${rest(2)}
      ${rest(1)}
    }`;
}
/** Text of what emitted kernels call of every format that has integers. */
export const integerText = (): string =>
  [...rounding, ...formats.filter(isIntegral).flatMap(integers)].join("\n");
