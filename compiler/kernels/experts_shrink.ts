/** u = A·x of the experts that each row chose, by its slot's own A. */
import type { Type } from "../../ops/index.ts";
import { QUAD, QUAD_WORDS } from "../../runtime/bundle.ts";
import type { Body, GraphKernel } from "./body.ts";
import { partOf } from "./experts.ts";
import { one } from "./grid.ts";
import { rowBytes } from "./shrink.ts";
import * as assembly from "./text/assemblyscript.ts";
import { epilogue } from "./text/assemblyscript_products.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { epilogue as wgslEpilogue } from "./text/wgsl_products.ts";

const sizesOf = (b: Body) => {
  const { branch, cols, rows } = b.operands[1]!.value.type as Type & { kind: "factor" };
  const top = (b.operands[2]!.value.type as Type & { kind: "rows" }).cols;
  return { branch, cols, rows, top, ins: cols / Number(b.node!.attrs.count) };
};

export const experts_shrink: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => {
    const mul = Math.max(...bodies.map((b) => sizesOf(b).top));
    return [{ count: bodies[0]!.domain === "R" ? "n_head" : "n_rows", mul, div: wgsl.ROWS }, one];
  },
  wgsl: (name, b, env) => {
    const { branch, cols, rows, top, ins } = sizesOf(b);
    const [x, f, chosen] = [b.operands[0]!, b.operands[1]!.value, b.operands[2]!];
    const [at, ids] = [wgsl.rowAt(x, env, "row"), wgsl.rowAt(chosen, env, "row")];
    const lanes = wgsl.WG / wgsl.ROWS;
    const text = lines`
      ${wgsl.guard(b.bits)}
      let pair = wg.x * ${wgsl.ROWS} + lane / ${lanes};
      let row = pair / ${top};
      let j = pair % ${top};
      if (row >= ${wgsl.count(b.domain)}) { return; }
      let slot = batch[${env.layout.arrays.slot!} + row];
      let rank = ${wgsl.inTable("slot", branch, "rank", env)};
      let expert = i32(${ids.space}[${ids.at} + j]);
      let x = ${at.at}${partOf(x.value, ins, "j")};
      for (var r = lane % ${lanes}; r < ${rows}; r += ${lanes}) {
        var sum = 0.0f;
        if (r < rank) {
          let quad = tables[${wgsl.quadsAt("slot", branch, env)} + (r / ${QUAD}) * ${QUAD_WORDS}];
          let f = quad + ${env.address(f).offset} + (r % ${QUAD}) * ${cols} + expert * ${ins};
          for (var c = 0; c < ${ins}; c++) { sum = fma(${at.space}[x + c], adapters[f + c], sum); }
        }
        ${name}_e(row, j * ${rows} + r, sum);
      }`;
    return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
  },
  scratch: (b) => rowBytes(sizesOf(b).rows),
  assembly: (name, b, env) => {
    const { branch, cols, rows, top, ins } = sizesOf(b);
    const [x, f, chosen] = [b.operands[0]!, env.address(b.operands[1]!.value), b.operands[2]!];
    const text = lines`
      ${assembly.guard(b.bits)}
      ${assembly.shareOf(`${assembly.count(b.domain)} * ${top}`)}
      for (let pair: i32 = lo; pair < hi; pair++) {
        const row: i32 = pair / ${top};
        const j: usize = <usize>(pair % ${top});
        const slot: i32 = load<i32>(meta + ((<usize>row) << 2), ${env.layout.arrays.slot! * 4});
        const rank: i32 = ${assembly.inTable("slot", branch, "rank", env)};
        let quads: usize = ${assembly.quadsAt("slot", branch, env)};
        const expert: usize = <usize>load<f32>(${assembly.rowPtr(chosen, env, "row")} + (j << 2));
        const x: usize = ${assembly.rowPtr(x, env, "row")}${partOf(x.value, ins, "j", 4)};
        let r: i32 = 0;
        for (; r < rank; r += 4) {
          const at: usize = (<usize>load<i32>(quads)) << 2;
          const f: usize = ${f.space} + at + ${f.offset * 4} + expert * ${ins * 4};
          quads += 8;
          shrink4(x, f, ${ins}, ${cols}, scratch + ((<usize>r) << 2));
        }
        for (; r < ${rows}; r += 4) v128.store(scratch + ((<usize>r) << 2), f32x4.splat(0));
        const c0: i32 = <i32>j * ${rows};
        ${name}_e(${assembly.passed}, row, c0, c0 + ${rows}, scratch, 0);
      }`;
    return `${epilogue(name, b, env, [])}${assembly.fn(name, text)}`;
  },
};
