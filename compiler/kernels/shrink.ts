/** u = A·x, each row by its slot's own A. */
import type { Type } from "../../ops/index.ts";
import { SLOT_TABLE } from "../kernel.ts";
import type { GraphKernel } from "./body.ts";
import { one, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { epilogue } from "./text/assemblyscript_products.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { epilogue as wgslEpilogue } from "./text/wgsl_products.ts";

type Factor = Type & { kind: "factor" };
/** Bytes of a row of sums in a thread's scratch. */
const rowBytes = (cols: number): number => Math.ceil(cols / 4) * 16;

export const shrink: GraphKernel = {
  epilogue: "elements",
  grid: (bodies) => [rows(bodies, wgsl.ROWS), one],
  wgsl: (name, b, env) => {
    const f = b.operands[1]!.value;
    const { branch, cols } = f.type as Factor;
    const x = wgsl.rowAt(b.operands[0]!, env, "row");
    const lanes = wgsl.WG / wgsl.ROWS;
    const text = lines`
      ${wgsl.guard(b.bits)}
      let row = wg.x * ${wgsl.ROWS} + lane / ${lanes};
      if (row >= ${wgsl.count(b.domain)}) { return; }
      let slot = batch[${env.layout.arrays.slot!} + row];
      let rank = tables[${SLOT_TABLE + branch * 2} + slot * ${env.branches * 2}];
      let x = ${x.at};
      for (var r = lane % ${lanes}; r < ${b.cols}; r += ${lanes}) {
        var sum = 0.0f;
        if (r < rank) {
          let f = ${env.address(f).offset} + slot * ${env.slotWords} + r * ${cols};
          for (var c = 0; c < ${cols}; c++) { sum = fma(${x.cls}[x + c], adapters[f + c], sum); }
        }
        ${name}_e(row, r, sum);
      }`;
    return `${wgslEpilogue(name, b, env)}\n${wgsl.fn(name, text)}`;
  },
  scratch: (b) => 4 * rowBytes(b.cols),
  // Four rows of one slot share the factor's loads; each dot is the same chain either way.
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
        const rank: i32 = load<i32>(
          tables + ((<usize>(slot * ${env.branches * 2})) << 2), ${(SLOT_TABLE + branch * 2) * 4});
        const f: usize = ${at.cls} + ((<usize>(slot * ${env.slotWords})) << 2) + ${at.offset * 4};
        const four: bool = row + 4 <= hi && load<i32>(slots, 4) == slot
          && load<i32>(slots, 8) == slot && load<i32>(slots, 12) == slot;
        const count: i32 = four ? 4 : 1;
        let r: i32 = 0;
        for (; r < rank; r += 4) {
          if (four) shrink4x4(
            ${[0, 1, 2, 3].map((i) => `${assembly.rowPtr(x, env, `row + ${i}`)},`)}
            f + ((<usize>(r * ${cols})) << 2), ${cols}, scratch + ((<usize>r) << 2), ${outStride});
          else shrink4(
            ${assembly.rowPtr(x, env, "row")},
            f + ((<usize>(r * ${cols})) << 2), ${cols}, scratch + ((<usize>r) << 2));
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
