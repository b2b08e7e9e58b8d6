/**
 * Products of integers on a GPU, a class of numerics of its own: rows are rounded to 14 bits and a sign, with
 * a scale, a power of two, for every 32 values, and a block of a weight's integers is summed with them
 * exactly. What a block adds, `scale of the row · what the format makes of the sum`, goes to its chunk's sum
 * in f32, blocks ascending; chunks are added in order, as everywhere. Integers have no order: tiles and few
 * rows take four products an instruction, of a number's upper byte and then of its lower one, and plain
 * kernels take them one by one.
 */
import { formatOf } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Operand } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import { rowAt } from "./wgsl.ts";
import type { Panels } from "./wgsl_panels.ts";
import { type ascending, ownQuad, type Place } from "./wgsl_plain.ts";
import { CHUNK, indices } from "./wgsl_products.ts";

/** Values of a row, and of a column, that share a scale. */
const BLOCK = 32;
const BLOCKS = CHUNK / BLOCK;
/** Words of a block of a row, of four bytes each: as many of upper bytes as of lower ones. */
const WORDS = BLOCK / 4;
/** 1.5 · 2^23 as bits: what was added to have integers in the lowest ones. */
const MAGIC = 0x4b400000;
type Integers = NonNullable<ReturnType<typeof formatOf>["wgsl"]["integers"]>;

/** How a format's matrices are multiplied as integers, in a bundle that does so; else null. */
export const integersOf = (format: string, env: KernelEnv): Integers | null =>
  env.products === "integers" ? formatOf(format).wgsl.integers : null;

/** Numbers of a row at `at`, of which so many are its own: those behind are 0. */
const vector = (at: readonly string[], left: string | null): string => {
  const all = `vec4<f32>(${at.join(", ")})`;
  return left ? `leading(${all}, ${left})` : all;
};
/** The sum of the integers in words of upper and of lower bytes. */
const sumOf = (upper: string, lower: string): string =>
  `(dot4I8Packed(${upper}, ${ONES}) << 8u) + dot4I8Packed(${lower}, ${ONES})`;
const ONES = "0x01010101u";

/**
 * What a lane of `gemv` adds to the sums a0 … of `n` rows: chunk c of the matrix. Four lanes have the same
 * chunk. Each rounds a block for all of them: of one row one of its four, of four rows that of one.
 */
