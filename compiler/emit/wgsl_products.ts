/**
 * Products in WGSL: register tiles over 16-column panels. Each output is one ascending chain of fma over what
 * is summed, in the tile path and in the row path alike.
 */
import { pairsOf, type Type } from "../../ops/index.ts";
import type { Body, Operand } from "../fuse.ts";
import { type KernelEnv, SLOT_TABLE } from "../kernel.ts";
import { Printer } from "./printer.ts";
import { dialect, stores } from "./wgsl_dialect.ts";
import {
  count,
  fn,
  guard,
  header,
  indent,
  jobRank,
  overSegments,
  panelReader,
  ROWS,
  rowAt,
  WG,
} from "./wgsl_parts.ts";

type Weight = Type & { kind: "weight" };
/**
 * Rows of a product's register tile; a tail of at least so many takes a tile too, its missing rows being the
 * last one again.
 */
export const TILE = 8;
const TILE_FROM = 3;

/** One element of a product's epilogue. */
function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = new Printer(dialect(env), 1);
  const tail = stores(p, b.stores, env, b.cols, "col == 0");
  return fn(
    name,
    [...indent(p.row, 2), ...indent(p.col, 2), ...indent(tail, 2)],
    "row: i32, col: i32, acc: f32",
  );
}

/** Places of the rows of an operand that a tile of `n` rows reads. */
const tileRows = (o: Operand, env: KernelEnv, n: number) =>
  Array.from({ length: n }, (_, i) => rowAt(o, env, n === 1 ? "r" : `min(r0 + ${i}, n - 1)`));

/**
 * A product of `b.cols` columns, a lane owning four of them; `sums` adds into a0 … of a tile of n rows what
 * it reads.
 */
