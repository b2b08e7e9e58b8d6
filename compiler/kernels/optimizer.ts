/**
 * A step of an optimizer over the parameters of a group: clipped gradient in, new parameter and states out,
 * gradient cleared. After a gradient that is not finite (clip < 0) only the clearing happens.
 */
import { type OptimizerName, optimizers, QUAD, QUAD_WORDS, SHARD_ROWS } from "../../runtime/bundle.ts";
import { assemblyPrinter } from "../emit/assemblyscript_dialect.ts";
import type { Printer } from "../emit/printer.ts";
import { wgslPrinter } from "../emit/wgsl_dialect.ts";
import {
  type BareBody,
  inQuads,
  type Kernel,
  type KernelEnv,
  type ParamAddress,
  severalOf,
} from "../kernel.ts";
import { stepOf } from "../optimizers.ts";
import { fixed, one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export interface OptimizerBody extends BareBody<"optimizer"> {
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

/** WGSL: word `i` of a parameter; of several, of number `e`. */
function paramWgsl(p: ParamAddress, env: KernelEnv): string {
  if (p.kind !== "factor") return `weights[${p.offset} + e * ${severalOf(p).offset} + i]`;
  if (!inQuads(p)) return `adapters[${wgsl.jobVector(p, env)} + i]`;
  const words = QUAD * p.k;
  const quad = `tables[${wgsl.jobQuads(p.branch!, env)} + (i / ${words}) * ${QUAD_WORDS}]`;
  return `adapters[${quad} + ${p.offset} + i % ${words}]`;
}
/**
 * AssemblyScript: the parts of a parameter that lie side by side, each of so many words. Of the last quad the
 * rows in use: what is beyond them stays zero, whatever their gradient.
 */
function partsOf(
  p: ParamAddress,
  env: KernelEnv,
): Readonly<Record<"loop" | "param" | "grad" | "words", string>> {
  const grad = `g + ${p.accum * 4}`;
  if (p.kind !== "factor") {
    const { count, offset, accum } = severalOf(p);
    return {
      loop: `for (let e: usize = 0; e < ${count}; e++) `,
      param: `weights + ${p.offset * 4} + e * ${offset * 4}`,
      grad: `${grad} + e * ${accum * 4}`,
      words: String(p.words),
    };
  }
  if (!inQuads(p)) return { loop: "", param: assembly.jobVector(p, env), grad, words: String(p.words) };
  const rank = assembly.jobRank(p.branch!, env);
  const place = `load<i32>(${assembly.jobQuads(p.branch!, env)} + ((<usize>q) << ${assembly.QUAD_SHIFT}))`;
  return {
    loop: `for (let q: i32 = 0; (q << 2) < ${rank}; q++) `,
    param: `adapters + ((<usize>${place}) << 2) + ${p.offset * 4}`,
    grad: `${grad} + <usize>q * ${QUAD * p.k * 4}`,
    words: `((min(${QUAD}, ${rank} - (q << 2)) * ${p.k} + 3) & ~3)`,
  };
}

/** AssemblyScript: a parameter, its gradient, its states so many bytes apart, and vectors of four words. */
const stepParams =
  "param_: usize, grad_: usize, apart: usize, words: i32, bind: usize, meta: usize, part: i32, parts: i32";

export const optimizer: Kernel<OptimizerBody> = {
  grid: ([b]) => [fixed(groupsOf(b!)), one],
  parts: (b) => b.params.length,
  over: null,
  writesWeights: (b) => b.params.some((p) => p.kind !== "factor"),
  wgsl: (name, b, env) =>
    b.params
      .map((p, i) => {
        const printer = wgslPrinter(env);
        const next = nextOf(b, p, printer);
        const where: Record<string, string> = { param: paramWgsl(p, env) };
        const { count, accum } = severalOf(p);
        const shard = p.own === null ? null : `(${wgsl.shard.rows} + ${SHARD_ROWS - 1}) / ${SHARD_ROWS}`;
        optimizers[b.optimizer].states.forEach((s, k) => {
          where[s] = `accum[g + ${shard ? `${k + 1} * words` : (k + 1) * p.words} + i]`;
        });
        return wgsl.fn(
          `${name}_${i}`,
          lines`
            ${wgsl.guard(p.branch === null ? [] : [p.branch])}
            ${shard ? [`let words = ${shard} * ${SHARD_ROWS * p.k};`] : []}
            let clip = arena[${wgsl.norms(env)} + ${env.groups}];
            for (var e = 0; e < ${count}; e++) {
              let g = ${shard ? "0" : `${wgsl.header("job")} * ${env.jobWords} + ${p.accum} + e * ${accum}`};
              for (
                var i = wg.x * ${WG} + lane;
                i < ${shard ? "words" : wgsl.wordsInUse(p, env)};
                i += ${groupsOf(b) * WG}
              ) {
                if (clip >= 0.0f) {
                  let grad_ = ${wgsl.pin("accum[g + i] * clip")};
                  ${Object.entries(where).map(([key, at]) => `let ${key}_ = ${at};`)}
                  ${[...printer.row, ...printer.col]}
                  ${next.map(([key, t]) => `${where[key]} = ${t};`)}
                }
                accum[g + i] = 0.0f;
              }
            }`,
        );
      })
      .join("\n"),
  assembly: (name, b, env) => {
    const { states } = optimizers[b.optimizer];
    // A function for all parameters with one step: what differs are numbers.
    const functions = new Map<string, { readonly name: string; readonly text: string }>();
    const step = (p: ParamAddress): string[] => {
      const { loop, param, grad, words } = partsOf(p, env);
      const printer = assemblyPrinter(env, 4);
      const next = nextOf(b, p, printer);
      const text = lines`
        const clip: f32 = load<f32>(${assembly.norms(env)}, ${env.groups * 4});
        const cv: v128 = f32x4.splat(clip);
        const from: usize = (<usize>share(words, part, parts)) << 4;
        const to: usize = (<usize>share(words, part + 1, parts)) << 4;
        ${states.map((s, i) => `const ${s}_: usize = grad_ + apart${i ? ` * ${i + 1}` : ""};`)}
        if (clip >= 0) for (let i: usize = from; i < to; i += 16)
          v128.store(grad_ + i, f32x4.mul(v128.load(grad_ + i), cv));
        if (clip >= 0) for (let i: usize = from; i < to; i += 16) {
          ${[...printer.row, ...printer.col]}
          ${next.map(([key, t]) => `v128.store(${key}_ + i, ${t});`)}
        }
        memory.fill(grad_ + from, 0, to - from);`;
      const key = text.join("\n");
      const known = functions.get(key)?.name ?? `${name}_${functions.size}`;
      functions.set(key, { name: known, text: assembly.fn(known, text, stepParams) });
      return lines`
        ${p.branch === null ? "" : `if ${assembly.maskBit(p.branch)} `}${loop}${known}(
          ${param},
          ${grad}, ${p.words * 4}, ${words} >> 2, bind, meta, part, parts
        );`;
    };
    const steps = b.params.flatMap(step);
    const launch = assembly.fn(
      name,
      lines`
        const g: usize = ${assembly.gradients(env)};
        ${steps}`,
    );
    return [...[...functions.values()].map((f) => f.text), launch].join("\n");
  },
};
