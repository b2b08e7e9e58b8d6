/**
 * Causal attention over the paged cache. On WebGPU rows of a sequence that stand beside each other go in
 * tiles, others alone, their keys cut into splits; which is the host's to say, by items of work. CPUs take a
 * row and head at a time.
 */
import { KV_BLOCK, type Type } from "../../ops/index.ts";
import type { Body, GraphKernel } from "./body.ts";
import { fixed, plainRows, rows } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { attentionOf } from "./text/assemblyscript_attention.ts";
import { lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { attendShared, cutOf, headsTogether, merge, packed } from "./text/wgsl_attend.ts";
import { plain } from "./text/wgsl_attend_plain.ts";
import { isSplit } from "./text/wgsl_attention.ts";

export const headsOf = (b: Body): number => Number(b.node!.attrs.heads);
export const kvOf = (b: Body) => b.node!.ins[1]!.type as Type & { kind: "kv" };
/** The one of a launch: what splits leave has room for one. */
function single(bodies: readonly Body[]): Body {
  if (bodies.length > 1) throw new Error("attention runs beside no other");
  return bodies[0]!;
}

const kindOf = { many: "tile", few: "split" } as const;

export const attend: GraphKernel = {
  epilogue: null,
  // Units have no items: only a step's rows are served.
  variants: ({ domain }, env) =>
    domain === "W" ? ["any"] : ["plain", "many", "few", ...(isSplit(env) ? (["merge"] as const) : [])],
  lanes: (bodies, variant) =>
    variant === "many" || variant === "few" ? cutOf(single(bodies), kindOf[variant]).lanes : wgsl.WG,
  grid: (bodies, _env, variant) => {
    const heads = headsOf(single(bodies));
    const { heads: kvHeads } = kvOf(bodies[0]!);
    const groups = fixed(heads / headsTogether(heads, kvHeads));
    return (
      {
        any: [rows(bodies, wgsl.WG, heads / kvHeads), fixed(kvHeads)],
        plain: [plainRows(bodies, wgsl.WG, heads / kvHeads), fixed(kvHeads)],
        many: [{ count: "tile_groups", mul: 1, div: 1 }, groups],
        few: [{ count: "few_splits", mul: 1, div: 1 }, groups],
        merge: [{ count: "few_merges", mul: 1, div: 1 }, fixed(heads)],
      } as const
    )[variant];
  },
  shared: (variant, _lanes, bodies) =>
    variant === "many" || variant === "few"
      ? attendShared(single(bodies), cutOf(single(bodies), kindOf[variant]))
      : [],
  wgsl: (name, b, env, variant) =>
    ({
      any: () => plain(name, b, env),
      plain: () => plain(name, b, env),
      many: () => packed(name, b, env, "tile"),
      few: () => packed(name, b, env, "split"),
      merge: () => merge(name, b, env),
    })[variant](),
  /** Scores of a tile. */
  scratch: () => KV_BLOCK * 4,
  assembly: (name, b, env) => {
    const a = attentionOf(b, env);
    const [o, lse] = [a.out(0), a.out(1)];
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
            const g: i32 = h / ${a.group};
            const qp: usize = ${a.head(0)};
            ${a.load("q", "qp")}
            ${a.zero("o")}
            let m: f32 = -1.0e30;
            let l: f32 = 0;
            for (let t: i32 = ${a.firstTile}; t * 32 < keys; t++) {
              const c: i32 = min(32, keys - t * 32);
              ${a.firstKey}
              let kp: usize = ${a.from(a.block(0, "g"))};
              let mt: f32 = m;
              for (let j: i32 = ${a.first}; j < c; j++) {
                ${a.cached.dot("a", "q", "kp")}
                ${a.score}
                store<f32>(s + ((<usize>j) << 2), a);
                mt = mt < a ? a : mt;
                kp += ${a.cached.bytes};
              }
              ${a.unseen("s")}
              for (let j: i32 = c; j < 32; j++) store<f32>(s + ((<usize>j) << 2), -1.0e30);
              const corr: f32 = exp1(m - mt);
              m = mt;
              const mv: v128 = f32x4.splat(m);
              let lv: v128 = f32x4.splat(0);
              for (let j: i32 = 0; j < 32; j += 4) {
                const e: v128 = exp4(f32x4.sub(v128.load(s + ((<usize>j) << 2)), mv));
                v128.store(s + ((<usize>j) << 2), e);
                lv = f32x4.add(lv, e);
              }
              l = l * corr + hsum(lv);
              const cv: v128 = f32x4.splat(corr);
              ${a.each(
                (i) => [`o${i} = f32x4.mul(o${i}, cv);`],
                (d) => [`os${d} *= corr;`],
              )}
              let vp: usize = ${a.from(a.block(1, "g"))};
              for (let j: i32 = ${a.first}; j < c; j++) {
                const w: f32 = load<f32>(s + ((<usize>j) << 2));
                ${a.cached.axpy("o", "w", "vp")}
                vp += ${a.cached.bytes};
              }
            }
            const inv: f32 = <f32>1 / l;
            const iv: v128 = f32x4.splat(inv);
            const at: i32 = row * ${o.stride} + h * ${a.hd};
            const op: usize = ${o.space} + ((<usize>at) << 2) + ${o.offset * 4};
            ${a.each(
              (i) => [`v128.store(op, f32x4.mul(o${i}, iv), ${i * 16});`],
              (d) => [`store<f32>(op, os${d} * inv, ${d * 4});`],
            )}
            store<f32>(
              ${lse.space} + ((<usize>(row * ${lse.stride} + h)) << 2) + ${lse.offset * 4}, m + log1(l));
          }
        }`,
    );
  },
};
