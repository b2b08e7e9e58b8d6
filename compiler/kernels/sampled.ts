/** The gradient of a sparse delta's entries: dv[e] += Σ dy[row of e] · x[column of e] over a unit's rows. */
import { sparseIndex, type Type } from "../../ops/index.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { most, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

function entriesOf(b: Body, env: KernelEnv) {
  const node = b.node!;
  const values = node.ins[2]!.type as Type & { kind: "factor" };
  const { n } = env.param(String(node.attrs.of));
  return {
    branch: values.branch,
    /** Where the places of entries lie in a slot, and in them the row and the column of an entry. */
    places: env.address(node.ins[3]!).offset,
    at: sparseIndex(n, Number(node.attrs.outs), Number(node.attrs.ins)),
  };
}

export const sampled: GraphKernel = {
  epilogue: null,
  grid: (bodies, env) => [most(bodies, (b) => env.param(String(b.node!.attrs.of)).n), one],
  wgsl: (name, b, env) => {
    const { branch, places, at } = entriesOf(b, env);
    const [dy, x] = [wgsl.rowAt(b.operands[0]!, env, "r"), wgsl.rowAt(b.operands[1]!, env, "r")];
    const entry = `${wgsl.vectorOf(wgsl.header("slot"), branch, places, env)} + e`;
    return wgsl.fn(
      name,
      lines`
        ${wgsl.guard(b.bits)}
        let e = wg.x * ${wgsl.WG} + lane;
        if (e >= ${wgsl.jobRank(branch, env)}) { return; }
        let i = i32(adapters[${entry} + ${at.rowOf}]);
        let j = i32(adapters[${entry} + ${at.colOf}]);
        let o = ${wgsl.gradient(b, env)} + e;
        var total = accum[o];
        ${wgsl.overSegments(b.domain, env, {
          before: ["var sum = 0.0f;"],
          row: [`sum = fma(${dy.space}[${dy.at} + i], ${x.space}[${x.at} + j], sum);`],
          after: ["total = total + sum;"],
        })}
        accum[o] = total;`,
    );
  },
  assembly: (name, b, env) => {
    const { branch, places, at } = entriesOf(b, env);
    const [dy, x] = [assembly.rowPtr(b.operands[0]!, env, "r"), assembly.rowPtr(b.operands[1]!, env, "r")];
    return assembly.fn(
      name,
      lines`
        ${assembly.guard(b.bits)}
        const out: usize = ${assembly.gradient(b, env)};
        const places: usize = ${assembly.vectorOf(assembly.header("slot"), branch, places, env)};
        ${assembly.shareOf(assembly.jobRank(branch, env))}
        ${assembly.overSegments(
          b.domain,
          env,
          lines`
            for (let e: i32 = lo; e < hi; e++) {
              const i: usize = (<usize>load<f32>(places + ((<usize>e) << 2), ${at.rowOf * 4})) << 2;
              const j: usize = (<usize>load<f32>(places + ((<usize>e) << 2), ${at.colOf * 4})) << 2;
              let sum: f32 = 0;
              for (let r: i32 = r0; r < r0 + n; r++)
                sum += load<f32>(${dy} + i) * load<f32>(${x} + j);
              store<f32>(out + ((<usize>e) << 2), load<f32>(out + ((<usize>e) << 2)) + sum);
            }`,
        )}`,
    );
  },
};
