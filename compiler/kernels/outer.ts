/**
 * A gradient dW += dyᵀ·x (or dA += uᵀ·x) over a unit's rows, each segment summed on its own. `down` is the
 * operand whose columns are the rows of the gradient as it is stored, `lanes` the other.
 */
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { fixed } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { ownColumns } from "./text/wgsl_plain.ts";

const four = [0, 1, 2, 3];
const quad = (text: (i: number) => string): string => four.map(text).join(", ");
const paramOf = (b: Body, env: KernelEnv) => env.param(String(b.node!.attrs.of));

/**
 * In WGSL a lane owns four columns of four rows of the gradient: eight loads for sixteen products, each
 * element one ascending chain.
 */
const segments = (b: Body, env: KernelEnv, row: Lines): Lines =>
  wgsl.overSegments(b.domain, env, {
    before: four.map((i) => `var sum${i} = vec4<f32>();`),
    row,
    after: four.map((i) => `total${i} = total${i} + sum${i};`),
  });

/**
 * A factor [rank][k]: u down, x over lanes. Rows of u beyond the slot's rank are zero, and so is their
 * gradient.
 */
function ofFactor(name: string, b: Body, env: KernelEnv): string {
  const p = paramOf(b, env);
  const [u, x] = [wgsl.rowAt(b.operands[0]!, env, "r"), wgsl.rowAt(b.operands[1]!, env, "r")];
  const at = (i: number, c: number): string => `accum[o + ${i * p.k + c}]`;
  const put = (c: number): string => four.map((i) => `${at(i, c)} = total${i}[${c}];`).join(" ");
  return wgsl.fn(
    name,
    lines`
      ${wgsl.guard(b.bits)}
      let k = wg.y * 4;
      if (k >= ${wgsl.jobRank(p.branch!, env)}) { return; }
      ${ownColumns(p.k)}
      let o = ${wgsl.gradient(b, env)} + k * ${p.k} + col;
      ${four.map((i) => `var total${i} = vec4<f32>(${quad((c) => at(i, c))});`)}
      ${segments(
        b,
        env,
        lines`
          let xp = ${x.at} + col;
          let x = vec4<f32>(${quad((c) => `${x.space}[xp + ${c}]`)});
          let up = four_${u.space}(${u.at} + k, 1, 3);
          ${four.map((i) => `sum${i} = fma(vec4<f32>(up[${i}]), x, sum${i});`)}`,
      )}
      ${four.map((c) => `if (columns > ${c}) { ${put(c)} }`)}`,
  );
}
/** A matrix in panels over n: x down, dy over lanes, of which those of a quad have four columns each. */
function ofMatrix(name: string, b: Body, env: KernelEnv): string {
  const p = paramOf(b, env);
  const [dy, x] = [wgsl.rowAt(b.operands[0]!, env, "r"), wgsl.rowAt(b.operands[1]!, env, "r")];
  const lane = (j: number): string =>
    p.n % 16
      ? `select(0.0f, ${dy.space}[min(y + ${j}, y0 + ${p.n - 1})], y + ${j} < y0 + ${p.n})`
      : `${dy.space}[y + ${j}]`;
  const [first, panels] =
    p.own === null
      ? ["", String(Math.ceil(p.n / 16))]
      : [` + ${wgsl.shard.first}`, `(${wgsl.shard.rows} + 15) / 16`];
  const store = (i: number): string =>
    `${p.k % 4 ? `if (k + ${i} < ${p.k}) ` : ""}{ ` +
    `${four.map((c) => `accum[o + ${i * 16 + c}] = total${i}.${"xyzw"[c]};`).join(" ")} }`;
  return wgsl.fn(
    name,
    lines`
      let at = wg.x * ${wgsl.WG} + lane;
      let k = (at / 4) * 4;
      if (k >= ${p.k}) { return; }
      let j = wg.y * 16 + (at % 4) * 4;
      if (wg.y >= ${panels}) { return; }
      let o = ${wgsl.gradient(b, env)} + (wg.y * ${p.k} + k) * 16 + (at % 4) * 4;
      ${four.map((i) => `var total${i} = vec4<f32>(${quad((c) => `accum[o + ${i * 16 + c}]`)});`)}
      ${segments(
        b,
        env,
        lines`
          let y0 = ${dy.at};
          let y = y0 + j${first};
          let d = vec4<f32>(${quad(lane)});
          let xs = four_${x.space}(${x.at} + k, 1, ${p.k % 4 ? `min(3, ${p.k - 1} - k)` : 3});
          ${four.map((i) => `sum${i} = fma(vec4<f32>(xs[${i}]), d, sum${i});`)}`,
      )}
      ${four.map(store)}`,
  );
}
const isMatrix = (b: Body): boolean => b.operands[2]!.value.type.kind === "weight";

