/**
 * A gradient of experts' factors, dA += uᵀ·x, or of their matrices, dW += dyᵀ·x, over a unit's rows: each
 * row's part to the expert that it chose.
 */
import type { Type } from "../../ops/index.ts";
import { type KernelEnv, severalOf } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { partOf } from "./experts.ts";
import { fixed } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

function sizesOf(b: Body, env: KernelEnv) {
  const { n, k, branch } = env.param(String(b.node!.attrs.of));
  // A vector, of no adapter, is one row.
  const [rows, cols] = branch === null ? [1, n] : [n, k];
  const count = Number(b.node!.attrs.count);
  const top = (b.operands[2]!.value.type as Type & { kind: "rows" }).cols;
  return { rows, cols, branch, count, top, ins: cols / count };
}
const columns = [0, 1, 2, 3];
const quad = (text: (c: number) => string): string => `vec4<f32>(${columns.map(text).join(", ")})`;
/** Four rows and eight columns of a gradient; a row of up to eight: summed from zero, then added once. */
const functions = `
function outerListed4(us: usize, xs: usize, n: i32, u: usize, x: usize, out: usize, apart: usize): void {
  let c0: v128 = f32x4.splat(0), c1: v128 = c0, c2: v128 = c0, c3: v128 = c0,
      d0: v128 = c0, d1: v128 = c0, d2: v128 = c0, d3: v128 = c0;
  for (let i: usize = 0; i < (<usize>n) << 2; i += 4) {
    const up: usize = <usize>load<u32>(us + i) + u;
    const xp: usize = <usize>load<u32>(xs + i) + x;
    const l0: v128 = v128.load(xp);
    const l1: v128 = v128.load(xp, 16);
${columns
  .map(
    (i) => `    const s${i}: v128 = v128.load_splat<f32>(up, ${i * 4});
    c${i} = madd(s${i}, l0, c${i});
    d${i} = madd(s${i}, l1, d${i});`,
  )
  .join("\n")}
  }
${columns
  .map(
    (i) => `  v128.store(out, f32x4.add(v128.load(out), c${i}));
  v128.store(out, f32x4.add(v128.load(out, 16), d${i}), 16);${i < 3 ? "\n  out += apart;" : ""}`,
  )
  .join("\n")}
}
function outerListed1(us: usize, xs: usize, n: i32, u: usize, x: usize, out: usize, count: i32): void {
  for (let c: i32 = 0; c < count; c++) {
    let sum: f32 = 0;
    for (let i: usize = 0; i < (<usize>n) << 2; i += 4)
      sum += load<f32>(<usize>load<u32>(us + i) + u) * load<f32>(<usize>load<u32>(xs + i) + x);
    store<f32>(out, load<f32>(out) + sum);
    x += 4;
    out += 4;
  }
}`;

const isMatrix = (b: Body): boolean => b.operands[3]!.value.type.kind === "experts";
/** Of the gradient of matrices [n, k], which is in panels over n. */
function matricesOf(b: Body, env: KernelEnv) {
  const p = env.param(String(b.node!.attrs.of));
  const { n, k } = p;
  const { count, accum: apart } = severalOf(p);
  const top = (b.operands[2]!.value.type as Type & { kind: "rows" }).cols;
  return { n, k, apart, count, top, panels: Math.ceil(n / env.panel) };
}

