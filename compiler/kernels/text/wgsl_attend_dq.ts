/**
 * The gradient of queries for GPUs: a workgroup has a row and the heads that share its keys. Lanes are over
 * keys and four heads for what a key counts, and over columns and four heads for sums, so that what is read
 * of the cache serves all heads, and rows of queries and gradients lie in workgroup memory. Every number is
 * made in the order of the plain kernel.
 */
import { KV_BLOCK } from "../../../ops/index.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, sumOf } from "./wgsl_attention.ts";
import { indices } from "./wgsl_products.ts";

/** Fours of numbers of queries, and as many of gradients, that fit workgroup memory. */
const ROOM = 256;
/** Keys that a lane reads at a time. */
const KEYS = 4;
interface Cut {
  readonly together: number;
  readonly fours: number;
  readonly quads: number;
  readonly lanes: number;
}
/** How heads are cut into workgroups. */
export function dqCut(b: Body): Cut {
  const kv = b.node!.ins[1]!.type as { heads: number; headDim: number };
  const group = Number(b.node!.attrs.heads) / kv.heads;
  const quads = Math.ceil(kv.headDim / 4);
  const most = Math.max(1, Math.floor(ROOM / quads));
  let together = Math.min(group, most);
  while (group % together) together--;
  return { together, fours: Math.ceil(together / 4), quads, lanes: kv.headDim > 64 ? 128 : 64 };
}
export const dqShared = (b: Body): string[] => {
  const { fours, quads } = dqCut(b);
  return [
    ...["shared_q", "shared_g"].map((n) => `var<workgroup> ${n}: array<vec4<f32>, ${fours * 4 * quads}>;`),
    `var<workgroup> shared_p: array<vec4<f32>, ${fours * KV_BLOCK}>;`,
    ...["shared_m", "shared_d"].map((n) => `var<workgroup> ${n}: array<f32, ${fours * 4}>;`),
  ];
};
export function dqTile(
  name: string,
  b: Body,
  env: KernelEnv,
  { Q, O, LSE, DO }: Readonly<Record<"Q" | "O" | "LSE" | "DO", number>>,
): string {
  const a = attentionOf(b, env);
  const { hd, stride, group, kvAt, operand, out } = a;
  const [q, o, lse, g, dq] = [operand(Q), operand(O), operand(LSE), operand(DO), out(0)];
  const { together, fours, quads, lanes } = dqCut(b);
  const strips = lanes / KV_BLOCK;
  const mine = indices(Math.ceil(fours / strips));
  const four = indices(4);
  const atOnce = quads % 2 ? 1 : 2;
  const fourOf = (i: number): string => `min(lane / ${KV_BLOCK} + ${i * strips}, ${fours - 1})`;
  const turns = indices(Math.ceil((hd * fours) / lanes));
  const each = (text: (t: number) => Lines): Lines =>
    turns.flatMap(
      (t) => lines`
        {
          let at = lane + ${t * lanes};
          let column = at % ${hd};
          let rows = at / ${hd};
          if (rows < ${fours}) {
            ${text(t)}
          }
        }`,
    );
  const add = (t: number, x: string, j: string): string =>
    `o${t} = fma(shared_p[rows * ${KV_BLOCK} + ${j}], vec4<f32>(${x}), o${t});`;
  const keyAt = (j: string): string => a.cached(`k + (${j}) * ${stride} + column`);
  return wgsl.fn(
    name,
    lines`
      let row = wg.x;
      let h0 = wg.y * ${together};
      let kh = h0 / ${group};
      let keys = ${a.posOf("row")} + 1;
      ${a.seen}
      let table = ${a.tableOf("row")};
      for (var at = lane; at < ${fours * 4 * quads}; at += ${lanes}) {
        let r = at / ${quads};
        var x = vec4<f32>();
        var y = vec4<f32>();
        if (r < ${together}) {
          let qp = ${q.at} + (h0 + r) * ${hd};
          let gp = ${g.at} + (h0 + r) * ${hd};
          x = ${a.row(q.space, "qp", `(at % ${quads})`)};
          y = ${a.row(g.space, "gp", `(at % ${quads})`)};
        }
        shared_q[at] = x;
        shared_g[at] = y;
      }
      if (lane < ${fours * 4}) {
        let h = h0 + min(lane, ${together - 1});
        let gp = ${g.at} + h * ${hd};
        let op = ${o.at} + h * ${hd};
        ${a.dots({ dsum: [a.row(g.space, "gp", "i"), a.row(o.space, "op", "i")] })}
        shared_d[lane] = dsum;
        shared_m[lane] = ${lse.space}[${lse.at} + h];
      }
      ${turns.map((t) => `var o${t} = vec4<f32>();`)}
      let j = lane % ${KV_BLOCK};
      workgroupBarrier();
      for (var t = ${a.firstTile}; t < keys; t += ${KV_BLOCK}) {
        let end = min(${KV_BLOCK}, keys - t);
        let k = ${kvAt(0, "t", "kh")};
        let kp = k + min(j, end - 1) * ${stride};
        let vp = ${kvAt(1, "t", "kh")} + min(j, end - 1) * ${stride};
        ${mine.flatMap((i) =>
          four.flatMap((r) => ["d", "e"].map((name) => `var ${name}${i}_${r} = vec4<f32>();`)),
        )}
        for (var i = ${wgsl.header("zero")}; i < ${quads}; i += ${atOnce}) {
          ${indices(atOnce).flatMap((u) => [
            `let x${u} = ${a.quad("kp", `(i + ${u})`)};`,
            `let y${u} = ${a.quad("vp", `(i + ${u})`)};`,
          ])}
          ${indices(atOnce).flatMap((u) =>
            mine.flatMap((i) =>
              four.flatMap((r) => {
                const at = `${fourOf(i)} * ${4 * quads} + ${r * quads + u} + i`;
                return [
                  `d${i}_${r} = fma(shared_q[${at}], x${u}, d${i}_${r});`,
                  `e${i}_${r} = fma(shared_g[${at}], y${u}, e${i}_${r});`,
                ];
              }),
            ),
          )}
        }
        ${mine.flatMap((i) => [
          `var s${i} = vec4<f32>();`,
          ...four.flatMap(
            (r) => lines`
              {
                let dot = ${sumOf(`d${i}_${r}`)};
                let dp = ${sumOf(`e${i}_${r}`)};
                let of_row = ${fourOf(i)} * 4 + ${r};
                ${a.bound}
                s${i}[${r}] = exp(${a.score} - shared_m[of_row]) * (dp - shared_d[of_row]) * ${a.slope};
              }`,
          ),
          `shared_p[${fourOf(i)} * ${KV_BLOCK} + j] = s${i};`,
        ])}
        workgroupBarrier();
        let begin = ${a.firstKey};
        ${each(
          (t) => lines`
            var c = begin;
            for (; c + ${KEYS} <= end; c += ${KEYS}) {
              ${indices(KEYS).map((u) => `let x${u} = ${keyAt(`c + ${u}`)};`)}
              ${indices(KEYS).map((u) => add(t, `x${u}`, `c + ${u}`))}
            }
            for (; c < end; c++) { ${add(t, keyAt("c"), "c")} }`,
        )}
        workgroupBarrier();
      }
      ${each((t) =>
        four.map((r) => {
          const at = `${dq.offset} + row * ${dq.stride} + (h0 + rows * 4 + ${r}) * ${hd} + column`;
          return `if (rows * 4 + ${r} < ${together}) { ${dq.space}[${at}] = o${t}[${r}]; }`;
        }),
      )}`,
  );
}
