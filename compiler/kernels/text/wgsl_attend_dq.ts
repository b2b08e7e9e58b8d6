/**
 * The gradient of queries for GPUs: a workgroup has a row and the heads that share its keys, or two rows
 * beside each other where there are lanes for them. Lanes of a row are over keys and four heads for what a
 * key counts, and over columns and four heads for sums, so that what is read of the cache serves all heads,
 * and rows of queries and gradients lie in workgroup memory. Every number is made in the order of the plain
 * kernel.
 */
import { KV_BLOCK } from "../../../ops/index.ts";
import type { KernelEnv } from "../../kernel.ts";
import { kvOf } from "../attend.ts";
import type { Body } from "../body.ts";
import { indent, type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, type Operands, type Sharing, sumOf } from "./wgsl_attention.ts";
import { indices } from "./wgsl_products.ts";

/** Fours of numbers of queries, and as many of gradients, that fit workgroup memory. */
const ROOM = 256;
/** Keys that a lane reads at a time. */
const KEYS = 4;
/** Lanes that a row needs. */
const ROW_LANES = 64;
interface Cut {
  readonly together: number;
  readonly fours: number;
  readonly quads: number;
  /** Rows of a workgroup. */
  readonly rows: number;
}
/** How heads, and rows, are cut into workgroups of so many lanes. */
export function dqCut(b: Body, lanes: number): Cut {
  const { heads, headDim } = kvOf(b);
  const group = Number(b.node!.attrs.heads) / heads;
  const quads = Math.ceil(headDim / 4);
  const most = Math.max(1, Math.floor(ROOM / quads));
  let together = Math.min(group, most);
  while (group % together) together--;
  const fours = Math.ceil(together / 4);
  const rows = lanes / ROW_LANES;
  return { together, fours, quads, rows: rows * fours * 4 * quads > ROOM ? 1 : rows };
}
/** Lanes of a workgroup that has nothing else. */
export const dqLanes = (b: Body): number => (kvOf(b).headDim > 64 ? 128 : 64);
export const dqShared: Sharing = (b, lanes) => {
  const { fours, quads, rows } = dqCut(b, lanes);
  const all = rows * fours;
  return { q: 2 * all * 4 * quads, p: all * KV_BLOCK, s: 0, m: all * 4, d: all * 4 };
};
export function dqTile(
  name: string,
  b: Body,
  env: KernelEnv,
  { Q, O, LSE, DO }: Operands,
  all: number,
): string {
  const a = attentionOf(b, env);
  const { hd, heads, stride, group, kvAt, operand, out } = a;
  const [q, o, lse, g, dq] = [operand(Q), operand(O), operand(LSE), operand(DO), out(0)];
  const { together, fours, quads, rows } = dqCut(b, all);
  const lanes = all / rows;
  const strips = lanes / KV_BLOCK;
  const foursOfLane = indices(Math.ceil(fours / strips));
  const four = indices(4);
  const atOnce = quads % 2 ? 1 : 2;
  const fourOf = (i: number): string => `min(own / ${KV_BLOCK} + ${i * strips}, ${fours - 1})`;
  const turns = indices(Math.ceil((hd * fours) / lanes));
  const each = (text: (t: number) => Lines): Lines =>
    turns.flatMap(
      (t) => lines`
        {
          let at = own + ${t * lanes};
          let column = at % ${hd};
          let of_heads = at / ${hd};
          if (of_heads < ${fours}) {
            ${text(t)}
          }
        }`,
    );
  const add = (t: number, x: string, j: string): string =>
    `o${t} = fma(shared_p[p0 + of_heads * ${KV_BLOCK} + ${j}], vec4<f32>(${x}), o${t});`;
  const keyAt = (j: string): string => a.cached(`k + (${j}) * ${stride} + column`);
  const numbers = fours * 4 * quads;
  /** The first tile that a row sees, and where its keys end; of several rows, what one of them sees. */
  const seen = (row: string): Lines => [`let keys = ${a.posOf(row)} + 1;`, ...a.seen];
  const bounds =
    rows === 1
      ? [`let begin = ${a.firstTile};`, "let last = keys;"]
      : lines`
      var begin = 0;
      var last = 0;
      ${indices(rows).flatMap(
        (r) => lines`
        {
          ${seen(`min(row0 + ${r}, n - 1)`)}
          begin = ${r ? `min(begin, ${a.firstTile})` : a.firstTile};
          last = max(last, keys);
        }`,
      )}`;
  const ofKeys = (text: Lines): Lines =>
    rows === 1 ? text : [`if (end > ${a.firstKey}) {`, ...indent(text, 2), "}"];
  return wgsl.fn(
    name,
    lines`
      let n = ${wgsl.count(b.domain)};
      let row0 = wg.x * ${rows};
      let h0 = wg.y * ${together};
      if (row0 >= n || h0 >= ${heads}) { return; }
      let kh = h0 / ${group};
      let mine = ${rows === 1 ? "0" : `lane / ${lanes}`};
      let own = lane - mine * ${lanes};
      let q0 = mine * ${2 * numbers};
      let p0 = mine * ${fours * KV_BLOCK};
      let m0 = mine * ${fours * 4};
      let row = min(row0 + mine, n - 1);
      ${seen("row")}
      let table = ${a.tableOf("row")};
      ${bounds}
      for (var at = own; at < ${numbers}; at += ${lanes}) {
        let r = at / ${quads};
        var x = vec4<f32>();
        var y = vec4<f32>();
        if (r < ${together}) {
          let qp = ${q.at} + (h0 + r) * ${hd};
          let gp = ${g.at} + (h0 + r) * ${hd};
          x = ${a.row(q.space, "qp", `(at % ${quads})`)};
          y = ${a.row(g.space, "gp", `(at % ${quads})`)};
        }
        shared_q[q0 + at] = x;
        shared_q[q0 + ${numbers} + at] = y;
      }
      if (own < ${fours * 4}) {
        let h = h0 + min(own, ${together - 1});
        let gp = ${g.at} + h * ${hd};
        let op = ${o.at} + h * ${hd};
        ${a.dots({ dsum: [a.row(g.space, "gp", "i"), a.row(o.space, "op", "i")] })}
        shared_d[m0 + own] = dsum;
        shared_m[m0 + own] = ${lse.space}[${lse.at} + h];
      }
      ${turns.map((t) => `var o${t} = vec4<f32>();`)}
      let j = own % ${KV_BLOCK};
      workgroupBarrier();
      for (var t = begin; t < last; t += ${KV_BLOCK}) {
        let end = min(${KV_BLOCK}, keys - t);
        let k = ${kvAt(0, "t", "kh")};
        ${ofKeys(lines`
        let kp = k + min(j, end - 1) * ${stride};
        let vp = ${kvAt(1, "t", "kh")} + min(j, end - 1) * ${stride};
        ${foursOfLane.flatMap((i) =>
          four.flatMap((r) => ["d", "e"].map((name) => `var ${name}${i}_${r} = vec4<f32>();`)),
        )}
        for (var i = ${wgsl.header("zero")}; i < ${quads}; i += ${atOnce}) {
          ${indices(atOnce).flatMap((u) => [
            `let x${u} = ${a.quad("kp", `(i + ${u})`)};`,
            `let y${u} = ${a.quad("vp", `(i + ${u})`)};`,
          ])}
          ${indices(atOnce).flatMap((u) =>
            foursOfLane.flatMap((i) =>
              four.flatMap((r) => {
                const at = `q0 + ${fourOf(i)} * ${4 * quads} + ${r * quads + u} + i`;
                return [
                  `d${i}_${r} = fma(shared_q[${at}], x${u}, d${i}_${r});`,
                  `e${i}_${r} = fma(shared_q[${at} + ${numbers}], y${u}, e${i}_${r});`,
                ];
              }),
            ),
          )}
        }
        ${foursOfLane.flatMap((i) => [
          `var s${i} = vec4<f32>();`,
          ...four.flatMap(
            (r) => lines`
              {
                let dot = ${sumOf(`d${i}_${r}`)};
                let dp = ${sumOf(`e${i}_${r}`)};
                let of_row = m0 + ${fourOf(i)} * 4 + ${r};
                ${a.bound}
                s${i}[${r}] = exp(${a.score} - shared_m[of_row]) * (dp - shared_d[of_row]) * ${a.slope};
              }`,
          ),
          `shared_p[p0 + ${fourOf(i)} * ${KV_BLOCK} + j] = s${i};`,
        ])}`)}
        workgroupBarrier();
        let first = ${a.firstKey};
        ${each(
          (t) => lines`
            var c = first;
            for (; c + ${KEYS} <= end; c += ${KEYS}) {
              ${indices(KEYS).map((u) => `let x${u} = ${keyAt(`c + ${u}`)};`)}
              ${indices(KEYS).map((u) => add(t, `x${u}`, `c + ${u}`))}
            }
            for (; c < end; c++) { ${add(t, keyAt("c"), "c")} }`,
        )}
        workgroupBarrier();
      }
      if (row0 + mine < n) {
        ${each((t) =>
          four.map((r) => {
            const at = `${dq.offset} + row * ${dq.stride} + (h0 + of_heads * 4 + ${r}) * ${hd} + column`;
            return `if (of_heads * 4 + ${r} < ${together}) { ${dq.space}[${at}] = o${t}[${r}]; }`;
          }),
        )}
      }`,
  );
}
