/**
 * A step of an optimizer over the parameters of a group: clipped gradient in, new parameter and states out,
 * gradient cleared. After a gradient that is not finite (clip < 0) only the clearing happens.
 */
import { type OptimizerName, optimizers } from "../../runtime/bundle.ts";
import { assemblyPrinter } from "../emit/assemblyscript_dialect.ts";
import type { Printer } from "../emit/printer.ts";
import { wgslPrinter } from "../emit/wgsl_dialect.ts";
import type { Kernel, ParamAddress, UpdateBody } from "../kernel.ts";
import { stepOf } from "../optimizers.ts";
import { fixed, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export interface OptimizerBody extends UpdateBody<"optimizer"> {
  readonly params: readonly ParamAddress[];
  readonly optimizer: OptimizerName;
}
const { WG } = wgsl;
/** Workgroups, at most. */
const MAX_GROUPS = 1024;
/** Each lane steps through at least eight elements: a workgroup costs more than a few of them. */
const groupsOf = (b: OptimizerBody): number =>
  Math.min(MAX_GROUPS, Math.ceil(Math.max(...b.params.map((p) => p.words)) / (WG * 8)));

/** What becomes of the parameter and of each state, as text. */
const nextOf = (b: OptimizerBody, p: ParamAddress, printer: Printer): (readonly [string, string])[] =>
  Object.entries(stepOf(b.optimizer, p)).map(([key, e]) => [key, printer.at(e)]);

export const optimizer: Kernel<OptimizerBody> = {
  grid: ([b]) => [fixed(groupsOf(b!)), one],
  parts: (b) => b.params.length,
  writesWeights: (b) => b.params.some((p) => p.kind !== "factor"),
  wgsl: (name, b, env) =>
    b.params
      .map((p, i) => {
        const printer = wgslPrinter(env);
        const next = nextOf(b, p, printer);
        const where: Record<string, string> = {
          param:
            p.kind === "factor" ? `adapters[${wgsl.inSlot(p.offset, env)} + i]` : `weights[${p.offset} + i]`,
        };
        optimizers[b.optimizer].states.forEach((s, k) => {
          where[s] = `accum[g + ${(k + 1) * p.words} + i]`;
        });
        return wgsl.fn(
          `${name}_${i}`,
          lines`
            ${wgsl.guard(p.branch === null ? [] : [p.branch])}
            let g = ${wgsl.header("job")} * ${env.jobWords} + ${p.accum};
            let clip = arena[${wgsl.norms(env)} + ${env.groups}];
            for (var i = wg.x * ${WG} + lane; i < ${wgsl.wordsInUse(p, env)}; i += ${groupsOf(b) * WG}) {
              if (clip >= 0.0f) {
                let grad_ = ${wgsl.pin("accum[g + i] * clip")};
                ${Object.entries(where).map(([key, at]) => `let ${key}_ = ${at};`)}
                ${[...printer.row, ...printer.col]}
                ${next.map(([key, t]) => `${where[key]} = ${t};`)}
              }
              accum[g + i] = 0.0f;
            }`,
        );
      })
      .join("\n"),
  assembly: (name, b, env) => {
    const { states } = optimizers[b.optimizer];
    const step = (p: ParamAddress): string[] => {
      const param = p.kind === "factor" ? assembly.inSlot(p.offset, env) : `weights + ${p.offset * 4}`;
      const printer = assemblyPrinter(env, 4);
      const next = nextOf(b, p, printer);
      return lines`
        ${p.branch === null ? "" : `if ${assembly.maskBit(p.branch)} `}{
          const quads: i32 = (${assembly.wordsInUse(p, env)}) >> 2;
          const from: usize = (<usize>share(quads, part, parts)) << 4;
          const to: usize = (<usize>share(quads, part + 1, parts)) << 4;
          const param_: usize = ${param};
          const grad_: usize = g + ${p.accum * 4};
          ${states.map((s, i) => `const ${s}_: usize = grad_ + ${(i + 1) * p.words * 4};`)}
          if (clip >= 0) for (let i: usize = from; i < to; i += 16)
            v128.store(grad_ + i, f32x4.mul(v128.load(grad_ + i), cv));
          if (clip >= 0) for (let i: usize = from; i < to; i += 16) {
            ${[...printer.row, ...printer.col]}
            ${next.map(([key, t]) => `v128.store(${key}_ + i, ${t});`)}
          }
          memory.fill(grad_ + from, 0, to - from);
        }`;
    };
    return assembly.fn(
      name,
      lines`
        const clip: f32 = load<f32>(${assembly.norms(env)}, ${env.groups * 4});
        const g: usize = ${assembly.gradients(env)};
        const cv: v128 = f32x4.splat(clip);
        ${b.params.flatMap(step)}`,
    );
  },
};
