/**
 * u = A·x, each row by its slot's own A. A GPU makes a norm's row that is alone where it reads it; a CPU
 * behind WebGPU has tiles of rows, which read A once.
 */
import type { Type } from "../../ops/index.ts";
import { DROPOUT_BIT, QUAD, QUAD_WORDS } from "../../runtime/bundle.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Made } from "./body.ts";
import { most, plainRows, wideRows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { epilogue } from "./text/assemblyscript_products.ts";
import { foldShared } from "./text/library.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { madeRow } from "./text/wgsl_made.ts";
import { CHUNK, chunkOf, indices, epilogue as wgslEpilogue } from "./text/wgsl_products.ts";

type Factor = Type & { kind: "factor" };
/** Terms that WGSL asks for in one go. */
const STEP = 8;
const chunksOf = (b: Body): number => Math.ceil((b.operands[1]!.value.type as Factor).cols / CHUNK);
/**
 * Chunks up to which a lane goes through all of them: a workgroup has rows then, where it would have lanes
 * with nothing to do, and barriers.
 */
const FEW_CHUNKS = 4;
/** Lanes of such a workgroup, four to a row. */
const SERIAL_LANES = 32;
/** Terms that it asks for in one go. */
const SERIAL_STEP = 4;
const SERIAL_ROWS = SERIAL_LANES / QUAD;
const serial = (bodies: readonly Body[]): boolean =>
  !makes(bodies) && bodies.every((b) => chunksOf(b) <= FEW_CHUNKS);
/** Is a row that is alone made anew here? */
const makes = (bodies: readonly Body[]): boolean => bodies.some((b) => b.operands[0]!.made);
/** Rows of a tile, whose four lanes have a quad of A's rows. */
const TILE = 4;
const TILE_LANES = 32;
const tileRows = (TILE_LANES / QUAD) * TILE;
/** Bytes of a row of sums in a thread's scratch. */
export const rowBytes = (cols: number): number => Math.ceil(cols / 4) * 16;

/** Products of rows with four rows of a factor. */
const functions = `
/** u[0..4) = x · rows of a factor, \`apart\` numbers apart. */
function shrink4(x: usize, f: usize, cols: i32, apart: i32, out: usize): void {
  let a0: v128 = f32x4.splat(0), a1: v128 = a0, a2: v128 = a0, a3: v128 = a0;
  const f1: usize = f + ((<usize>apart) << 2);
  const f2: usize = f1 + ((<usize>apart) << 2);
  const f3: usize = f2 + ((<usize>apart) << 2);
  let c: i32 = 0;
  for (; c + 4 <= cols; c += 4) {
    const o: usize = (<usize>c) << 2;
    const v: v128 = v128.load(x + o);
    a0 = madd(v, v128.load(f + o), a0);
    a1 = madd(v, v128.load(f1 + o), a1);
    a2 = madd(v, v128.load(f2 + o), a2);
    a3 = madd(v, v128.load(f3 + o), a3);
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
function shrink4x4(
  x0: usize, x1: usize, x2: usize, x3: usize, f: usize, cols: i32, out: usize, outStride: i32
): void {
  const fs: usize = (<usize>cols) << 2;
  for (let half: usize = 0; half < 2; half++) {
    const fa: usize = f + half * 2 * fs;
    const fb: usize = fa + fs;
    let a0: v128 = f32x4.splat(0), a1: v128 = a0, b0: v128 = a0, b1: v128 = a0,
          c0: v128 = a0, c1: v128 = a0, d0: v128 = a0, d1: v128 = a0;
    let c: i32 = 0;
    for (; c + 4 <= cols; c += 4) {
      const o: usize = (<usize>c) << 2;
      const w0: v128 = v128.load(fa + o);
      const w1: v128 = v128.load(fb + o);
      let x: v128 = v128.load(x0 + o);
      a0 = madd(x, w0, a0);
      a1 = madd(x, w1, a1);
      x = v128.load(x1 + o);
      b0 = madd(x, w0, b0);
      b1 = madd(x, w1, b1);
      x = v128.load(x2 + o);
      c0 = madd(x, w0, c0);
      c1 = madd(x, w1, c1);
      x = v128.load(x3 + o);
      d0 = madd(x, w0, d0);
      d1 = madd(x, w1, d1);
    }
    let sa0: f32 = hsum(a0), sa1: f32 = hsum(a1), sb0: f32 = hsum(b0), sb1: f32 = hsum(b1),
      sc0: f32 = hsum(c0), sc1: f32 = hsum(c1), sd0: f32 = hsum(d0), sd1: f32 = hsum(d1);
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
}`;

/** A tile of rows without workgroup memory: lanes of a quad bring each other what they read of the rows. */
function tiled(name: string, b: Body, env: KernelEnv): string {
  const f = b.operands[1]!.value;
  const { branch, cols } = f.type as Factor;
  const rows = indices(TILE);
  const at = rows.map((k) => wgsl.rowAtAny(b.operands[0]!, env, `min(r0 + ${k}, n - 1)`));
  const slotOf = (row: string): string => `batch[${env.layout.arrays.slot!} + ${row}]`;
  const factor = (j: number, count: number): string => (j < count ? `adapters[f + k + ${j}]` : "0.0f");
  const terms = (count: number): Lines => lines`
    let v = vec4<f32>(${indices(QUAD)
      .map((j) => factor(j, count))
      .join(", ")});
    ${rows.flatMap((i) => [
      `let y${i} = four_${at[i]!.space}(x${i} + k, 1, ${count - 1});`,
      ...indices(count).map((j) => `a${i} = fma(y${i}[${j}], v[${j}], a${i});`),
    ])}`;
  const tail = cols % QUAD;
  // Lanes of rows of A that are not there read what is in their place, for others.
  const sums: Lines = lines`
    ${rows.map((i) => `var t${i} = 0.0f;`)}
    let rank = ${wgsl.inTable("slot", branch, "rank", env)};
    if (quad * ${QUAD} < rank) {
      let f = tables[${wgsl.quadsAt("slot", branch, env)} + quad * ${QUAD_WORDS}]
        + ${env.address(f).offset} + r * ${cols};
      let terms = ${cols};
      let chunks = ${Math.ceil(cols / CHUNK)};
      for (var c = 0; c < chunks; c++) {
        ${rows.map((i) => `var a${i} = 0.0f;`)}
        let until = min(terms, (c + 1) * ${CHUNK});
        let whole = until${tail ? ` - until % ${QUAD}` : ""};
        for (var k = c * ${CHUNK}; k < whole; k += ${QUAD}) {
          ${terms(QUAD)}
        }
        ${
          tail
            ? lines`
        if (whole < until) {
          let k = whole;
          ${terms(tail)}
        }`
            : []
        }
        ${rows.map((i) => `t${i} = t${i} + a${i};`)}
      }
      ${rows.map((i) => `t${i} = select(0.0f, t${i}, quad * ${QUAD} + r < rank);`)}
    }`;
  const put = (of: string): Lines =>
    rows.map((i) => `if (r0 + ${i} < n) { ${name}_e(r0 + ${i}, quad * ${QUAD} + r, ${of}${i}); }`);
  // All rows of a unit are a job's. Of a step, rows of other slots are summed too: what begins later takes
  // their place.
  const all: Lines =
    b.domain === "W"
      ? lines`
        let slot = ${slotOf("r0")};
        ${sums}
        if (quad * ${QUAD} + r < ${b.cols}) {
          ${put("t")}
        }`
      : lines`
        ${rows.map((i) => `var o${i} = 0.0f;`)}
        for (var i = 0; i < min(${TILE}, n - r0); i++) {
          let slot = ${slotOf("r0 + i")};
          if (i == 0 || ${slotOf("r0 + max(i, 1) - 1")} != slot) {
            ${sums}
            ${rows.map((k) => `o${k} = select(t${k}, o${k}, ${k} < i);`)}
          }
        }
        if (quad * ${QUAD} + r < ${b.cols}) {
          ${put("o")}
        }`;
  const text = lines`
    ${wgsl.guard(b.bits)}
    let n = ${wgsl.count(b.domain)};
    let r0 = wg.y * ${tileRows} + lane / ${QUAD} * ${TILE};
    let quad = wg.x;
    let r = lane % ${QUAD};
    if (idle(quad * ${QUAD} >= ${b.cols} || r0 >= n)) { return; }
    ${at.map(({ at }, i) => `let x${i} = ${at};`)}
    ${all}`;
  return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
}

export const shrink: GraphKernel = {
  epilogue: "elements",
  makes: "undropped",
  variants: () => ["plain", "any"],
  lanes: (bodies, variant) => {
    if (variant === "plain") return TILE_LANES;
    return serial(bodies) ? SERIAL_LANES : wgsl.WG;
  },
  shared: (variant, lanes, bodies) => {
    if (variant === "plain" || lanes === SERIAL_LANES) return [];
    return makes(bodies) ? foldShared : [`var<workgroup> part: array<f32, ${wgsl.WG}>;`];
  },
  grid: (bodies, _env, variant) => [
    most(bodies, (b) => b.cols / QUAD, 1),
    variant === "plain" ? plainRows(bodies, tileRows) : wideRows(bodies, serial(bodies) ? SERIAL_ROWS : 1),
  ],
  // A workgroup has a row and a quad of its slot's rows of A; a lane a chunk of one of these, or nothing,
  // which adds nothing: so factors of all widths are one text. Or it has some rows, and a lane one of the
  // quad's four.
  wgsl: (name, b, env, variant, lanes) => {
    if (variant === "plain") return tiled(name, b, env);
    const f = b.operands[1]!.value;
    const { branch, cols } = f.type as Factor;
    const x = wgsl.rowAtAny(b.operands[0]!, env, "row");
    const slots = wgsl.WG / QUAD;
    const chunks = Math.ceil(cols / CHUNK);
    const terms = (n: number): string[] =>
      indices(n).map((j) => `sum = fma(${x.space}[x + k + ${j}], adapters[f + k + ${j}], sum);`);
    if (lanes === SERIAL_LANES) {
      const text = lines`
        ${wgsl.guard(b.bits)}
        let row = wg.y * ${SERIAL_ROWS} + lane / ${QUAD};
        let quad = wg.x;
        let r = lane % ${QUAD};
        if (quad * ${QUAD} + r >= ${b.cols} || row >= ${wgsl.count(b.domain)}) { return; }
        let slot = batch[${env.layout.arrays.slot!} + row];
        var total = 0.0f;
        if (quad * ${QUAD} + r < ${wgsl.inTable("slot", branch, "rank", env)}) {
          let x = ${x.at};
          let f = tables[${wgsl.quadsAt("slot", branch, env)} + quad * ${QUAD_WORDS}]
            + ${env.address(f).offset} + r * ${cols};
          let terms = ${cols};
          for (var c = 0; c < ${chunks}; c++) {
            var sum = 0.0f;
            let until = min(terms, (c + 1) * ${CHUNK});
            let whole = until${cols % SERIAL_STEP ? ` - until % ${SERIAL_STEP}` : ""};
            for (var k = c * ${CHUNK}; k < whole; k += ${SERIAL_STEP}) {
              ${terms(SERIAL_STEP)}
            }
            ${cols % SERIAL_STEP ? [`for (var k = whole; k < until; k++) { ${terms(1)[0]} }`] : []}
            total = total + sum;
          }
        }
        ${name}_e(row, quad * ${QUAD} + r, total);`;
      return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
    }
    /** All chunks, of which `terms` says what so many numbers from k on add. */
    const summed = (terms: (n: number) => Lines): Lines => lines`
      let turns = ${Math.ceil(chunks / slots)};
      for (var turn = 0; turn < turns; turn++) {
        let c = turn * ${slots} + lane / ${QUAD};
        var sum = 0.0f;
        ${chunkOf(cols, STEP, terms)}
        part[lane] = sum;
        workgroupBarrier();
        if (lane < ${QUAD}) {
          for (var i = 0; i < ${slots}; i++) { total = total + part[i * ${QUAD} + lane]; }
        }
        workgroupBarrier();
      }`;
    const read = [`let x = ${x.at};`, ...summed(terms)];
    const { made, undropped } = b.operands[0]!;
    const anew = (made: Made): Lines => {
      const { before, four } = madeRow(made, env, "wg.y", cols, lanes);
      const each = (n: number): Lines => {
        const fours = indices(Math.ceil(n / 4)).map((i) => four(`k + ${4 * i}`));
        return [
          ...fours.flatMap(({ text }) => text),
          ...indices(n).map(
            (j) => `sum = fma(${fours[j >> 2]!.value}[${j & 3}], adapters[f + k + ${j}], sum);`,
          ),
        ];
      };
      const alone = `row + 1 == ${wgsl.count(b.domain)} && ${wgsl.restOf(b.domain)} == 1`;
      return lines`
        if (${alone}${undropped ? ` && !(${wgsl.maskBit(DROPOUT_BIT)})` : ""}) {
          ${before}
          ${summed(each)}
        } else {
          ${read}
        }`;
    };
    const text = lines`
      ${wgsl.guard(b.bits)}
      let row = wg.y;
      let quad = wg.x;
      let r = lane % ${QUAD};
      if (quad * ${QUAD} >= ${b.cols}) { return; }
      let slot = batch[${env.layout.arrays.slot!} + row];
      let rank = ${wgsl.inTable("slot", branch, "rank", env)};
      var total = 0.0f;
      if (quad * ${QUAD} < rank) {
        let f = tables[${wgsl.quadsAt("slot", branch, env)} + quad * ${QUAD_WORDS}]
          + ${env.address(f).offset} + r * ${cols};
        ${made ? anew(made) : read}
      }
      if (lane < ${QUAD} && quad * ${QUAD} + lane < ${b.cols}) {
        ${name}_e(row, quad * ${QUAD} + lane, select(0.0f, total, quad * ${QUAD} + lane < rank));
      }`;
    return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
  },
  scratch: (b) => 4 * rowBytes(b.cols),
  // Four rows of one slot share the factor's loads; each dot is the same chain either way.
  library: () => functions,
  assembly: (name, b, env) => {
    const [x, f] = [b.operands[0]!, b.operands[1]!.value];
    const { branch, cols } = f.type as Factor;
    const at = env.address(f);
    const outStride = rowBytes(b.cols);
    const text = lines`
      ${assembly.guard(b.bits)}
      ${assembly.shareOf(assembly.count(b.domain))}
      let row: i32 = lo;
      while (row < hi) {
        const slots: usize = meta + ((<usize>row) << 2) + ${env.layout.arrays.slot! * 4};
        const slot: i32 = load<i32>(slots);
        const rank: i32 = ${assembly.inTable("slot", branch, "rank", env)};
        let quads: usize = ${assembly.quadsAt("slot", branch, env)};
        const four: bool = row + 4 <= hi && load<i32>(slots, 4) == slot
          && load<i32>(slots, 8) == slot && load<i32>(slots, 12) == slot;
        const count: i32 = four ? 4 : 1;
        let r: i32 = 0;
        for (; r < rank; r += 4) {
          const f: usize = ${at.space} + ((<usize>load<i32>(quads)) << 2) + ${at.offset * 4};
          quads += 8;
          if (four) shrink4x4(
            ${[0, 1, 2, 3].map((i) => `${assembly.rowPtr(x, env, `row + ${i}`)},`)}
            f, ${cols}, scratch + ((<usize>r) << 2), ${outStride});
          else shrink4(
            ${assembly.rowPtr(x, env, "row")},
            f, ${cols}, ${cols}, scratch + ((<usize>r) << 2));
        }
        for (let i: i32 = 0; i < count; i++) {
          for (let z: i32 = r; z < ${b.cols}; z += 4)
            v128.store(scratch + <usize>i * ${outStride} + ((<usize>z) << 2), f32x4.splat(0));
          ${name}_e(${assembly.passed}, row + i, 0, ${b.cols}, scratch + <usize>i * ${outStride}, 0);
        }
        row += count;
      }`;
    return `${epilogue(name, b, env, [])}${assembly.fn(name, text)}`;
  },
};
