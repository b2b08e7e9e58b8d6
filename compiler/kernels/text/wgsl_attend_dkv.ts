/**
 * The gradient of keys and values for GPUs: a workgroup has a tile of 32 keys of a sequence and a key head,
 * and takes the queries that see them some rows at a time. Half of the lanes are over keys and four rows for
 * q · k, half for dO · v; then all are over columns and half of the keys for sums, so that what a lane reads
 * of queries and gradients serves 16 keys. Every number is made in the order of the plain kernel.
 */
import { KV_BLOCK } from "../../../ops/index.ts";
import type { KernelEnv } from "../../kernel.ts";
import { kvOf } from "../attend.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, type Operands, type Sharing, sumOf } from "./wgsl_attention.ts";
import { indices } from "./wgsl_products.ts";

/** Fours of numbers of queries, and as many of gradients, that fit workgroup memory. */
const ROOM = 256;
/** Keys that a lane sums. */
const KEYS = KV_BLOCK / 2;
interface Cut {
  /** Rows of queries at a time, in fours. */
  readonly fours: number;
  readonly quads: number;
  readonly lanes: number;
  /** Workgroups that share a head's columns, and columns of each: a lane sums two of them at most. */
  readonly parts: number;
  readonly columns: number;
}
/** How keys and columns are cut into workgroups. */
export function dkvCut(b: Body): Cut {
  const { headDim } = kvOf(b);
  const quads = Math.ceil(headDim / 4);
  const fours = quads * 8 > ROOM ? 1 : 2;
  const lanes = fours * 2 * KV_BLOCK;
  const parts = Math.ceil(headDim / lanes);
  return { fours, quads, lanes, parts, columns: Math.ceil(headDim / parts) };
}
export const dkvShared: Sharing = (b) => {
  const { fours, quads, lanes } = dkvCut(b);
  return { q: 2 * fours * 4 * quads, p: fours * KV_BLOCK, s: fours * KV_BLOCK, m: lanes, d: lanes };
};
export function dkvTile(name: string, b: Body, env: KernelEnv, { Q, O, LSE, DO }: Operands): string {
  const a = attentionOf(b, env);
  const { hd, stride, group, kvHeads, kvAt, operand, out, word } = a;
  const [q, o, lse, g, d] = [operand(Q), operand(O), operand(LSE), operand(DO), out(0)];
  const { fours, quads, lanes, parts, columns } = dkvCut(b);
  const rows = fours * 4;
  const four = indices(4);
  const keysOf = `((${word("seg_keys", "s")} + ${KV_BLOCK - 1}) / ${KV_BLOCK})`;
  const atOnce = quads % 2 ? 1 : 2;
  const turns = indices(Math.ceil((2 * columns) / lanes));
  /** Of each of a lane's columns, and the half of the keys that it sums there: the first is `key`. */
  const each = (text: (t: number) => Lines): Lines =>
    turns.flatMap(
      (t) => lines`
        {
          let at = lane + ${t * lanes};
          let column = c0 + at % ${columns};
          let key = at / ${columns} * ${KEYS};
          if (key < ${KV_BLOCK}${hd % columns ? ` && column < ${hd}` : ""}) {
            ${text(t)}
          }
        }`,
    );
  const sums = turns.flatMap((t) => indices(KEYS).map((k) => ({ t, k })));
  const place = (part: 0 | 1, key: string): string =>
    `${d.space}[out + (${key}) * ${d.stride}${part ? ` + ${kvHeads * hd}` : ""} + column]`;
  /** What is stored of each key that there is: sums of the segments before lie there. */
  const store = (value: (part: 0 | 1, t: number, k: number) => string): Lines =>
    each((t) =>
      indices(KEYS).map((k) => {
        const [dk, dv] = ([0, 1] as const).map((p) => `${place(p, `key + ${k}`)} = ${value(p, t, k)};`);
        return `if (key + ${k} < count) { ${dk} ${dv} }`;
      }),
    );
  return wgsl.fn(
    name,
    lines`
      var tile = wg.x;
      var s = 0;
      let all = ${wgsl.header("n_segments")};
      while (s < all && tile >= ${keysOf}) { tile = tile - ${keysOf}; s = s + 1; }
      if (s == all || wg.y >= ${kvHeads * parts}) { return; }
      let kh = wg.y / ${parts};
      let c0 = wg.y % ${parts} * ${columns};
      let key0 = tile * ${KV_BLOCK};
      let count = min(${KV_BLOCK}, ${word("seg_keys", "s")} - key0);
      let table = batch[${env.layout.arrays.table!} + ${word("seg_row", "s")}];
      let out = ${d.offset} + (${word("seg_base", "s")} + key0) * ${d.stride} + kh * ${hd};
      let j = lane % ${KV_BLOCK};
      let four = lane / ${KV_BLOCK} % ${fours};
      let of_v = lane / ${KV_BLOCK * fours};
      var kp = ${kvAt(0, "key0", "kh")};
      if (of_v == 1) { kp = ${kvAt(1, "key0", "kh")}; }
      kp = kp + min(j, count - 1) * ${stride};
      if (${word("seg_fresh", "s")} != 0) {
        ${store(() => "0.0f")}
      }
      loop {
        let r0 = ${word("seg_row", "s")};
        let pos0 = ${word("pos", "r0")};
        let end = r0 + ${word("seg_rows", "s")};
        var start = 0;
        var last = 0;
        {
          let key = key0 + j;
          start = r0 + max(0, key - pos0);
          if (j < count) { last = ${a.lastRow("end", "r0", "pos0")}; }
        }
        let begin = r0 + max(0, key0 - pos0);
        var n = 0;
        {
          let key = key0 + count - 1;
          n = ${a.lastRow("end", "r0", "pos0")};
        }
        if (begin < n) {
          ${sums.flatMap(({ t, k }) => ["k", "v"].map((x) => `var d${x}${t}_${k} = 0.0f;`))}
          for (var h = kh * ${group}; h < (kh + 1) * ${group}; h++) {
            for (var rb = begin; rb < n; rb += ${rows}) {
              let counted = (rb - begin) % ${lanes};
              if (counted == 0 && rb + lane < n) {
                let row = rb + lane;
                let gp = ${g.at} + h * ${hd};
                let op = ${o.at} + h * ${hd};
                ${a.dots({ dsum: [a.row(g.space, "gp", "i"), a.row(o.space, "op", "i")] })}
                shared_d[lane] = dsum;
                shared_m[lane] = ${lse.space}[${lse.at} + h];
              }
              for (var at = lane; at < ${rows * quads}; at += ${lanes}) {
                let row = min(rb + at / ${quads}, n - 1);
                let qp = ${q.at} + h * ${hd};
                let gp = ${g.at} + h * ${hd};
                shared_q[at] = ${a.row(q.space, "qp", `(at % ${quads})`)};
                shared_q[at + ${rows * quads}] = ${a.row(g.space, "gp", `(at % ${quads})`)};
              }
              workgroupBarrier();
              ${four.map((r) => `var d${r} = vec4<f32>();`)}
              let mine_at = (of_v * ${rows} + four * 4) * ${quads};
              for (var i = ${wgsl.header("zero")}; i < ${quads}; i += ${atOnce}) {
                ${indices(atOnce).map((u) => `let x${u} = ${a.quad("kp", `(i + ${u})`)};`)}
                ${indices(atOnce).flatMap((u) =>
                  four.map((r) => `d${r} = fma(shared_q[mine_at + ${r * quads + u} + i], x${u}, d${r});`),
                )}
              }
              let mine = vec4<f32>(${four.map((r) => sumOf(`d${r}`)).join(", ")});
              if (of_v == 0) { shared_p[four * ${KV_BLOCK} + j] = mine; }
              workgroupBarrier();
              if (of_v == 1) {
                let other = shared_p[four * ${KV_BLOCK} + j];
                var ps = vec4<f32>();
                var ds = vec4<f32>();
                ${four.flatMap(
                  (r) => lines`
                    {
                      let row = rb + four * 4 + ${r};
                      let of_row = counted + four * 4 + ${r};
                      let dot = other[${r}];
                      ${a.bound}
                      let p = exp(${a.score} - shared_m[of_row]);
                      if (row >= start && row < last) {
                        ps[${r}] = p;
                        ds[${r}] = p * (mine[${r}] - shared_d[of_row]) * ${a.slope};
                      }
                    }`,
                )}
                shared_p[four * ${KV_BLOCK} + j] = ps;
                shared_s[four * ${KV_BLOCK} + j] = ds;
              }
              workgroupBarrier();
              for (var f = 0; f < ${fours}; f++) {
                ${each(
                  (t) => lines`
                    ${four.flatMap((r) => [
                      `var x${r} = 0.0f;`,
                      `var y${r} = 0.0f;`,
                      "{",
                      `  let row = min(rb + f * 4 + ${r}, n - 1);`,
                      `  x${r} = ${q.space}[${q.at} + h * ${hd} + column];`,
                      `  y${r} = ${g.space}[${g.at} + h * ${hd} + column];`,
                      "}",
                    ])}
                    ${indices(KEYS).flatMap((k) => [
                      "{",
                      `  let ds = shared_s[f * ${KV_BLOCK} + key + ${k}];`,
                      `  let ps = shared_p[f * ${KV_BLOCK} + key + ${k}];`,
                      ...four.map((r) => `  dk${t}_${k} = fma(ds[${r}], x${r}, dk${t}_${k});`),
                      ...four.map((r) => `  dv${t}_${k} = fma(ps[${r}], y${r}, dv${t}_${k});`),
                      "}",
                    ])}`,
                )}
              }
            }
          }
          ${store((p, t, k) => `${place(p, `key + ${k}`)} + d${p ? "v" : "k"}${t}_${k}`)}
        }
        s = s + 1;
        if (s >= all || ${word("seg_keys", "s")} > 0) { break; }
      }`,
  );
}
