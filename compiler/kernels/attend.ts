/**
 * Causal attention over the paged cache. In WGSL a lane owns a row and head and keeps its vectors in
 * registers: no barrier. For few rows there is a second kernel, where a workgroup shares one row and head,
 * its lanes over keys and then over dims; both do the same operations in the same order on every number.
 */
import { KV_BLOCK, type Type } from "../../ops/index.ts";
import type { KernelEnv } from "../kernel.ts";
import type { Body, GraphKernel } from "./body.ts";
import { fixed } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { attentionOf } from "./text/assemblyscript_attention.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";
import { attentionOf as wgslAttentionOf } from "./text/wgsl_attention.ts";

const { WG } = wgsl;
export const headsOf = (b: Body): number => Number(b.node!.attrs.heads);
export const kvOf = (b: Body) => b.node!.ins[1]!.type as Type & { kind: "kv" };

/** A lane for a row and head. */
function alone(name: string, b: Body, env: KernelEnv): string {
  const a = wgslAttentionOf(b, env);
  const { hd, group, kvAt, operand, out, pos, table, dims, vector } = a;
  const [q, o, lse] = [operand(0), out(0), out(1)];
  return wgsl.fn(
    name,
    lines`
      let row = wg.x * ${WG} + lane;
      if (row >= ${wgsl.header("n_rows")}) { return; }
      let h = wg.y;
      let kh = h / ${group};
      let keys = ${pos} + 1;
      ${a.seen}
      let table = ${table};
      ${vector("q")}
      ${vector("o")}
      var s = array<f32, ${KV_BLOCK}>();
      let qp = ${q.at} + h * ${hd};
      ${dims(`q[d] = ${q.space}[qp + d];`)}
      var m = -1.0e30f;
      var l = 0.0f;
      for (var t = ${a.firstTile}; t < keys; t += ${KV_BLOCK}) {
        let c = min(${KV_BLOCK}, keys - t);
        let k = ${kvAt(0, "t", "kh")};
        var mt = m;
        for (var j = ${a.firstKey}; j < c; j++) {
          var dot = 0.0f;
          ${dims(`dot = fma(q[d], ${a.cached(`k + j * ${hd} + d`)}, dot);`)}
          ${a.bound}
          s[j] = ${a.score};
          mt = max(mt, s[j]);
        }
        let corr = exp(m - mt);
        m = mt;
        var lt = 0.0f;
        for (var j = ${a.firstKey}; j < c; j++) { s[j] = exp(s[j] - m); lt = lt + s[j]; }
        l = fma(l, corr, lt);
        let v = ${kvAt(1, "t", "kh")};
        ${dims("o[d] = o[d] * corr;")}
        for (var j = ${a.firstKey}; j < c; j++) {
          let p = s[j];
          ${dims(`o[d] = fma(p, ${a.cached(`v + j * ${hd} + d`)}, o[d]);`)}
        }
      }
      let inv = 1.0f / l;
      ${dims(`${o.space}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = o[d] * inv;`)}
      ${lse.space}[${lse.offset} + row * ${lse.stride} + h] = m + ${wgsl.pin("log(l)")};`,
  );
}
/** A workgroup for a row and head. */
function together(name: string, b: Body, env: KernelEnv): string {
  const a = wgslAttentionOf(b, env);
  const { hd, group, kvAt, operand, out, pos, table, dims } = a;
  const [q, o, lse] = [operand(0), out(0), out(1)];
  // The dims that a lane owns.
  const own = Array.from({ length: Math.ceil(hd / WG) }, (_, i) => i);
  const each = (body: (i: number) => Lines): Lines =>
    own.flatMap(
      (i) => lines`
        {
          let d = lane + ${i * WG};
          if (d < ${hd}) {
            ${body(i)}
          }
        }`,
    );
  return wgsl.fn(
    name,
    lines`
      let row = wg.x;
      let h = wg.y;
      let kh = h / ${group};
      let keys = ${pos} + 1;
      ${a.seen}
      let table = ${table};
      for (var d = lane; d < ${hd}; d += ${WG}) { shared_q[d] = ${q.space}[${q.at} + h * ${hd} + d]; }
      ${own.map((i) => `var o${i} = 0.0f;`)}
      var m = -1.0e30f;
      var l = 0.0f;
      workgroupBarrier();
      for (var t = ${a.firstTile}; t < keys; t += ${KV_BLOCK}) {
        let c = min(${KV_BLOCK}, keys - t);
        if (lane < c) {
          let k = ${kvAt(0, "t + lane", "kh")};
          var dot = 0.0f;
          ${dims(`dot = fma(shared_q[d], ${a.cached("k + d")}, dot);`)}
          ${a.bound}
          part[lane] = ${a.score};
        }
        workgroupBarrier();
        var mt = m;
        for (var j = ${a.firstKey}; j < c; j++) { mt = max(mt, part[j]); }
        let corr = exp(m - mt);
        m = mt;
        workgroupBarrier();
        if (lane < c) { part[lane] = exp(part[lane] - m); }
        workgroupBarrier();
        var lt = 0.0f;
        for (var j = ${a.firstKey}; j < c; j++) { lt = lt + part[j]; }
        l = fma(l, corr, lt);
        let v = ${kvAt(1, "t", "kh")};
        ${each(
          (i) => lines`
            o${i} = o${i} * corr;
            for (var j = ${a.firstKey}; j < c; j++) { o${i} = fma(part[j], ${a.cached(`v + j * ${hd} + d`)}, o${i}); }`,
        )}
        workgroupBarrier();
      }
      let inv = 1.0f / l;
      ${each((i) => [`${o.space}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = o${i} * inv;`])}
      if (lane == 0) { ${lse.space}[${lse.offset} + row * ${lse.stride} + h] = m + ${wgsl.pin("log(l)")}; }`,
  );
}

export const attend: GraphKernel = {
  epilogue: null,
  variants: () => ["many", "few"],
  grid: (bodies, _env, variant) => [
    variant === "few" ? { count: "few_rows", mul: 1, div: 1 } : { count: "many_rows", mul: 1, div: WG },
    fixed(Math.max(...bodies.map(headsOf))),
  ],
  shared: (variant, _lanes, bodies) =>
    variant === "few"
      ? [`var<workgroup> shared_q: array<f32, ${Math.max(...bodies.map((b) => kvOf(b).headDim))}>;`]
      : [],
  wgsl: (name, b, env, variant) => (variant === "few" ? together : alone)(name, b, env),
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
            const op: usize = ${o.space} + ((<usize>(row * ${o.stride} + h * ${a.hd})) << 2) + ${o.offset * 4};
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
