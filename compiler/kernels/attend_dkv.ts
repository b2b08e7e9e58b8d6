/**
 * The gradient of attention's keys and values, added to what later windows of the sequence left. Each key and
 * key head is owned once; its sequence's segments fold one after another, in each the query rows and their
 * heads in order. On GPUs a workgroup has a tile of keys; on CPUs behind WebGPU a lane a key.
 */
import { kvOf } from "./attend.ts";
import { attendBack, operands } from "./attend_back.ts";
import type { Body, GraphKernel } from "./body.ts";
import * as assembly from "./text/assemblyscript.ts";
import { attentionOf } from "./text/assemblyscript_attention.ts";
import { type Lines, lines } from "./text/lines.ts";
import { dkvTile } from "./text/wgsl_attend_dkv.ts";
import { plainDkv } from "./text/wgsl_attend_plain.ts";

const { Q, O, LSE, DO } = operands;
/** Query rows that meet a key in one go: what is read of them stays in the first-level cache. */
const BLOCK = 16;
/** Bytes of one number for each pair of a block's rows and a key head's heads. */
const pairBytes = (b: Body): number => BLOCK * (Number(b.node!.attrs.heads) / kvOf(b).heads) * 4;

export const attend_dkv: GraphKernel = {
  ...attendBack,
  state: "dkv",
  wgsl: (name, b, env, variant) => (variant === "many" ? dkvTile : plainDkv)(name, b, env, operands),
  /** Score, probability and log-sum-exp of each pair; rowsum(dO · O) of every row and head. */
  scratch: (b, { capacities: { unitRows } }) => 3 * pairBytes(b) + unitRows * Number(b.node!.attrs.heads) * 4,
  assembly: (name, b, env) => {
    const a = attentionOf(b, env);
    const d = a.out(0);
    const width = 2 * a.kvHeads * a.hd;
    const half = (width / 2) * 4;
    const pair = pairBytes(b);
    const seg = (array: string, at: string): string => a.word(array, `(${at})`);
    const D = `D + ((<usize>(row * ${a.heads} + h)) << 2)`;
    const lse = `load<f32>(${a.row(LSE)} + ((<usize>h) << 2))`;
    // Pairs of a block of query rows and the key head's heads, in order: dots first, then all exponentials,
    // then sums, each with one row in registers.
    const pairs = (ptr: string, of: number, text: Lines): Lines => lines`
      for (let row: i32 = rb, at: usize = S; row < re; row++)
        for (let h: i32 = kh * ${a.group}; h < (kh + 1) * ${a.group}; h++, at += 4) {
          const ${ptr}: usize = ${a.head(of)};
          ${text}
        }`;
    const dots = lines`
      ${pairs(
        "qp",
        Q,
        lines`
          ${a.dot("a", "k", "qp")}
          store<f32>(at, a);
          store<f32>(at, ${lse}, ${2 * pair});`,
      )}
      ${pairs(
        "gp",
        DO,
        lines`
          ${a.dot("dp", "v", "gp")}
          store<f32>(at, dp - load<f32>(${D}), ${pair});`,
      )}`;
    const sums = lines`
      ${pairs("qp", Q, [`const ds: f32 = load<f32>(at, ${pair});`, ...a.axpy("dk", "ds", "qp")])}
      ${pairs("gp", DO, ["const p: f32 = load<f32>(at);", ...a.axpy("dv", "p", "gp")])}`;
    // Fresh sums are stored, others added to what is there.
    const store = (add: boolean): Lines =>
      a.each(
        (i) =>
          [
            ["dk", i * 16],
            ["dv", half + i * 16],
          ].map(([v, at]) =>
            add
              ? `v128.store(out, f32x4.add(v128.load(out, ${at}), ${v}${i}), ${at});`
              : `v128.store(out, ${v}${i}, ${at});`,
          ),
        (e) =>
          [
            ["dks", e * 4],
            ["dvs", half + e * 4],
          ].map(([v, at]) =>
            add
              ? `store<f32>(out, load<f32>(out, ${at}) + ${v}${e}, ${at});`
              : `store<f32>(out, ${v}${e}, ${at});`,
          ),
      );
    return assembly.fn(
      name,
      // D = rowsum(dO · O) of each (row, head); every thread makes its own.
      lines`
        const n: i32 = ${assembly.count(b.domain)};
        const S: usize = scratch;
        const D: usize = scratch + ${3 * pair};
        for (let row: i32 = 0; row < n; row++)
          for (let h: i32 = 0; h < ${a.heads}; h++) {
            const op: usize = ${a.head(O)};
            const gp: usize = ${a.head(DO)};
            ${a.load("g", "gp")}
            ${a.dot("dsum", "g", "op")}
            store<f32>(${D}, dsum);
          }
        for (let s: i32 = 0; s < ${assembly.header("n_segments")}; s++) {
          const base: i32 = ${seg("seg_base", "s")};
          const fresh: i32 = ${seg("seg_fresh", "s")};
          const r0: i32 = ${seg("seg_row", "s")};
          const end: i32 = r0 + ${seg("seg_rows", "s")};
          const pos0: i32 = ${seg("pos", "r0")};
          const table: i32 = ${seg("table", "r0")};
          for (let key: i32 = 0; key < pos0 + end - r0; key++) {
            const t: i32 = key >> 5;
            for (let kh: i32 = 0; kh < ${a.kvHeads}; kh++) {
              if ((key * ${a.kvHeads} + kh) % parts != part) continue;
              const kp: usize = ${a.block(0, "kh")} + <usize>(key & 31) * ${a.cached.bytes};
              const vp: usize = ${a.block(1, "kh")} + <usize>(key & 31) * ${a.cached.bytes};
              ${a.cached.load("k", "kp")}
              ${a.cached.load("v", "vp")}
              ${a.zero("dk")}
              ${a.zero("dv")}
              ${a.lastRow}
              for (let rb: i32 = r0 + max(0, key - pos0); rb < ${a.last}; rb += ${BLOCK}) {
                const re: i32 = min(${a.last}, rb + ${BLOCK});
                ${dots}
                for (let at: usize = S; at < S + ((<usize>((re - rb) * ${a.group})) << 2); at += 16) {
                  ${a.bound}
                  const p: v128 = exp4(
                    f32x4.sub(${a.scores}, v128.load(at, ${2 * pair})));
                  v128.store(at, p);
                  v128.store(
                    at, f32x4.mul(f32x4.mul(p, v128.load(at, ${pair})), ${a.slopes}), ${pair});
                }
                ${sums}
              }
              const out: usize =
                ${d.space} + ((<usize>((base + key) * ${d.stride} + kh * ${a.hd})) << 2) + ${d.offset * 4};
              if (fresh) {
                ${store(false)}
              } else {
                ${store(true)}
              }
            }
          }
        }`,
    );
  },
};