export function fewIntegers(
  n: number,
  xs: readonly Place[],
  integers: Integers,
  { panels, k, at, columns }: { panels: Panels; k: number; at: Panel; columns: string },
): Lines {
  const { space } = xs[0]!;
  /** A block's first half, then its second: as many registers as half of it takes. */
  const put = (from: string, first: string): Lines => {
    const half = BLOCK / 2;
    const four = indices(half / 4);
    const inputs = four.map((i) => {
      const at = indices(4).map((j) => `${space}[${from} + h * ${half} + ${4 * i + j}]`);
      return `let y${i} = ${vector(at, k % BLOCK ? `${k} - (${first}) - h * ${half} - ${4 * i}` : null)};`;
    });
    const run = 4 * integers.bytes.length;
    return lines`
      var most = 0u;
      for (var h = 0; h < 2; h++) {
        ${inputs}
        ${four.map((i) => `most = max(most, magnitude(y${i}));`)}
      }
      let step = step_of(most);
      var total = 0;
      for (var h = 0; h < 2; h++) {
        ${inputs}
        ${four.map((i) => `let b${i} = rounded(y${i}, step);`)}
        ${four.flatMap((i) => {
          const first = Math.floor((4 * i) / run) * run + (i % integers.bytes.length);
          const steps = indices(4).map((j) => first + j * integers.bytes.length);
          return [
            `let v${i} = vec4<u32>(${steps.map((s) => `b${s >> 2}.${"xyzw"[s & 3]}`).join(", ")});`,
            `let u${i} = upper(v${i});`,
            `let l${i} = lower(v${i});`,
            `total = total + ${sumOf(`u${i}`, `l${i}`)};`,
          ];
        })}
        let o = slot * ${SLOT} + quad * 4 + h;
        blocks[o] = vec4<u32>(${four.map((i) => `u${i}`).join(", ")});
        blocks[o + 2] = vec4<u32>(${four.map((i) => `l${i}`).join(", ")});
      }
      shares[lane] = vec2<f32>(scale_of(most), f32(total));
      workgroupBarrier();`;
  };
  const sums = (rows: readonly (readonly [row: number, area: string])[]): Lines => {
    const { run } = panels;
    const each = indices(BLOCK / run);
    const parts = each.flatMap((i) => integers.bytes.map((of) => of(`w${i}`)));
    return lines`
      // Slots behind the last chunk, and columns behind the last, have nothing to add.
      if (panel * 16 < ${columns} && k < ${k}) {
        let p = ${panels.at(at.panel, "k", at.quad)};
        ${each.map((i) => `let w${i} = weights[p + ${4 * i}];`)}
        ${panels.scales(at.panel, "k", at.quad)}
        ${parts.map((part, i) => `let e${i} = ${part};`)}
        ${rows.map(([row]) => `var q${row} = vec4<i32>();`)}
        // Of upper bytes, then of lower ones.
        for (var h = 0; h < 4; h += 2) {
          ${rows.flatMap(([row, area]) => {
            const at = `slot * ${SLOT} + ${area} * 4 + h`;
            return [
              `q${row} = q${row} << vec4<u32>(8u);`,
              ...[0, 1].map((i) => `let x${row}_${i} = blocks[${at}${i ? " + 1" : ""}];`),
              ...parts.map((_, i) => `q${row} = dots(x${row}_${i >> 2}.${"xyzw"[i & 3]}, e${i}, q${row});`),
            ];
          })}
        }
        ${rows.flatMap(([row, area]) => {
          const value = integers.value(`vec4<f32>(q${row})`, `share${row}.y`);
          return [
            `let share${row} = shares[slot * 4 + ${area}];`,
            `a${row} = fma(vec4<f32>(share${row}.x), ${value}, a${row});`,
          ];
        })}
      }`;
  };
  if (n === 1)
    return lines`
      ${put(`x0 + c * ${CHUNK} + quad * ${BLOCK}`, `c * ${CHUNK} + quad * ${BLOCK}`)}
      let until = min(${BLOCKS}, ${Math.ceil(k / BLOCK)} - c * ${BLOCKS});
      for (var i = 0; i < until; i++) {
        let k = c * ${CHUNK} + i * ${BLOCK};
        ${sums([[0, "i"]])}
      }`;
  return lines`
    let own_x = select(select(x0, x1, quad == 1), select(x2, x3, quad == 3), quad > 1);
    for (var i = 0; i < ${BLOCKS}; i++) {
      let k = c * ${CHUNK} + i * ${BLOCK};
      ${put("own_x + k", "k")}
      ${sums(indices(n).map((row) => [row, String(row)]))}
      workgroupBarrier();
    }`;
}
interface Panel {
  readonly panel: string;
  readonly quad: string;
}
/** Vectors of the four blocks that four lanes round, and one more, so that others lie in other banks. */
const SLOT = 4 * 4 + 1;
export const fewIntegersShared = (lanes: number): Lines => [
  `var<workgroup> blocks: array<vec4<u32>, ${(lanes / 4) * SLOT}>;`,
  `var<workgroup> shares: array<vec2<f32>, ${lanes}>;`,
];

/** Quads of rows from a word's to the next's: those of lanes side by side go to different banks. */
const STRIDE = 64 / 4 + 1;
/**
 * Adds a pair of operands to a tile's sums t0 …, a block at a time. A lane rounds what one word holds of four
 * rows, eight lanes a row's block, and brings words of four columns.
 */
