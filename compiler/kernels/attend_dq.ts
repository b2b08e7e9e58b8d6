/**
 * The gradient of attention's queries: a turn (CPU, and CPUs behind WebGPU: a lane) owns a row and
 * head; on GPUs a workgroup a row and the heads that share keys.
 */
import { KV_BLOCK } from "../../ops/index.ts";
import { attendBack, operands } from "./attend_back.ts";
import type { GraphKernel } from "./body.ts";
import * as assembly from "./text/assemblyscript.ts";
import { attentionOf } from "./text/assemblyscript_attention.ts";
import { type Lines, lines } from "./text/lines.ts";
import { dqTile } from "./text/wgsl_attend_dq.ts";
import { plainDq } from "./text/wgsl_attend_plain.ts";

const { Q, O, LSE, DO } = operands;

export const attend_dq: GraphKernel = {
  ...attendBack,
  wgsl: (name, b, env, variant, lanes) =>
    variant === "many" ? dqTile(name, b, env, operands, lanes) : plainDq(name, b, env, operands),
  /** Two dot products of a tile's keys. */
  scratch: () => 2 * KV_BLOCK * 4,
  assembly: (name, b, env) => {
    const a = attentionOf(b, env);
    const d = a.out(0);
    /** Dots of the tile's rows at `from` with vector `v`, to `to`. */
    const scores = (v: string, from: string, to: string): Lines => lines`
      for (let j: i32 = ${a.first}; j < c; j++) {
        const p: usize = ${from} + <usize>j * ${a.cached.bytes};
        ${a.cached.dot("a", v, "p")}
        store<f32>(${to} + ((<usize>j) << 2), a);
      }`;
    return assembly.fn(
      name,
      lines`
        const n: i32 = ${assembly.count(b.domain)};
        const s: usize = scratch;
        for (let row: i32 = 0; row < n; row++) {
          const keys: i32 = ${a.pos} + 1;
          ${a.seen}
          const table: i32 = ${a.table};
          for (let h: i32 = 0; h < ${a.heads}; h++) {
            if ((row * ${a.heads} + h) % parts != part) continue;
            const kh: i32 = h / ${a.group};
            const qp: usize = ${a.head(Q)};
            const op: usize = ${a.head(O)};
            const gp: usize = ${a.head(DO)};
            ${a.load("q", "qp")}
            ${a.load("g", "gp")}
            ${a.dot("dsum", "g", "op")}
            const lse: f32 = load<f32>(${a.row(LSE)} + ((<usize>h) << 2));
            ${a.zero("d")}
            for (let t: i32 = ${a.firstTile}; t * 32 < keys; t++) {
              const c: i32 = min(32, keys - t * 32);
              ${a.firstKey}
              const k0: usize = ${a.block(0, "kh")};
              const v0: usize = ${a.block(1, "kh")};
              ${scores("q", "k0", "s")}
              ${scores("g", "v0", `s + ${KV_BLOCK * 4}`)}
              for (let j: i32 = 0; j < c; j += 4) {
                const at: usize = s + ((<usize>j) << 2);
                ${a.bound}
                const p: v128 = exp4(
                  f32x4.sub(${a.scores}, f32x4.splat(lse)));
                v128.store(
                  at,
                  f32x4.mul(
                    f32x4.mul(p, f32x4.sub(v128.load(at, ${KV_BLOCK * 4}), f32x4.splat(dsum))),
                    ${a.slopes}));
              }
              for (let j: i32 = ${a.first}; j < c; j++) {
                const kp: usize = k0 + <usize>j * ${a.cached.bytes};
                const ds: f32 = load<f32>(s + ((<usize>j) << 2));
                ${a.cached.axpy("d", "ds", "kp")}
              }
            }
            const at: i32 = row * ${d.stride} + h * ${a.hd};
            const out: usize = ${d.space} + ((<usize>at) << 2) + ${d.offset * 4};
            ${a.each(
              (i) => [`v128.store(out, d${i}, ${i * 16});`],
              (e) => [`store<f32>(out, ds${e}, ${e * 4});`],
            )}
          }
        }`,
    );
  },
};