/** WGSL: a lane owns four columns of four rows of one expert's. */
function ofFactor(name: string, b: Body, env: KernelEnv): string {
  const { rows, branch, cols, count, top, ins } = sizesOf(b, env);
  const rank = branch === null ? rows : wgsl.jobRank(branch, env);
  const four = [0, 1, 2, 3].slice(0, rows);
  const [u, x, chosen] = b.operands.slice(0, 3).map((o) => wgsl.rowAt(o, env, "r"));
  const each = Math.ceil(ins / 4);
  const at = (i: number, c: number): string => `accum[o + ${i * cols + c}]`;
  const inside = (c: number): string => (ins % 4 === 0 ? "" : `if (col + ${c} < ${ins}) `);
  return wgsl.fn(
    name,
    lines`
      ${wgsl.guard(b.bits)}
      let at = wg.x * ${wgsl.WG} + lane;
      let expert = at / ${each};
      let col = at % ${each} * 4;
      let k = wg.y * 4;
      if (expert >= ${count} || k >= ${rank}) { return; }
      let o = ${wgsl.gradient(b, env)} + k * ${cols} + expert * ${ins} + col;
      ${four.map((i) => `var total${i} = ${quad((c) => at(i, c))};`)}
      ${wgsl.overSegments(b.domain, env, {
        before: four.map((i) => `var sum${i} = vec4<f32>();`),
        row: lines`
          for (var j = 0; j < ${top}; j++) {
            if (i32(${chosen!.space}[${chosen!.at} + j]) != expert) { continue; }
            let xp = ${x!.at}${partOf(b.operands[1]!.value, ins, "j")} + col;
            let x = ${quad((c) => `${x!.space}[xp + ${c}]`)};
            let up = ${u!.at} + j * ${rows} + k;
            ${four.map((i) => `sum${i} = fma(vec4<f32>(${u!.space}[up + ${i}]), x, sum${i});`)}
          }`,
        after: four.map((i) => `total${i} = total${i} + sum${i};`),
      })}
      ${four.flatMap((i) => columns.map((c) => `${inside(c)}{ ${at(i, c)} = total${i}.${"xyzw"[c]}; }`))}`,
  );
}
/** WGSL: a lane owns four outputs of four inputs of one expert's. */
function ofMatrices(name: string, b: Body, env: KernelEnv): string {
  const { n, k, apart, count, top, panels } = matricesOf(b, env);
  const [dy, x, chosen] = b.operands.slice(0, 3).map((o) => wgsl.rowAt(o, env, "r"));
  const at = (i: number, c: number): string => `accum[o + ${i * 16 + c}]`;
  const lane = (c: number): string =>
    n % 16 ? `select(0.0f, ${dy!.space}[y + min(${c}, last)], ${c} <= last)` : `${dy!.space}[y + ${c}]`;
  const inside = (i: number): string => (k % 4 === 0 ? "" : `if (k + ${i} < ${k}) `);
  return wgsl.fn(
    name,
    lines`
      let at = wg.x * ${wgsl.WG} + lane;
      let k = (at / 4) * 4;
      let expert = wg.y / ${panels};
      let panel = wg.y % ${panels};
      let col = panel * 16 + (at % 4) * 4;
      if (k >= ${k} || expert >= ${count} || col >= ${n}) { return; }
      ${n % 16 ? [`let last = min(3, ${n - 1} - col);`] : []}
      let o = ${wgsl.gradient(b, env)} + expert * ${apart} + (panel * ${k} + k) * 16 + (at % 4) * 4;
      ${columns.map((i) => `var total${i} = ${quad((c) => at(i, c))};`)}
      ${wgsl.overSegments(b.domain, env, {
        before: columns.map((i) => `var sum${i} = vec4<f32>();`),
        row: lines`
          for (var j = 0; j < ${top}; j++) {
            if (i32(${chosen!.space}[${chosen!.at} + j]) != expert) { continue; }
            let y = ${dy!.at} + j * ${n} + col;
            let d = ${quad(lane)};
            let xp = ${x!.at}${partOf(b.operands[1]!.value, k, "j")} + k;
            ${columns.map((i) => `sum${i} = fma(vec4<f32>(${x!.space}[xp + ${i}]), d, sum${i});`)}
          }`,
        after: columns.map((i) => `total${i} = total${i} + sum${i};`),
      })}
      ${columns.map((i) => {
        const put = columns.map((c) => `${at(i, c)} = total${i}.${"xyzw"[c]};`);
        return `${inside(i)}{ ${put.join(" ")} }`;
      })}`,
  );
}
/** AssemblyScript: pointers to what the rows of a segment that chose an expert have, in two lists. */
function listed(b: Body, env: KernelEnv, lists: readonly (readonly [list: string, ptr: string])[]): Lines {
  const chosen = b.operands[2]!;
  const top = (chosen.value.type as Type & { kind: "rows" }).cols;
  return lines`
    let pairs: i32 = 0;
    for (let r: i32 = r0; r < r0 + n; r++)
      for (let j: usize = 0; j < ${top}; j++) {
        if (<i32>load<f32>(${assembly.rowPtr(chosen, env, "r")} + (j << 2)) != expert) continue;
        ${lists.map(([list, ptr]) => `store<u32>(${list} + ((<usize>pairs) << 2), ${ptr});`)}
        pairs++;
      }
    if (!pairs) continue;`;
}
/** A thread owns panels of columns of every expert, and lists the rows that chose it. */
function factorAssembly(name: string, b: Body, env: KernelEnv): string {
  const { P } = assembly;
  const { rows, branch, cols, count, top, ins } = sizesOf(b, env);
  const [u, x] = [b.operands[0]!, b.operands[1]!];
  const rank = branch === null ? rows : `min(${rows}, (${assembly.jobRank(branch, env)} + 3) & ~3)`;
  const xs = `scratch + ${4 * env.capacities.unitRows * top}`;
  return assembly.fn(
    name,
    lines`
      ${assembly.guard(b.bits)}
      const rank: i32 = ${rank};
      ${assembly.shareOf(Math.ceil(ins / P))}
      if (lo == hi) return;
      for (let expert: i32 = 0; expert < ${count}; expert++) {
        const out: usize = ${assembly.gradient(b, env)} + <usize>expert * ${ins * 4};
        ${assembly.overSegments(
          b.domain,
          env,
          lines`
            ${listed(b, env, [
              ["scratch", `${assembly.rowPtr(u, env, "r")} + j * ${rows * 4}`],
              [xs, `${assembly.rowPtr(x, env, "r")}${partOf(x.value, ins, "j", 4)}`],
            ])}
            for (let p: i32 = lo; p < hi; p++) {
              const at: usize = <usize>p * ${P * 4};
              const width: i32 = min(${P}, ${ins} - p * ${P});
              for (let k: i32 = 0; k < rank; k += 4) {
                const u: usize = (<usize>k) << 2;
                const o: usize = out + at + <usize>k * ${cols * 4};
                if (width == ${P} && ${rows} >= 4) outerListed4(scratch, ${xs}, pairs, u, at, o, ${cols * 4});
                else
                  for (let i: usize = 0; i < ${Math.min(4, rows)}; i++)
                    outerListed1(scratch, ${xs}, pairs, u + (i << 2), at, o + i * ${cols * 4}, width);
              }
            }`,
        )}
      }`,
  );
}
/** A thread owns panels of outputs of every expert, likewise. */
function matricesAssembly(name: string, b: Body, env: KernelEnv): string {
  const { P } = assembly;
  const { n, k, apart, count, top, panels } = matricesOf(b, env);
  const [dy, x] = [b.operands[0]!, b.operands[1]!];
  const ys = `scratch + ${4 * env.capacities.unitRows * top}`;
  return assembly.fn(
    name,
    lines`
      ${assembly.shareOf(panels)}
      if (lo == hi) return;
      for (let expert: i32 = 0; expert < ${count}; expert++) {
        const out: usize = ${assembly.gradient(b, env)} + <usize>expert * ${apart * 4};
        ${assembly.overSegments(
          b.domain,
          env,
          lines`
            ${listed(b, env, [
              ["scratch", `${assembly.rowPtr(x, env, "r")}${partOf(x.value, k, "j", 4)}`],
              [ys, `${assembly.rowPtr(dy, env, "r")} + j * ${n * 4}`],
            ])}
            for (let p: i32 = lo; p < hi; p++) {
              const at: usize = <usize>p * ${P * 4};
              const width: i32 = min(${P}, ${n} - p * ${P});
              let o: usize = out + at * ${k};
              let i: usize = 0;
              if (width == ${P})
                for (; i + 4 <= ${k}; i += 4, o += ${4 * P * 4})
                  outerListed4(scratch, ${ys}, pairs, i << 2, at, o, ${P * 4});
              for (; i < ${k}; i++, o += ${P * 4}) outerListed1(scratch, ${ys}, pairs, i << 2, at, o, width);
            }`,
        )}
      }`,
  );
}

export const experts_outer: GraphKernel = {
  epilogue: null,
  grid: (bodies, env) => {
    const sizes = bodies.map((b) => {
      if (isMatrix(b)) {
        const { k, count, panels } = matricesOf(b, env);
        return [Math.ceil(k / 4) * 4, panels * count] as const;
      }
      const { rows, count, ins } = sizesOf(b, env);
      return [count * Math.ceil(ins / 4), Math.ceil(rows / 4)] as const;
    });
    return [
      fixed(Math.ceil(Math.max(...sizes.map(([lanes]) => lanes)) / wgsl.WG)),
      fixed(Math.max(...sizes.map(([, down]) => down))),
    ];
  },
  wgsl: (name, b, env) => (isMatrix(b) ? ofMatrices : ofFactor)(name, b, env),
  scratch: (b, { capacities: { unitRows } }) =>
    2 * 4 * unitRows * (b.operands[2]!.value.type as Type & { kind: "rows" }).cols,
  library: () => functions,
  assembly: (name, b, env) => (isMatrix(b) ? matricesAssembly : factorAssembly)(name, b, env),
};
