/** Σ g² over a group's gradients of a job: what its part of the gradient's norm is. */
import { SHARD_ROWS } from "../../runtime/bundle.ts";
import { type BareBody, type Kernel, type KernelEnv, type ParamAddress, severalOf } from "../kernel.ts";
import { one } from "./grid.ts";
import { inTurn } from "./text/alike.ts";
import * as assembly from "./text/assemblyscript.ts";
import { FOLD_LANES, foldShared } from "./text/library.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { indices } from "./text/wgsl_products.ts";

export interface SumsqBody extends BareBody<"sumsq"> {
  readonly params: readonly ParamAddress[];
}

/** In four lanes. */
const functions = `
/** Σ g²: chunks of 4096 words, each in four lanes, chunk sums in order. */
function sumsq(g: usize, words: i32): f32 {
  let total: f32 = 0;
  for (let at: i32 = 0; at < words; at += 4096) {
    let v: v128 = f32x4.splat(0);
    const end: i32 = min(at + 4096, words);
    for (let i: i32 = at; i < end; i += 4) {
      const x: v128 = v128.load(g + ((<usize>i) << 2));
      v = madd(x, x, v);
    }
    total += hsum(v);
  }
  return total;
}`;

/** Words that a lane has on their way at once. */
const AT_ONCE = 8;
/** Adds to `total` of every lane those of so many words from `from` on, ascending. */
function squares(from: string, words: string): Lines {
  const turn = AT_ONCE * FOLD_LANES;
  return lines`
    {
      let home = ${from} + lane;
      let words = ${words};
      for (var at = 0; at + ${turn} <= words; at += ${turn}) {
        ${indices(AT_ONCE).map((i) => `let x${i} = accum[home + at + ${i * FOLD_LANES}];`)}
        ${indices(AT_ONCE).map((i) => `total = fma(x${i}, x${i}, total);`)}
      }
      for (var at = words - words % ${turn}; at + lane < words; at += ${FOLD_LANES}) {
        let x = accum[home + at];
        total = fma(x, x, total);
      }
    }`;
}

/** Adds those of a shard, a block after the other. */
function ofShard(name: string, p: ParamAddress, env: KernelEnv): string {
  const words = SHARD_ROWS * p.k;
  return wgsl.fn(
    name,
    lines`
      let at = ${wgsl.norms(env)} + tables[0];
      for (var block = 0; block < (${wgsl.shard.rows} + ${SHARD_ROWS - 1}) / ${SHARD_ROWS}; block++) {
        var total = 0.0f;
        ${squares(`block * ${words}`, String(words))}
        let sum = fold_sum(total, lane);
        if (lane == 0) { arena[at] = arena[at] + sum; }
      }`,
  );
}

export const sumsq: Kernel<SumsqBody> = {
  grid: () => [one, one],
  lanes: () => FOLD_LANES,
  shared: () => foldShared,
  over: null,
  wgsl: (name, b, env) => {
    if (b.params[0]?.own != null) return ofShard(name, b.params[0], env);
    const param = (p: ParamAddress): Lines => {
      const { count, accum } = severalOf(p);
      return lines`
        ${p.branch === null ? "" : `if (${wgsl.maskBit(p.branch)}) `}{
          for (var e = 0; e < ${count}; e++) {
            ${squares(`g + ${p.accum} + e * ${accum}`, wgsl.wordsInUse(p, env))}
          }
        }`;
    };
    return wgsl.fn(
      name,
      lines`
        let g = ${wgsl.header("job")} * ${env.jobWords};
        var total = 0.0f;
        ${inTurn(b.params.map(param), "s")}
        let sum = fold_sum(total, lane);
        if (lane == 0) { arena[${wgsl.norms(env)} + tables[0]] = sum; }`,
    );
  },
  library: () => functions,
  assembly: (name, b, env) => {
    const param = (p: ParamAddress): string => {
      const { count, accum } = severalOf(p);
      return (
        (p.branch === null ? "" : `if ${assembly.maskBit(p.branch)} `) +
        `for (let e: usize = 0; e < ${count}; e++) ` +
        `sum += sumsq(g + ${p.accum * 4} + e * ${accum * 4}, ${assembly.wordsInUse(p, env)});`
      );
    };
    return assembly.fn(
      name,
      lines`
        if (part) return;
        const g: usize = ${assembly.gradients(env)};
        let sum: f32 = 0;
        ${b.params.map(param)}
        store<f32>(${assembly.norms(env)} + ((<usize>load<i32>(tables)) << 2), sum);`,
    );
  },
};
