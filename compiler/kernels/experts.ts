/** y = W·x of the experts that each row chose. */
import type { Type, Value } from "../../ops/index.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel, Operand } from "./body.ts";
import { fixed, most } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import {
  epilogue,
  PANEL_GROUP,
  productScratch,
  productWith,
  type Tiles,
} from "./text/assemblyscript_products.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { integersOf, plainIntegers } from "./text/wgsl_integers.ts";
import { panelsOf } from "./text/wgsl_panels.ts";
import { type across, ascending, ownColumns, PLAIN_FROM } from "./text/wgsl_plain.ts";
import { epilogue as wgslEpilogue } from "./text/wgsl_products.ts";

type Experts = Type & { kind: "experts" };
type Rows = Type & { kind: "rows" };

/** What a product with experts' matrices is of: `top` parts a row, each of `outs` columns. */
function sizesOf(b: Body) {
  const [x, chosen, w] = b.operands as [Operand, Operand, Operand];
  const [type, top] = [w.value.type as Experts, (chosen.value.type as Rows).cols];
  return { x, chosen, w, type, top, outs: b.cols / top };
}
/** Where part j of a row begins, in numbers of so many units; nothing where all experts read the same. */
export const partOf = (x: Value, ins: number, j: string, units = 1): string =>
  (x.type as Rows).cols === ins ? "" : ` + ${j} * ${ins * units}`;

/**
 * In WGSL a workgroup has one expert and columns of its matrix, and finds the rows that chose it, a tile at a
 * time. `ins`: columns of x that a product reads.
 */
export function tiledByExpert(
  name: string,
  b: Body,
  env: KernelEnv,
  ins: number,
  sums: typeof ascending | typeof across,
): string {
  const { x, chosen, w, type, top, outs } = sizesOf(b);
  const { offset, stride } = env.address(w.value);
  const panels = panelsOf(type.format, offset, type.n, type.k, {
    one: { at: "expert", step: String(stride / 4) },
  });
  const ids = wgsl.rowAt(chosen, env, `p / ${top}`);
  const full = env.plainRows;
  const tile = (n: number): Lines => {
    const pair = (i: string): string => (n === 1 ? "pairs[r]" : `pairs[${i}]`);
    const is = Array.from({ length: n }, (_, i) => i);
    const at = is.map((i) => {
      const row = wgsl.rowAt(x, env, `${pair(String(i))} / ${top}`);
      return { ...row, at: row.at + partOf(x.value, ins, `(${pair(String(i))} % ${top})`) };
    });
    const to = `${pair("i")} / ${top}, ${pair("i")} % ${top} * ${outs} + own + c`;
    return lines`
      ${is.map((i) => `var t${i} = vec4<f32>();`)}
      ${sums(at, panels, { k: type.k, all: type.n, sharded: false })}
      var out = array<vec4<f32>, ${n}>(${is.map((i) => `t${i}`).join(", ")});
      for (var i = 0; i < ${n === 1 ? 1 : "found"}; i++) {
        for (var c = 0; c < columns; c++) { ${name}_e(${to}, out[i][c]); }
      }`;
  };
  const whole = lines`
    for (var i = found; i < ${full}; i++) { pairs[i] = pairs[found - 1]; }
    ${tile(full)}`;
  const text = lines`
    let expert = wg.y;
    if (expert >= ${type.count}) { return; }
    ${ownColumns(outs)}
    let n = ${wgsl.count(b.domain)} * ${top};
    var p = 0;
    while (p < n) {
      var found = 0;
      var pairs = array<i32, ${full}>();
      for (; p < n && found < ${full}; p++) {
        if (i32(${ids.space}[${ids.at} + p % ${top}]) == expert) {
          pairs[found] = p;
          found++;
        }
      }
      ${
        full < PLAIN_FROM
          ? lines`
      if (found > 0) {
        ${whole}
      }`
          : lines`
      if (found >= ${PLAIN_FROM}) {
        ${whole}
      } else {
        for (var r = 0; r < found; r++) {
          ${tile(1)}
        }
      }`
      }
    }`;
  return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
}

/**
 * On a CPU a thread has panels of every expert, and goes through the rows that chose it, a block at a time.
 */
export function productByExpert(tiles: Tiles, name: string, b: Body, env: KernelEnv, ins: number): string {
  const { x, chosen, w, type, top, outs } = sizesOf(b);
  const { BLOCK_ROWS, BLOCK_STRIDE, P, ROWS_AT } = assembly;
  const { offset, stride } = env.address(w.value);
  const list = (i: number, at: string): string =>
    `scratch + ${ROWS_AT + i * BLOCK_ROWS * 4} + ((<usize>${at}) << 2)`;
  const product = productWith(tiles, b, env, [0, `scratch + ${ROWS_AT}`, "w"]);
  const text = lines`
    ${assembly.shareOf(Math.ceil(outs / P))}
    if (lo == hi) return;
    const n: i32 = ${assembly.count(b.domain)} * ${top};
    for (let expert: i32 = 0; expert < ${type.count}; expert++) {
      const w: usize = weights + ${offset * 4} + <usize>expert * ${stride * 4};
      let pair: i32 = 0;
      while (pair < n) {
        let rows: i32 = 0;
        for (; pair < n && rows < ${BLOCK_ROWS}; pair++) {
          const r: i32 = pair / ${top};
          const j: usize = <usize>(pair % ${top});
          if (<i32>load<f32>(${assembly.rowPtr(chosen, env, "r")} + (j << 2)) != expert) continue;
          store<u32>(${list(0, "rows")}, ${assembly.rowPtr(x, env, "r")}${partOf(x.value, ins, "j", 4)});
          store<i32>(${list(1, "rows")}, pair);
          rows++;
        }
        if (!rows) break;
        ${product.before}
        for (let p: i32 = lo; p < hi; p += ${PANEL_GROUP}) {
          const pe: i32 = min(p + ${PANEL_GROUP}, hi);
          const width: i32 = min(pe * ${P}, ${outs}) - p * ${P};
          clear(scratch, rows * ${BLOCK_STRIDE});
          ${product.text}
          for (let i: i32 = 0; i < rows; i++) {
            const at: i32 = load<i32>(${list(1, "i")});
            const c0: i32 = at % ${top} * ${outs} + p * ${P};
            ${name}_e(
              ${assembly.passed}, at / ${top}, c0, c0 + width, scratch + <usize>i * ${BLOCK_STRIDE}, 0);
          }
        }
      }
    }`;
  return `${epilogue(name, b, env, [])}${assembly.fn(name, text)}`;
}

export const experts: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => [
    most(bodies, (b) => Math.ceil(sizesOf(b).outs / 4)),
    fixed(Math.max(...bodies.map((b) => sizesOf(b).type.count))),
  ],
  wgsl: (name, b, env) => {
    const { format, k } = sizesOf(b).type;
    const integers = integersOf(format, env);
    return tiledByExpert(name, b, env, k, integers ? plainIntegers(integers) : ascending);
  },
  scratch: productScratch("product"),
  assembly: (name, b, env) => productByExpert("product", name, b, env, sizesOf(b).type.k),
};