/** out[i][0..8) += Σ_rows down[row][i] · lanes[row][0..8): summed from zero in row order, then added once. */
function tile(rows: number): Lines {
  const is = Array.from({ length: rows }, (_, i) => i);
  return lines`
    function outer${rows}(
      down: usize, downStride: i32, lanes: usize, lanesStride: i32, rows: i32, out: usize, outRow: i32
    ): void {
      ${is.map((i) => `let c${i}: v128 = f32x4.splat(0), d${i}: v128 = f32x4.splat(0);`)}
      for (let t: i32 = 0; t < rows; t++) {
        const l0: v128 = v128.load(lanes);
        const l1: v128 = v128.load(lanes, 16);
        ${is.flatMap(
          (i) => lines`
            const s${i}: v128 = v128.load_splat<f32>(down, ${i * 4});
            c${i} = madd(s${i}, l0, c${i});
            d${i} = madd(s${i}, l1, d${i});`,
        )}
        down += <usize>downStride;
        lanes += <usize>lanesStride;
      }
      ${is.flatMap(
        (i) => lines`
          v128.store(out, f32x4.add(v128.load(out), c${i}));
          v128.store(out, f32x4.add(v128.load(out, 16), d${i}), 16);
          ${i + 1 < rows ? ["out += <usize>outRow;"] : []}`,
      )}
    }`;
}
/** The same of a row of the gradient, of up to eight columns. */
const narrow = `
/** One row of out, \`count\` columns (up to 8). */
function outer1(
  down: usize, downStride: i32, lanes: usize, lanesStride: i32, rows: i32, out: usize, count: i32
): void {
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
`;

export const outer: GraphKernel = {
  epilogue: null,
  over: "y",
  grid: (bodies, env) => {
    const sizes = bodies.map((b) => {
      const { kind, n, k } = paramOf(b, env);
      return kind === "weight"
        ? [Math.ceil(k / 4) * 4, Math.ceil(n / 16)]
        : [Math.ceil(k / 4), Math.ceil(n / 4)];
    });
    return [
      fixed(Math.max(...sizes.map(([x]) => Math.ceil(x! / wgsl.WG)))),
      fixed(Math.max(...sizes.map(([, y]) => y!))),
    ];
  },
  wgsl: (name, b, env) => (isMatrix(b) ? ofMatrix : ofFactor)(name, b, env),
  library: () => [...tile(8), ...tile(4), narrow].join("\n"),
  // A thread owns whole panels of lanes.
  assembly: (name, b, env) => {
    const { P } = assembly;
    const p = paramOf(b, env);
    const [y, x] = [b.operands[0]!, b.operands[1]!];
    const base = (o: Operand): string => {
      if (o.index !== null && o.index !== "save_row" && o.index !== "ext_row")
        throw new Error(`outer needs contiguous rows, not ${o.index}`);
      return assembly.rowPtr(o, env, "r0");
    };
    const matrix = isMatrix(b);
    const [lanes, down] = matrix ? [y, x] : [x, y];
    const [nLanes, nDown] = matrix ? [p.n, p.k] : [p.k, p.n];
    const [outRow, outPanel] = matrix ? [P * 4, p.k * P * 4] : [p.k * 4, P * 4];
    const full = Math.floor(nLanes / P);
    const [downStride, lanesStride] = [assembly.stride(down, env) * 4, assembly.stride(lanes, env) * 4];
    const strides = `${downStride}, lp + <usize>p * ${P * 4}, ${lanesStride}, n`;
    const rows = (r: number): string[] => lines`
      for (; k + ${r} <= down; k += ${r})
        outer${r}(dp + ((<usize>k) << 2), ${strides}, o + <usize>k * ${outRow}, ${outRow});`;
    const rest = lines`
      if (hi > ${full}) {
        const p: i32 = ${full};
        for (let k: i32 = 0; k < down; k++)
          outer1(
            dp + ((<usize>k) << 2), ${strides},
            out + ${full * outPanel} + <usize>k * ${outRow}, ${nLanes % P});
      }`;
    return assembly.fn(
      name,
      lines`
        ${assembly.guard(b.bits)}
        const out: usize = ${assembly.gradient(b, env)};
        const down: i32 = ${matrix ? nDown : `min(${nDown}, (${assembly.jobRank(p.branch!, env)} + 3) & ~3)`};
        ${assembly.shareOf(Math.ceil(nLanes / P))}
        ${assembly.overSegments(
          b.domain,
          env,
          lines`
            const lp: usize = ${base(lanes)};
            const dp: usize = ${base(down)};
            for (let p: i32 = lo; p < min(hi, ${full}); p++) {
              const o: usize = out + <usize>p * ${outPanel};
              let k: i32 = 0;
              ${[8, 4].flatMap(rows)}
              for (; k < down; k++)
                outer1(dp + ((<usize>k) << 2), ${strides}, o + <usize>k * ${outRow}, ${P});
            }
            ${nLanes % P ? rest : []}`,
        )}`,
    );
  },
};