export function tileIntegers(
  { x, panels, k: terms, at }: { x: Operand; panels: Panels; k: number; at: Panel },
  integers: Integers,
  env: KernelEnv,
): Lines {
  const rows = indices(8);
  const four = indices(4);
  const mine = four.map((i) => rowAt(x, env, `min(m0 + tx * 4 + ${i}, n - 1)`));
  const { run } = panels;
  const kinds = integers.bytes.length;
  const brought = BLOCK / run;
  const guard = brought < WORDS ? `if (ty < ${brought}) {` : "{";
  const whole = terms % CHUNK === 0;
  /** Numbers of row i whose integers are in word \`ty\`. */
  const input = (i: number): string => {
    const steps = four.map((j) => `k + own + ${j * kinds}`);
    const at = steps.map((step) => `${mine[i]!.space}[x${i} + ${step}]`);
    if (terms % BLOCK === 0) return vector(at, null);
    return vector(at, `(${terms + kinds - 1} - k - own) / ${kinds}`);
  };
  const product = (from: number): Lines => lines`
    for (var j = ${from}; j < ${from + WORDS}; j++) {
      let w = tile_w[(j & ${WORDS - 1}) * 16 + tx];
      let x_0 = tile_x[j * ${STRIDE} + ty * 2];
      let x_1 = tile_x[j * ${STRIDE} + ty * 2 + 1];
      ${rows.map((i) => `p${i} = dots(x_${i >> 2}.${"xyzw"[i & 3]}, w, p${i});`)}
    }`;
  return lines`
    let own = (ty / ${kinds}) * ${run} + ty % ${kinds};
    ${mine.map(({ at }, i) => `let x${i} = ${at};`)}
    ${whole ? [] : [`let every = ${Math.ceil(terms / BLOCK)};`]}
    let chunks = ${Math.ceil(terms / CHUNK)};
    for (var c = 0; c < chunks; c++) {
      ${rows.map((i) => `var a${i} = vec4<f32>();`)}
      ${whole ? [] : [`let until = min(every - c * ${BLOCKS}, ${BLOCKS});`]}
      for (var i = 0; i < ${whole ? BLOCKS : "until"}; i++) {
        let k = c * ${CHUNK} + i * ${BLOCK};
        ${four.map((i) => `let y${i} = ${input(i)};`)}
        var w = vec4<u32>();
        ${guard} w = weights[${panels.at(at.panel, `k + ty * ${run}`, at.quad)}]; }
        workgroupBarrier();
        most_of[lane] = vec4<u32>(${four.map((i) => `magnitude(y${i})`).join(", ")});
        ${guard}
          ${integers.bytes.map((of, i) => `tile_w[(ty * ${kinds} + ${i}) * 16 + tx] = ${of("w")};`)}
        }
        workgroupBarrier();
        var most = most_of[tx];
        ${indices(WORDS - 1).map((i) => `most = max(most, most_of[tx + ${16 * (i + 1)}]);`)}
        ${four.map((i) => `let b${i} = rounded(y${i}, step_of(most.${"xyzw"[i]}));`)}
        tile_x[ty * ${STRIDE} + tx] = vec4<u32>(${four.map((i) => `upper(b${i})`).join(", ")});
        tile_x[(ty + ${WORDS}) * ${STRIDE} + tx] = vec4<u32>(${four.map((i) => `lower(b${i})`).join(", ")});
        if (ty == 0) {
          ${four.map((i) => `scales[tx * 4 + ${i}] = scale_of(most.${"xyzw"[i]});`)}
        }
        workgroupBarrier();
        // What a row's integers sum to, by a lane for all that have the row.
        if (tx < 8) {
          var total = 0;
          for (var j = 0; j < ${WORDS}; j++) {
            let o = j * ${STRIDE} + ty * 2 + (tx >> 2u);
            total = total + ${sumOf("tile_x[o][tx & 3]", `tile_x[o + ${WORDS * STRIDE}][tx & 3]`)};
          }
          totals[ty * 8 + tx] = f32(total);
        }
        workgroupBarrier();
        // Lanes whose rows are not there wait.
        if (m0 + ty * 8 < n) {
          ${rows.map((i) => `var p${i} = vec4<i32>();`)}
          ${product(0)}
          ${rows.map((i) => `p${i} = p${i} << vec4<u32>(8u);`)}
          ${product(WORDS)}
          ${panels.scales(at.panel, "k", at.quad)}
          ${rows.flatMap((i) => {
            const value = integers.value(`vec4<f32>(p${i})`, `totals[ty * 8 + ${i}]`);
            return `a${i} = fma(vec4<f32>(scales[ty * 8 + ${i}]), ${value}, a${i});`;
          })}
        }
      }
      ${rows.map((i) => `t${i} = t${i} + a${i};`)}
    }`;
}
export const tileIntegersShared: Lines = [
  `var<workgroup> tile_x: array<vec4<u32>, ${2 * WORDS * STRIDE}>;`,
  `var<workgroup> tile_w: array<vec4<u32>, ${(WORDS * 64) / 4}>;`,
  `var<workgroup> most_of: array<vec4<u32>, ${(WORDS * 64) / 4}>;`,
  "var<workgroup> scales: array<f32, 64>;",
  "var<workgroup> totals: array<f32, 64>;",
];