function tiled(name: string, b: Body, env: KernelEnv, sums: (n: number) => readonly string[]): string {
  const rows = (n: number): string[] => {
    const tile = Array.from({ length: n }, (_, i) => `a${i}`);
    return [
      ...tile.map((a) => `var ${a} = vec4<f32>();`),
      ...sums(n),
      // One copy of the epilogue, whatever the tile: it is the larger part of the text.
      `var out = array<vec4<f32>, ${n}>(${tile.join(", ")});`,
      `for (var i = 0; i < ${n === 1 ? 1 : `min(${n}, n - r0)`}; i++) {`,
      `  for (var c = 0; c < ${b.cols % 4 ? `min(4, ${b.cols} - col)` : 4}; c++) { ${name}_e(${n === 1 ? "r" : "r0 + i"}, col + c, out[i][c]); }`,
      "}",
    ];
  };
  return `${epilogue(`${name}_e`, b, env)}\n${fn(name, [
    `  let n = ${count(b.domain)};`,
    `  let r0 = wg.y * ${TILE};`,
    `  let col = (wg.x * ${WG} + lane) * 4;`,
    `  if (col >= ${b.cols}) { return; }`,
    `  if (n - r0 >= ${TILE_FROM}) {`,
    ...indent(rows(TILE), 4),
    "  } else {",
    "    for (var r = r0; r < n; r++) {",
    ...indent(rows(1), 6),
    "    }",
    "  }",
  ])}`;
}

/** y = x·Wᵀ. */
export function emitLinear(name: string, b: Body, env: KernelEnv): string {
  const [x, w] = b.operands as [Operand, Operand];
  const t = w.value.type as Weight;
  const at4 = panelReader(t.format, env.address(w.value).offset, t.n, t.k);
  return tiled(name, b, env, (n) => {
    const at = tileRows(x, env, n);
    return [
      ...at.map((row, i) => `let x${i} = ${row.at};`),
      `for (var k = 0; k < ${t.k}; k++) {`,
      `  let w = ${at4("col / 16", "k", "col % 16")};`,
      ...at.map((row, i) => `  a${i} = fma(vec4<f32>(${row.cls}[x${i} + k]), w, a${i});`),
      "}",
    ];
  });
}

/**
 * dx = dy·W, summed over all pairs of dy and W; twelve loads for 32 products at eight rows and one column of
 * dy.
 */
export function emitLinearT(name: string, b: Body, env: KernelEnv): string {
  const four = [0, 1, 2, 3];
  return tiled(name, b, env, (n) =>
    pairsOf(b.operands).flatMap(([dy, w], s) => {
      const t = w.value.type as Weight;
      const at4 = panelReader(t.format, env.address(w.value).offset, t.n, b.cols);
      const at = tileRows(dy, env, n);
      const full = t.n - (t.n % 4);
      const columns = four.map((c) => `let w${c} = ${at4("j / 16", `col + ${c}`, "j % 16")};`);
      const chains = (terms: number): string[] =>
        four.slice(0, terms).flatMap((j) => {
          const w = `let n${j} = vec4<f32>(${four.map((c) => `w${c}.${"xyzw"[j]}`).join(", ")});`;
          return [
            w,
            ...at.map((row, i) => `a${i} = fma(vec4<f32>(${row.cls}[y${s}_${i} + j + ${j}]), n${j}, a${i});`),
          ];
        });
      return [
        ...at.map((row, i) => `let y${s}_${i} = ${row.at};`),
        `for (var j = 0; j < ${full}; j += 4) {`,
        ...indent([...columns, ...chains(4)], 2),
        "}",
        ...(t.n % 4 ? [`{ let j = ${full};`, ...indent([...columns, ...chains(t.n % 4)], 2), "}"] : []),
      ];
    }),
  );
}

/** u = A·x, the row's slot's own A. */
export function emitShrink(name: string, b: Body, env: KernelEnv): string {
  const [x, f] = b.operands as [Operand, Operand];
  const t = f.value.type as Type & { kind: "factor" };
  const at = rowAt(x, env, "row");
  return `${epilogue(`${name}_e`, b, env)}\n${fn(name, [
    ...guard(b.bit),
    `  let row = wg.x * ${ROWS} + lane / ${WG / ROWS};`,
    `  if (row >= ${count(b.domain)}) { return; }`,
    `  let slot = batch[${env.layout.arrays.slot} + row];`,
    `  let rank = tables[${SLOT_TABLE + t.branch * 2} + slot * ${env.branches * 2}];`,
    `  let x = ${at.at};`,
    `  for (var r = lane % ${WG / ROWS}; r < ${b.cols}; r += ${WG / ROWS}) {`,
    "    var sum = 0.0f;",
    "    if (r < rank) {",
    `      let f = ${env.address(f.value).offset} + slot * ${env.slotWords} + r * ${t.cols};`,
    `      for (var c = 0; c < ${t.cols}; c++) { sum = fma(${at.cls}[x + c], adapters[f + c], sum); }`,
    "    }",
    `    ${name}_e(row, r, sum);`,
    "  }",
  ])}`;
}

/** A gradient dW += dyᵀ·x (or dA += uᵀ·x) over a unit's rows, each segment summed on its own. */
export function emitOuter(name: string, b: Body, env: KernelEnv): string {
  const [a, c, param] = b.operands as [Operand, Operand, Operand];
  const pa = env.param(String(b.node!.attrs.of));
  const ra = rowAt(a, env, "r");
  const rc = rowAt(c, env, "r");
  // A lane owns four columns of four rows of the gradient: eight loads for sixteen products, each element one
  // ascending chain.
  const base = `${header("job")} * ${env.jobWords} + ${pa.accum}`;
  const four = [0, 1, 2, 3];
  const sums = four.map((i) => `var sum${i} = vec4<f32>();`);
  const add = four.map((i) => `total${i} = total${i} + sum${i};`);
  if (param.value.type.kind !== "weight") {
    const wide = pa.k % 4 === 0;
    const at = (i: number, c: number): string => `accum[o + ${i * pa.k + c}]`;
    const inside = (c: number): string => (wide ? "" : `if (col + ${c} < ${pa.k}) `);
    return fn(name, [
      ...guard(b.bit),
      `  let col = (wg.x * ${WG} + lane) * 4;`,
      "  let k = wg.y * 4;",
      // Rows of u beyond the slot's rank are zero, and so is their gradient.
      `  if (col >= ${pa.k} || k >= ${jobRank(pa.branch!, env)}) { return; }`,
      `  let o = ${base} + k * ${pa.k} + col;`,
      ...four.map((i) => `  var total${i} = vec4<f32>(${four.map((c) => at(i, c)).join(", ")});`),
      ...overSegments(
        b.domain,
        env,
        sums,
        [
          `let xp = ${rc.at} + col;`,
          `let x = vec4<f32>(${four.map((c) => `${rc.cls}[xp + ${c}]`).join(", ")});`,
          `let up = ${ra.at} + k;`,
          ...four.map((i) => `sum${i} = fma(vec4<f32>(${ra.cls}[up + ${i}]), x, sum${i});`),
        ],
        add,
      ),
      ...four.flatMap((i) => four.map((c) => `  ${inside(c)}{ ${at(i, c)} = total${i}.${"xyzw"[c]}; }`)),
    ]);
  }
  const lane = (j: number): string =>
    pa.n % 16
      ? `select(0.0f, ${ra.cls}[min(y + ${j}, y0 + ${pa.n - 1})], j + ${j} < ${pa.n})`
      : `${ra.cls}[y + ${j}]`;
  return fn(name, [
    `  let at = wg.x * ${WG} + lane;`,
    "  let k = (at / 4) * 4;",
    `  if (k >= ${pa.k}) { return; }`,
    "  let j = wg.y * 16 + (at % 4) * 4;",
    `  if (wg.y >= ${Math.ceil(pa.n / 16)}) { return; }`,
    `  let o = ${base} + (wg.y * ${pa.k} + k) * 16 + (at % 4) * 4;`,
    ...four.map(
      (i) => `  var total${i} = vec4<f32>(${four.map((c) => `accum[o + ${i * 16 + c}]`).join(", ")});`,
    ),
    ...overSegments(
      b.domain,
      env,
      sums,
      [
        `let y0 = ${ra.at};`,
        "let y = y0 + j;",
        `let d = vec4<f32>(${four.map(lane).join(", ")});`,
        `let xp = ${rc.at} + k;`,
        ...four.map((i) => `sum${i} = fma(vec4<f32>(${rc.cls}[xp + ${i}]), d, sum${i});`),
      ],
      add,
    ),
    ...four.map(
      (i) =>
        `  ${pa.k % 4 ? `if (k + ${i} < ${pa.k}) ` : ""}{ ${four.map((c) => `accum[o + ${i * 16 + c}] = total${i}.${"xyzw"[c]};`).join(" ")} }`,
    ),
  ]);
}
