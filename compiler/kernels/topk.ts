/** The columns of each row's k largest, in descending order, the first of equal ones first. */
import type { Type } from "../../ops/index.ts";
import type { GraphKernel } from "./body.ts";
import { one, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

const sizes = (node: NonNullable<Parameters<GraphKernel["wgsl"]>[1]["node"]>) => ({
  cols: (node.ins[0]!.type as Type & { kind: "rows" }).cols,
  k: Number(node.attrs.k),
  out: { node, index: 0, type: node.outs[0]! },
});

export const topk: GraphKernel = {
  epilogue: null,
  grid: (bodies) => [rows(bodies), one],
  // A lane counts what comes before its columns. Where that is no order (NaN), columns there are still some.
  wgsl: (name, b, env) => {
    const { cols, k, out } = sizes(b.node!);
    const x = wgsl.rowAt(b.operands[0]!, env, "wg.x");
    const to = env.address(out);
    return wgsl.fn(
      name,
      lines`
        let x = ${x.at};
        let out = ${to.offset} + wg.x * ${to.stride};
        for (var j = lane; j < ${k}; j += ${wgsl.WG}) { ${to.space}[out + j] = f32(j); }
        storageBarrier();
        for (var c = lane; c < ${cols}; c += ${wgsl.WG}) {
          let v = ${x.space}[x + c];
          var before = 0;
          for (var i = 0; i < ${cols}; i++) {
            let other = ${x.space}[x + i];
            before += select(0, 1, other > v || (other == v && i < c));
          }
          if (before < ${k}) { ${to.space}[out + before] = f32(c); }
        }`,
    );
  },
  assembly: (name, b, env) => {
    const { cols, k, out } = sizes(b.node!);
    const to = env.address(out);
    return assembly.fn(
      name,
      lines`
        ${assembly.shareOf(assembly.count(b.domain))}
        for (let row: i32 = lo; row < hi; row++) {
          const x: usize = ${assembly.rowPtr(b.operands[0]!, env, "row")};
          const out: usize = ${to.space} + ((<usize>(row * ${to.stride})) << 2) + ${to.offset * 4};
          let last: f32 = Infinity;
          let at: i32 = -1;
          for (let j: i32 = 0; j < ${k}; j++) {
            let best: f32 = -Infinity;
            let next: i32 = 0;
            for (let c: i32 = 0; c < ${cols}; c++) {
              const v: f32 = load<f32>(x + ((<usize>c) << 2));
              if (v > best && (v < last || (v == last && c > at))) {
                best = v;
                next = c;
              }
            }
            store<f32>(out + ((<usize>j) << 2), <f32>next);
            last = best;
            at = next;
          }
        }`,
    );
  },
};