/** t0 … += x·Wᵀ as `ascending` has it, of integers one by one. */
export const plainIntegers =
  ({ one, value }: Integers): typeof ascending =>
  (at, panels, { k: terms, quads: [own = ownQuad] = [] }) => {
    const { panel, quad } = own;
    const rows = indices(at.length);
    const { run } = panels;
    const place = [panel, "k", quad] as const;
    /** One number of a row, as all of a vector; behind the last, 0. */
    const input = (i: number, k: string, some: boolean): string => {
      const x = `${at[i]!.space}[x${i} + ${k}]`;
      return `vec4<f32>(${some ? `select(0.0f, ${x}, ${k} < ${terms})` : x})`;
    };
    return lines`
      ${at.map((row, i) => `let x${i} = ${row.at};`)}
      let every = ${terms};
      let chunks = ${Math.ceil(terms / CHUNK)};
      for (var c = 0; c < chunks; c++) {
        ${rows.map((i) => `var a${i} = vec4<f32>();`)}
        let until = min(every, (c + 1) * ${CHUNK});
        for (var first = c * ${CHUNK}; first < until; first += ${BLOCK}) {
          let last = min(until, first + ${BLOCK});
          ${rows.map((i) => `var m${i} = 0u;`)}
          for (var k = first; k < last; k++) {
            ${rows.map((i) => `m${i} = max(m${i}, magnitude(${input(i, "k", false)}));`)}
          }
          ${rows.flatMap((i) => [
            `let step${i} = step_of(m${i});`,
            `var p${i} = vec4<i32>();`,
            `var g${i} = 0;`,
          ])}
          for (var k = first; k < last; k += ${run}) {
            let w = weights[${panels.at(...place)}];
            ${indices(run).flatMap((j) => [
              `let v${j} = ${one("w", j)};`,
              ...rows.flatMap((i) => {
                const q = `rounded(${input(i, `k + ${j}`, terms % run > 0)}, step${i}).x`;
                return [
                  `let q${j}_${i} = bitcast<i32>(${q}) - ${MAGIC};`,
                  `p${i} = p${i} + v${j} * vec4<i32>(q${j}_${i});`,
                  `g${i} = g${i} + q${j}_${i};`,
                ];
              }),
            ])}
          }
          let k = first;
          ${panels.scales(...place)}
          ${rows.map((i) => {
            const add = value(`vec4<f32>(p${i})`, `f32(g${i})`);
            return `a${i} = fma(vec4<f32>(scale_of(m${i})), ${add}, a${i});`;
          })}
        }
        ${rows.map((i) => `t${i} = t${i} + a${i};`)}
      }`;
  };
