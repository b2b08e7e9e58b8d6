/**
 * The gradient of the embedding table: a row adds to the row of its token, in row order. Rows of one token
 * add to one place, so a lane or a thread owns columns.
 */
import type { GraphKernel } from "./body.ts";
import { most, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export const scatter_rows: GraphKernel = {
  epilogue: null,
  over: null,
  grid: (bodies, env) => [most(bodies, (b) => env.param(String(b.node!.attrs.of)).k), one],
  wgsl: (name, b, env) => {
    const { k, own } = env.param(String(b.node!.attrs.of));
    const x = wgsl.rowAt(b.operands[0]!, env, "r");
    const found = `batch[${env.layout.arrays[String(b.node!.attrs.by)]!} + r]`;
    const id: string[] =
      own === null
        ? [`let id = ${found};`]
        : [`if (${wgsl.notInShard(found)}) { continue; }`, `let id = ${wgsl.inShard(found)};`];
    return wgsl.fn(
      name,
      lines`
        let k = wg.x * ${wgsl.WG} + lane;
        if (k >= ${k}) { return; }
        for (var r = 0; r < ${wgsl.count(b.domain)}; r++) {
          ${id}
          let o = ${wgsl.gradient(b, env)} + ((id / 16) * ${k} + k) * 16 + id % 16;
          accum[o] = accum[o] + ${x.space}[${x.at} + k];
        }`,
    );
  },
  assembly: (name, b, env) => {
    const { k } = env.param(String(b.node!.attrs.of));
    const { P } = assembly;
    const by = env.layout.arrays[String(b.node!.attrs.by)]!;
    return assembly.fn(
      name,
      lines`
        const n: i32 = ${assembly.count(b.domain)};
        ${assembly.shareOf(k)}
        const out: usize = ${assembly.gradient(b, env)};
        for (let row: i32 = 0; row < n; row++) {
          const id: i32 = load<i32>(meta + ((<usize>row) << 2), ${by * 4});
          const x: usize = ${assembly.rowPtr(b.operands[0]!, env, "row")};
          const o: usize = out + ((<usize>(id / ${P} * ${k * P} + id % ${P})) << 2);
          for (let c: i32 = lo; c < hi; c++)
            store<f32>(
              o + <usize>c * ${P * 4},
              load<f32>(o + <usize>c * ${P * 4}) + load<f32>(x + ((<usize>c) << 2)));
        }`,
    );
  },
};
