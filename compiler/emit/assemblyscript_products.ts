/**
 * Products on the CPU: register tiles over 8-column panels. Weights are read from one packed copy: y = x·Wᵀ
 * takes panels as they are, dx = dy·W turns them on the fly, and every storage format is unpacked to f32 a
 * chunk at a time, so one family of tiles serves all. Each output is one chain of multiply-adds in ascending
 * order of what is summed, whatever the rows beside it and whichever thread computes it.
 */
import { type Expr, sameValue, type Type } from "../../ops/index.ts";
import type { Body, Operand } from "../fuse.ts";
import { type KernelEnv, SLOT_TABLE } from "../kernel.ts";
import { dialect, type Expand, storeLoops } from "./assemblyscript_dialect.ts";
import {
  BLOCK_COLS,
  BLOCK_ROWS,
  BLOCK_STRIDE,
  count,
  DELTA_AT,
  DELTA_BYTES,
  guard,
  header,
  indent,
  jobRank,
  K_CHUNK,
  K_DIRECT,
  MAX_SEGMENTS,
  overSegments,
  P,
  PACK_AT,
  passed,
  ROWS_AT,
  rowPtr,
  shareOf,
  signature,
  stride,
  wrap,
} from "./assemblyscript_parts.ts";
import { Printer } from "./printer.ts";

type Weight = Type & { kind: "weight" };
const PANEL_GROUP = BLOCK_COLS / P;
const CHUNK_BYTES = K_CHUNK * P * 4;

/** The distinct low-rank deltas that a body's epilogue adds. */
function deltasOf(b: Body): Expand[] {
  const out: Expand[] = [];
  const visit = (e: Expr): void => {
    if (e.e === "expand" && !out.some((o) => sameValue(o.u, e.u) && sameValue(o.factor, e.factor)))
      out.push(e);
    else if (e.e === "call") e.args.forEach(visit);
    else if (e.e === "if") {
      visit(e.yes);
      visit(e.no);
    }
  };
  for (const s of b.stores) visit(s.expr);
  return out;
}
/** Bytes of a thread's scratch that a body needs. */
export function productScratch(b: Body): number {
  if (b.skeleton === "shrink") return 4 * Math.ceil(b.cols / 4) * 16;
  return b.skeleton === "linear" || b.skeleton === "linear_t"
    ? DELTA_AT + deltasOf(b).length * DELTA_BYTES
    : 0;
}
/** Statements that fill the deltas of `rows` rows from row `r`, of `panels` panels from column `c0`. */
function fillDeltas(b: Body, env: KernelEnv, r: string, rows: string, c0: string, panels: string): string[] {
  return deltasOf(b).map((e, i) => {
    const t = e.factor.type as Type & { kind: "factor" };
    const [u, f] = [env.address(e.u), env.address(e.factor)];
    return `delta(${u.cls} + ((<usize>((${r}) * ${u.stride})) << 2) + ${u.offset * 4}, ${u.stride * 4}, ${rows}, meta + ((<usize>(${r})) << 2) + ${env.layout.arrays.slot! * 4}, tables + ${(SLOT_TABLE + t.branch * 2) * 4}, ${env.branches * 8}, ${f.cls} + ${f.offset * 4} + ((<usize>(${c0})) << 2), ${env.slotWords * 4}, ${t.cols * 4}, ${panels}, scratch + ${DELTA_AT + i * DELTA_BYTES});`;
  });
}

/** The epilogue of a product as a function of (row, columns [c0, end), sums of the row from c0). */
function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = new Printer(dialect(env, b.skeleton === "shrink" ? [] : deltasOf(b)), 1);
  const loops = storeLoops(p, b.stores, env, b.cols, "c0", "end");
  return wrap(
    name,
    [...indent(p.row, 2), ...indent(loops, 2)],
    `${signature}, row: i32, c0: i32, end: i32, acc: usize, delta_: usize`,
  );
}

/** y = x·Wᵀ or dx = Σ dy·W: blocks of 64 rows × 64 columns, a thread owns whole panels of columns. */
export function emitProduct(name: string, b: Body, env: KernelEnv): string {
  const turned = b.skeleton === "linear_t";
  const pairs: (readonly [Operand, Operand])[] = [];
  for (let i = 0; i < b.operands.length; i += 2) pairs.push([b.operands[i]!, b.operands[i + 1]!]);
  if (pairs.length > MAX_SEGMENTS) throw new Error(`${name}: ${pairs.length} products in one sum`);
  const rowsAt = (s: number): string => `scratch + ${ROWS_AT + s * BLOCK_ROWS * 4}`;
  const products = pairs.map(([, w], s) => {
    const t = w.value.type as Weight;
    const at = `weights + ${env.address(w.value).offset * 4}`;
    return turned
      ? `turned_${t.format}(${rowsAt(s)}, rows, ${at}, ${t.n}, ${t.k}, p, pe, scratch, scratch + ${PACK_AT});`
      : `product_${t.format}(${rowsAt(s)}, rows, ${at}, ${t.n}, ${t.k}, p, pe, scratch, scratch + ${PACK_AT});`;
  });
  return `${epilogue(`${name}_e`, b, env)}${wrap(name, [
    `  const n: i32 = ${count(b.domain)};`,
    ...shareOf(String(Math.ceil(b.cols / P))),
    `  for (let rb: i32 = 0; rb < n; rb += ${BLOCK_ROWS}) {`,
    `    const rows: i32 = min(${BLOCK_ROWS}, n - rb);`,
    "    for (let i: i32 = 0; i < rows; i++) {",
    ...pairs.map(
      ([x], s) => `      store<u32>(${rowsAt(s)} + ((<usize>i) << 2), ${rowPtr(x, env, "rb + i")});`,
    ),
    "    }",
    `    for (let p: i32 = lo; p < hi; p += ${PANEL_GROUP}) {`,
    `      const pe: i32 = min(p + ${PANEL_GROUP}, hi);`,
    `      const end: i32 = min(pe * ${P}, ${b.cols});`,
    `      clear(scratch, rows * ${BLOCK_STRIDE});`,
    ...indent(products, 6),
    ...indent(fillDeltas(b, env, "rb", "rows", `p * ${P}`, "pe - p"), 6),
    "      for (let i: i32 = 0; i < rows; i++) {",
    `        const at: usize = <usize>i * ${BLOCK_STRIDE};`,
    `        ${name}_e(${passed}, rb + i, p * ${P}, end, scratch + at, scratch + ${DELTA_AT} + at);`,
    "      }",
    "    }",
    "  }",
  ])}`;
}

/**
 * u = x · factorᵀ of each row's slot: four rows of one slot share the factor's loads; each dot is the same
 * chain either way.
 */
export function emitShrink(name: string, b: Body, env: KernelEnv): string {
  const [x, f] = b.operands as [Operand, Operand];
  const t = f.value.type as Type & { kind: "factor" };
  const fa = env.address(f.value);
  const outStride = Math.ceil(b.cols / 4) * 16;
  const info = `tables + ((<usize>(slot * ${env.branches * 2})) << 2)`;
  return `${epilogue(`${name}_e`, b, env)}${wrap(name, [
    ...guard(b.bit),
    ...shareOf(count(b.domain)),
    "  let row: i32 = lo;",
    "  while (row < hi) {",
    `    const slots: usize = meta + ((<usize>row) << 2) + ${env.layout.arrays.slot! * 4};`,
    "    const slot: i32 = load<i32>(slots);",
    `    const rank: i32 = load<i32>(${info}, ${(SLOT_TABLE + t.branch * 2) * 4});`,
    `    const f: usize = ${fa.cls} + ((<usize>(slot * ${env.slotWords})) << 2) + ${fa.offset * 4};`,
    "    const four: bool = row + 4 <= hi && load<i32>(slots, 4) == slot && load<i32>(slots, 8) == slot && load<i32>(slots, 12) == slot;",
    "    const count: i32 = four ? 4 : 1;",
    "    let r: i32 = 0;",
    "    for (; r < rank; r += 4) {",
    `      if (four) shrink4x4(${[0, 1, 2, 3].map((i) => rowPtr(x, env, `row + ${i}`)).join(", ")}, f + ((<usize>(r * ${t.cols})) << 2), ${t.cols}, scratch + ((<usize>r) << 2), ${outStride});`,
    `      else shrink4(${rowPtr(x, env, "row")}, f + ((<usize>(r * ${t.cols})) << 2), ${t.cols}, scratch + ((<usize>r) << 2));`,
    "    }",
    "    for (let i: i32 = 0; i < count; i++) {",
    `      for (let z: i32 = r; z < ${b.cols}; z += 4) v128.store(scratch + <usize>i * ${outStride} + ((<usize>z) << 2), f32x4.splat(0));`,
    `      ${name}_e(${passed}, row + i, 0, ${b.cols}, scratch + <usize>i * ${outStride}, 0);`,
    "    }",
    "    row += count;",
    "  }",
  ])}`;
}

/**
 * A parameter's gradient, Σ over rows of down[row] ⊗ lanes[row], segment by segment: a thread owns whole
 * panels of lanes.
 */
export function emitOuter(name: string, b: Body, env: KernelEnv): string {
  const [a, c, param] = b.operands as [Operand, Operand, Operand];
  const pa = env.param(String(b.node!.attrs.of));
  const base = (o: Operand): string => {
    if (o.index !== null && o.index !== "save_row" && o.index !== "ext_row")
      throw new Error(`outer needs contiguous rows, not ${o.index}`);
    return rowPtr(o, env, "r0");
  };
  const out = `accum + ((<usize>(${header("job")} * ${env.jobWords} + ${pa.accum})) << 2)`;
  const weight = param.value.type.kind === "weight";
  // Matrix: panels over n (lanes), k down; a = dy [n], c = x [k]. Factor: rank down, columns over lanes; a =
  // u [rank], c = x or dy [cols].
  const lanes = weight ? a : c;
  const down = weight ? c : a;
  const nLanes = weight ? pa.n : pa.k;
  const nDown = weight ? pa.k : pa.n;
  const outRow = weight ? P * 4 : pa.k * 4;
  const outPanel = weight ? pa.k * P * 4 : P * 4;
  const full = Math.floor(nLanes / P);
  const strides = `${stride(down, env) * 4}, lp + <usize>p * ${P * 4}, ${stride(lanes, env) * 4}, n`;
  return wrap(name, [
    ...guard(b.bit),
    `  const out: usize = ${out};`,
    // Rows of u beyond the slot's rank are zero, and so is their gradient.
    `  const down: i32 = ${weight ? nDown : `min(${nDown}, (${jobRank(pa.branch!, env)} + 3) & ~3)`};`,
    ...shareOf(String(Math.ceil(nLanes / P))),
    ...overSegments(b.domain, env, [
      `const lp: usize = ${base(lanes)};`,
      `const dp: usize = ${base(down)};`,
      `for (let p: i32 = lo; p < min(hi, ${full}); p++) {`,
      `  const o: usize = out + <usize>p * ${outPanel};`,
      "  let k: i32 = 0;",
      ...[8, 4].map(
        (r) =>
          `  for (; k + ${r} <= down; k += ${r}) outer${r}(dp + ((<usize>k) << 2), ${strides}, o + <usize>k * ${outRow}, ${outRow});`,
      ),
      `  for (; k < down; k++) outer1(dp + ((<usize>k) << 2), ${strides}, o + <usize>k * ${outRow}, ${P});`,
      "}",
      ...(nLanes % P
        ? [
            `if (hi > ${full}) {`,
            `  const p: i32 = ${full};`,
            `  for (let k: i32 = 0; k < down; k++) outer1(dp + ((<usize>k) << 2), ${strides}, out + ${full * outPanel} + <usize>k * ${outRow}, ${nLanes % P});`,
            "}",
          ]
        : []),
    ]),
  ]);
}

const each = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
interface Storage {
  /** Bytes of a term (eight columns) of a panel, and terms that share scales. */
  readonly bytes: number;
  readonly scaled: number;
  /** Statements that make columns 0 to 3 and 4 to 7 of term `u`, as `b` and `d`. */
  readonly load: (u: number) => string[];
}
const storage: Readonly<Record<Weight["format"], Storage>> = {
  f32: {
    bytes: 32,
    scaled: 0,
    load: (u) => [
      `const b${u}: v128 = v128.load(w, ${u * 32});`,
      `const d${u}: v128 = v128.load(w, ${u * 32 + 16});`,
    ],
  },
  f16: {
    bytes: 16,
    scaled: 0,
    load: (u) => [
      `const h${u}: v128 = v128.load(w, ${u * 16});`,
      `const b${u}: v128 = widen(i32x4.extend_low_i16x8_s(h${u}));`,
      `const d${u}: v128 = widen(i32x4.extend_high_i16x8_s(h${u}));`,
    ],
  },
  int8: {
    bytes: 8,
    scaled: 32,
    load: (u) => [
      `const e${u}: v128 = v128.load_ext<i8>(w, ${u * 8});`,
      `const b${u}: v128 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(e${u})), s0);`,
      `const d${u}: v128 = f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(e${u})), s1);`,
    ],
  },
};
const TILE_ROWS = [4, 2, 1] as const;
/**
 * acc[rows][8] += x[rows][K] · panel, K ascending. Loops are short on purpose: engines keep the sums of one
 * or two terms an iteration in registers and those of more not always (V8 of Node 20 to 24: 4 × 8 in f32 runs
 * at 65 GFLOP/s with one term and 40 to 55 with more, 2 × 8 at twice the speed with two as with four). One
 * panel, on purpose: a second run of memory costs a third of the speed.
 */
function tile(rows: number, format: Weight["format"]): string {
  const xs = each(rows);
  const { bytes, scaled, load } = storage[format];
  const terms = (n: number): string[] => [
    ...each(n).flatMap((u) => [
      ...load(u),
      ...xs.flatMap((i) => [
        `const t${u}_${i}: v128 = v128.load_splat<f32>(x${i}, ${u * 4});`,
        `p${i} = madd(t${u}_${i}, b${u}, p${i});`,
        `q${i} = madd(t${u}_${i}, d${u}, q${i});`,
      ]),
    ]),
    `${xs.map((i) => `x${i} += ${n * 4};`).join(" ")} w += ${n * bytes};`,
  ];
  const few = format === "f32" && rows === 4 ? 1 : 2;
  const over = (end: string): string[] => [
    ...(few > 1
      ? [
          `const pairs: usize = ${end} - ((${end} - w) & ${bytes});`,
          "while (w < pairs) {",
          ...indent(terms(few), 2),
          "}",
          `if (w < ${end}) {`,
        ]
      : [`while (w < ${end}) {`]),
    ...indent(terms(1), 2),
    "}",
  ];
  return [
    `function tile${rows}_${format}(${xs.map((i) => `x${i}: usize, `).join("")}w: usize, ${scaled ? "scales: usize, " : ""}K: i32, acc: usize): void {`,
    ...xs.map(
      (i) =>
        `  let p${i}: v128 = v128.load(acc, ${i * BLOCK_STRIDE}), q${i}: v128 = v128.load(acc, ${i * BLOCK_STRIDE + 16});`,
    ),
    `  const end: usize = w + (<usize>K) * ${bytes};`,
    ...(scaled
      ? [
          "  while (w < end) {",
          "    const s0: v128 = half4(scales), s1: v128 = half4(scales + 8);",
          `    const block: usize = w + ${scaled * bytes} < end ? w + ${scaled * bytes} : end;`,
          ...indent(over("block"), 4),
          "    scales += 16;",
          "  }",
        ]
      : indent(over("end"), 2)),
    ...xs.map(
      (i) =>
        `  v128.store(acc, p${i}, ${i * BLOCK_STRIDE}); v128.store(acc, q${i}, ${i * BLOCK_STRIDE + 16});`,
    ),
    "}",
  ].join("\n");
}
/**
 * Terms of four rows and a panel that a first-level cache holds; past it, four rows that also wait for memory
 * take longer than two and two.
 */
const K_NEAR = 768;
/**
 * Panels lie one after the other in memory: the first rows read them as one long run, and the next find them
 * in the cache.
 */
function tiles(format: Weight["format"]): string {
  const scaled = storage[format].scaled;
  const pass = (rows: number): string[] => [
    "const at: usize = xs + ((<usize>r) << 2);",
    ...each(rows).map((i) => `const x${i}: usize = <usize>load<u32>(at, ${i * 4}) + from;`),
    "for (let p: i32 = 0; p < panels; p++) {",
    `  tile${rows}_${format}(${each(rows)
      .map((i) => `x${i}, `)
      .join(
        "",
      )}w + <usize>p * apart, ${scaled ? "scales + <usize>p * scalesApart, " : ""}K, acc + <usize>(r * ${BLOCK_STRIDE} + p * ${P * 4}));`,
    "}",
    `r += ${rows};`,
  ];
  return [
    ...TILE_ROWS.map((rows) => tile(rows, format)),
    "/** acc[rows][panels × 8] += the K terms of rows at `xs` (pointers) from byte `from` · panels `apart` bytes apart. */",
    `function tiles_${format}(xs: usize, from: usize, rows: i32, w: usize, apart: usize, ${scaled ? "scales: usize, scalesApart: usize, " : ""}panels: i32, K: i32, acc: usize): void {`,
    "  let r: i32 = 0;",
    "  while (r < rows) {",
    `    const n: i32 = r == 0 && K > ${K_NEAR} ? min(rows, 2) : rows - r;`,
    ...TILE_ROWS.flatMap((n, i) => [
      `    ${i ? "else " : ""}${n > 1 ? `if (n >= ${n}) ` : ""}{`,
      ...indent(pass(n), 6),
      "    }",
    ]),
    "  }",
    "}",
  ].join("\n");
}

/**
 * The two products over one storage format. For eight rows and more, and turned, packed panels are unpacked
 * before: four panels of a chunk at a time.
 */
function productsOf(format: Weight["format"]): string {
  const direct = format === "f32";
  const { bytes, scaled } = storage[format];
  // As they are: long runs of eight panels.
  const asTheyAre = [
    `for (let k: i32 = 0; k < K; k += ${K_DIRECT}) {`,
    `  const terms: i32 = min(${K_DIRECT}, K - k);`,
    ...(scaled
      ? [
          `  const scales: usize = w + <usize>(((N + 7) >> 3) * K) * ${bytes} + <usize>(p0 * ((K + 31) >> 5) + (k >> 5)) * 16;`,
        ]
      : []),
    `  tiles_${format}(xs, (<usize>k) << 2, rows, w + <usize>(p0 * K + k) * ${bytes}, (<usize>K) * ${bytes}, ${scaled ? "scales, <usize>((K + 31) >> 5) * 16, " : ""}p1 - p0, terms, acc);`,
    "}",
  ];
  return [
    `function product_${format}(xs: usize, rows: i32, w: usize, N: i32, K: i32, p0: i32, p1: i32, acc: usize, pack: usize): void {`,
    ...(direct
      ? indent(asTheyAre, 2)
      : [
          "  if (rows < 8) {",
          ...indent(asTheyAre, 4),
          "    return;",
          "  }",
          `  for (let k: i32 = 0; k < K; k += ${K_CHUNK}) {`,
          `    const terms: i32 = min(${K_CHUNK}, K - k);`,
          "    for (let p: i32 = p0; p < p1; p += 4) {",
          "      const q: i32 = min(4, p1 - p);",
          `      for (let j: i32 = 0; j < q; j++) unpack_${format}(w, N, K, p + j, k, terms, pack + <usize>j * ${CHUNK_BYTES});`,
          `      tiles_f32(xs, (<usize>k) << 2, rows, pack, ${CHUNK_BYTES}, q, terms, acc + <usize>(p - p0) * ${P * 4});`,
          "    }",
          "  }",
        ]),
    "}",
    `function turned_${format}(xs: usize, rows: i32, w: usize, N: i32, K: i32, q0: i32, q1: i32, acc: usize, pack: usize): void {`,
    `  for (let n: i32 = 0; n < N; n += ${K_CHUNK}) {`,
    `    const terms: i32 = min(${K_CHUNK}, N - n);`,
    "    for (let q: i32 = q0; q < q1; q += 4) {",
    "      const c: i32 = min(4, q1 - q);",
    `      for (let at: i32 = 0; at < terms; at += ${P}) {`,
    ...(direct
      ? [
          `        turn(w + <usize>((n + at) / ${P} * K + q * ${P}) * 32, c, pack + <usize>at * 32, ${CHUNK_BYTES});`,
        ]
      : [
          `        unpack_${format}(w, N, K, (n + at) / ${P}, q * ${P}, c * ${P}, pack + ${4 * CHUNK_BYTES});`,
          `        turn(pack + ${4 * CHUNK_BYTES}, c, pack + <usize>at * 32, ${CHUNK_BYTES});`,
        ]),
    "      }",
    `      tiles_f32(xs, (<usize>n) << 2, rows, pack, ${CHUNK_BYTES}, c, terms, acc + <usize>(q - q0) * ${P * 4});`,
    "    }",
    "  }",
    "}",
    // DoRA's norms, four outputs at a time: out[o] = 1 / ‖W[o] + scale · Σ_r b[r][o]·a[r]‖₂, k ascending in
    // every lane; `pack` is scratch.
    `function rowNorms_${format}(w: usize, N: i32, K: i32, a: usize, b: usize, rank: i32, scale: f32, out: usize, pack: usize, part: i32, parts: i32): void {`,
    "  const quads: i32 = (N + 3) >> 2;",
    "  for (let o: i32 = share(quads, part, parts) << 2; o < share(quads, part + 1, parts) << 2; o += 4) {",
    "    let sum: v128 = f32x4.splat(0);",
    `    for (let k: i32 = 0; k < K; k += ${K_CHUNK}) {`,
    `      const terms: i32 = min(${K_CHUNK}, K - k);`,
    direct
      ? `      const panel: usize = w + <usize>((o >> 3) * K + k) * 32 + <usize>(o & 7) * 4;`
      : `      const panel: usize = pack + <usize>(o & 7) * 4;`,
    ...(direct ? [] : [`      unpack_${format}(w, N, K, o >> 3, k, terms, pack);`]),
    "      for (let i: i32 = 0; i < terms; i++) sum = rowNormStep(v128.load(panel + <usize>i * 32), k + i, o, N, K, a, b, rank, scale, sum);",
    "    }",
    "    rowNormsOut(sum, o, N, out, pack);",
    "  }",
    "}",
  ].join("\n");
}
/** out[i][0..8) += Σ_rows down[row][i] · lanes[row][0..8): summed from zero in row order, then added once. */
function outerTile(rows: number): string {
  const is = each(rows);
  return [
    `function outer${rows}(down: usize, downStride: i32, lanes: usize, lanesStride: i32, rows: i32, out: usize, outRow: i32): void {`,
    ...is.map((i) => `  let c${i}: v128 = f32x4.splat(0), d${i}: v128 = f32x4.splat(0);`),
    "  for (let t: i32 = 0; t < rows; t++) {",
    "    const l0: v128 = v128.load(lanes);",
    "    const l1: v128 = v128.load(lanes, 16);",
    ...is.flatMap((i) => [
      `    const s${i}: v128 = v128.load_splat<f32>(down, ${i * 4});`,
      `    c${i} = madd(s${i}, l0, c${i});`,
      `    d${i} = madd(s${i}, l1, d${i});`,
    ]),
    "    down += <usize>downStride;",
    "    lanes += <usize>lanesStride;",
    "  }",
    ...is.flatMap((i) => [
      `  v128.store(out, f32x4.add(v128.load(out), c${i}));`,
      `  v128.store(out, f32x4.add(v128.load(out, 16), d${i}), 16);`,
      ...(i + 1 < rows ? ["  out += <usize>outRow;"] : []),
    ]),
    "}",
  ].join("\n");
}
/** Text of all tiles and products, which emitted kernels call. */
export const productText = (): string =>
  [
    ...(["f32", "f16", "int8"] as const).flatMap((f) => [tiles(f), productsOf(f)]),
    outerTile(8),
    outerTile(4),
  ].join("\n");
