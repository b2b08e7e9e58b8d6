/**
 * Attention forward in WGSL. Its order is one for every kernel: keys in splits of 256 from position 0, in a
 * split tiles of 32, folded in order; then the splits, folded in order. So a row has the same bits in each:
 *
 * - tile: some rows of a sequence beside their neighbours, with all query heads that share keys. All splits.
 * - split: one row with these heads, and one split; `merge` folds what the splits of a row left.
 * - plain: a lane for a row and head, without workgroup memory or barriers: for CPUs behind WebGPU.
 *
 * What is masked counts nothing: p = 0 of it, its score -1e30, and its value is one that was written.
 */
import { KV_BLOCK } from "../../../ops/index.ts";
import { SPLIT } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, fold, isSplit, nothing, sumOf } from "./wgsl_attention.ts";

/** Rows of queries, each of one head, that a tile has at most. */
export const PACKED = 16;
/** Query heads of one key head that share a workgroup: a divisor of those that there are. */
export function headsTogether(heads: number, kvHeads: number): number {
  const group = heads / kvHeads;
  for (let n = Math.min(group, PACKED); ; n--) if (group % n === 0) return n;
}
/** Rows of a sequence that a tile takes. */
export const tileRowsOf = (heads: number, kvHeads: number): number =>
  Math.floor(PACKED / headsTogether(heads, kvHeads));
/** Words that one head of a split leaves: maximum, sum, and the unnormalised output. */
export const partialWords = (headDim: number): number => headDim + 2;

/**
 * What a lane has on its way at once: fours of a key, and keys whose values it reads. A split has few
 * neighbours that could compute while it waits. Loops that a compiler may not unroll on its own, which would
 * hold all of a tile in registers: their ends, or their beginnings, are not known before they run.
 */
const AT_ONCE = { tile: { fours: 4, keys: 4 }, split: { fours: 4, keys: 16 } } as const;
const quadsOf = (headDim: number): number => Math.ceil(headDim / 4);
/** How a workgroup of either kind is cut. */
export interface Cut {
  /** Packed rows, in fours. */
  readonly fours: number;
  readonly lanes: number;
  /** Columns of the output that a lane sums at a time. */
  readonly wide: 1 | 4;
}
export function cutOf(b: Body, kind: "tile" | "split"): Cut {
  const kv = b.node!.ins[1]!.type as { heads: number; headDim: number };
  const heads = Number(b.node!.attrs.heads);
  const together = headsTogether(heads, kv.heads);
  if (kind === "split") return { fours: Math.ceil(together / 4), lanes: kv.headDim > 64 ? 128 : 64, wide: 1 };
  const fours = Math.ceil((together * tileRowsOf(heads, kv.heads)) / 4);
  return { fours, lanes: fours * quadsOf(kv.headDim) > 64 ? 128 : 64, wide: 4 };
}
/** What a workgroup shares: queries, scores or probabilities of four rows a key, and a number of each row. */
export const attendShared = (b: Body, { fours }: Cut): string[] => {
  const { headDim } = b.node!.ins[1]!.type as { headDim: number };
  return [
    `var<workgroup> shared_q: array<vec4<f32>, ${fours * 4 * quadsOf(headDim)}>;`,
    `var<workgroup> shared_p: array<vec4<f32>, ${fours * KV_BLOCK}>;`,
    ...["shared_m", "shared_c"].map((name) => `var<workgroup> ${name}: array<f32, ${fours * 4}>;`),
  ];
};
/**
 * A workgroup for a tile's rows with the heads that share keys, or for a split of one row. A packed row is
 * `row - row0` times these heads, then the head; lanes are over keys and four packed rows for scores, a lane
 * a packed row for what counts rows, and over columns and four packed rows for outputs.
 */
export function packed(name: string, b: Body, env: KernelEnv, kind: "tile" | "split"): string {
  const a = attentionOf(b, env);
  const { hd, stride, quads, heads, kvHeads, group, kvAt, operand, out } = a;
  const [q, o, lse] = [operand(0), out(0), out(1)];
  const { fours, lanes, wide } = cutOf(b, kind);
  const together = headsTogether(heads, kvHeads);
  const tile = kind === "tile";
  const count = (n: number): number[] => Array.from({ length: n }, (_, i) => i);
  // Four packed rows at a time, for scores: those of a lane.
  const strips = lanes / KV_BLOCK;
  const mine = count(Math.ceil(fours / strips));
  const { fours: most, keys: atOnce } = AT_ONCE[kind];
  const unroll = mine.length > 1 ? 1 : ([most, 4, 1].find((n) => quads % n === 0) ?? 1);
  const fourOf = (i: number): string => `lane / ${KV_BLOCK} + ${i * strips}`;
  const four = count(4);
  // Columns, for outputs.
  const columns = Math.ceil(hd / wide);
  const turns = count(Math.ceil((columns * fours) / lanes));
  const sums = turns.flatMap((t) => count(wide).map((c) => ({ t, c })));
  const folds = tile && isSplit(env);
  const each = (text: (t: number) => Lines): Lines =>
    turns.flatMap(
      (t) => lines`
        {
          let at = lane + ${t * lanes};
          let column = at % ${columns};
          let rows = at / ${columns};
          if (rows < ${fours}) {
            ${text(t)}
          }
        }`,
    );
  /** A number of each of four packed rows. */
  const ofRows = (array: string): string =>
    `vec4<f32>(${four.map((r) => `${array}[rows * 4 + ${r}]`).join(", ")})`;
  const head = (r: string): string => `(h0 + ${r} % ${together})`;
  const rowOf = (r: string): string => (tile ? `(row0 + ${r} / ${together})` : "row0");
  const there = (r: string): string => `${r} < ${tile ? `n * ${together}` : together}`;
  const oAt = (r: string): string => `${o.offset} + ${rowOf(r)} * ${o.stride} + ${head(r)} * ${hd}`;
  const lseAt = (r: string): string =>
    `${lse.space}[${lse.offset} + ${rowOf(r)} * ${lse.stride} + ${head(r)}]`;
  const partial = (r: string): string =>
    `${env.partials} + (item * ${heads} + ${head(r)}) * ${partialWords(hd)}`;
  /** Each number of the output, times `scale` of its row, to where `to` says that a packed row begins. */
  const store = (to: (r: string) => string, scale: string): Lines =>
    each((t) => [
      ...(scale ? [`let by = ${ofRows(scale)};`] : []),
      ...four.flatMap(
        (r) => lines`
          {
            let r = rows * 4 + ${r};
            if (${there("r")}) {
              ${count(wide).map((c) => {
                const d = wide === 1 ? "column" : `column * ${wide} + ${c}`;
                const value = scale ? `o${t}_${c}[${r}] * by[${r}]` : `o${t}_${c}[${r}]`;
                const put = `arena[${to("r")} + ${d}] = ${value};`;
                return hd % wide ? `if (${d} < ${hd}) { ${put} }` : put;
              })}
            }
          }`,
      ),
    ]);
  if (o.space !== "arena" || lse.space !== "arena") throw new Error("attention leaves its rows in the arena");
  const finish = lines`
    workgroupBarrier();
    if (lane < ${fours * 4} && ${there("lane")}) {
      shared_c[lane] = 1.0f / l;
      ${lseAt("lane")} = m + ${wgsl.pin("log(l)")};
    }
    workgroupBarrier();
    ${store(oAt, "shared_c")}`;
  const leave = lines`
    if (lane < ${together}) {
      arena[${partial("lane")}] = m;
      arena[${partial("lane")} + 1] = l;
    }
    ${store((r) => `${partial(r)} + 2`, "")}`;
  const next = lines`
    if (lane < ${fours * 4}) {
      ${fold}
      shared_c[lane] = a;
      shared_m[lane] = b;
      m = -1.0e30f;
      l = 0.0f;
    }
    workgroupBarrier();
    ${each((t) => [
      `let a = ${ofRows("shared_c")};`,
      `let b = ${ofRows("shared_m")};`,
      ...count(wide).flatMap((c) => [
        `whole${t}_${c} = fma(whole${t}_${c}, a, o${t}_${c} * b);`,
        `o${t}_${c} = vec4<f32>();`,
      ]),
    ])}`;
  const scores = mine.flatMap((i) => [
    ...four.flatMap(
      (r) => lines`
        {
          let dot = ${sumOf(`d${i}_${r}`)};
          ${a.bound}
          s${i}[${r}] = ${a.score};
        }`,
    ),
    `s${i} = select(vec4<f32>(-1.0e30f), s${i}, ${a.sees("t + j", `keys${i}`)});`,
  ]);
  /** Fours of the lane that there are. */
  const within = (i: number, text: string): string =>
    fours % strips && i === mine.length - 1 ? `if (${fourOf(i)} < ${fours}) { ${text} }` : text;
  return wgsl.fn(
    name,
    lines`
      ${
        tile
          ? lines`
            let row0 = ${a.word("tile_row", "wg.x")};
            let n = ${a.word("tile_rows", "wg.x")};`
          : lines`
            let item = wg.x;
            let row0 = ${a.word("split_row", "item")};
            let split = ${a.word("split_part", "item")};`
      }
      let h0 = wg.y * ${together};
      let kh = h0 / ${group};
      let pos = ${a.posOf("row0")};
      let keys = pos + 1;
      ${a.seen}
      let table = ${a.tableOf("row0")};
      ${
        tile
          ? lines`
            let start = ${a.firstTile};
            let end = pos + n;`
          : lines`
            let first = ${a.firstTile};
            let start = max(first, split * ${SPLIT});
            let end = min(keys, split * ${SPLIT} + ${SPLIT});
            if (start >= end) { return; }`
      }
      for (var at = lane; at < ${fours * 4 * quads}; at += ${lanes}) {
        let r = at / ${quads};
        var v = vec4<f32>();
        if (${there("r")}) {
          let row = ${rowOf("r")};
          let qp = ${q.at} + ${head("r")} * ${hd};
          v = ${a.row(q.space, "qp", `(at % ${quads})`)};
        }
        shared_q[at] = v;
      }
      let j = lane % ${KV_BLOCK};
      ${mine.flatMap(
        (i) => lines`
          let r${i} = vec4<i32>(4 * (${fourOf(i)})) + vec4<i32>(0, 1, 2, 3);
          let keys${i} = select(
            vec4<i32>(), vec4<i32>(pos + 1)${tile ? ` + r${i} / ${together}` : ""}, ${there(`r${i}`).replace(
              /< (.*)/,
              "< vec4<i32>($1)",
            )});`,
      )}
      ${sums.map(({ t, c }) => `var o${t}_${c} = vec4<f32>();`)}
      ${folds ? [...sums.map(({ t, c }) => `var whole${t}_${c} = vec4<f32>();`), ...nothing] : []}
      var m = -1.0e30f;
      var l = 0.0f;
      workgroupBarrier();
      for (var t = start; t < end; t += ${KV_BLOCK}) {
        ${
          folds
            ? lines`
              if (t % ${SPLIT} == 0 && t > start) {
                ${next}
              }`
            : []
        }
        let last = min(${KV_BLOCK}, end - t) - 1;
        let k = ${kvAt(0, "t", "kh")} + min(j, last) * ${stride};
        ${mine.flatMap((i) => four.map((r) => `var d${i}_${r} = vec4<f32>();`))}
        for (var i = ${wgsl.header("zero")}; i < ${quads}; i += ${unroll}) {
          ${count(unroll).map((u) => `let key${u} = ${a.quad("k", `(i + ${u})`)};`)}
          ${count(unroll).flatMap((u) =>
            mine.flatMap((i) =>
              four.map((r) => {
                const from = `min(${fourOf(i)}, ${fours - 1}) * ${4 * quads} + ${r * quads + u} + i`;
                return `d${i}_${r} = fma(shared_q[${from}], key${u}, d${i}_${r});`;
              }),
            ),
          )}
        }
        ${mine.map((i) => `var s${i} = vec4<f32>();`)}
        ${scores}
        ${mine.map((i) => within(i, `shared_p[(${fourOf(i)}) * ${KV_BLOCK} + j] = s${i};`))}
        workgroupBarrier();
        if (lane < ${fours * 4}) {
          let p = (lane >> 2u) * ${KV_BLOCK};
          var mt = m;
          for (var i = 0; i < ${KV_BLOCK}; i++) { mt = max(mt, shared_p[p + i][lane & 3]); }
          shared_c[lane] = exp(m - mt);
          shared_m[lane] = mt;
          m = mt;
        }
        workgroupBarrier();
        ${mine.flatMap(
          (i) => lines`
            {
              let rows = min(${fourOf(i)}, ${fours - 1});
              let p = select(
                vec4<f32>(), exp(s${i} - ${ofRows("shared_m")}), ${a.sees("t + j", `keys${i}`)});
              ${within(i, `shared_p[rows * ${KV_BLOCK} + j] = p;`)}
            }`,
        )}
        workgroupBarrier();
        if (lane < ${fours * 4}) {
          let p = (lane >> 2u) * ${KV_BLOCK};
          var runs = vec4<f32>();
          for (var i = 0; i < 8; i++) {
            runs = runs + vec4<f32>(
              ${count(4)
                .map((run) => `shared_p[p + i + ${run * 8}][lane & 3]`)
                .join(", ")});
          }
          l = fma(l, shared_c[lane], ${sumOf("runs")});
        }
        let v = ${kvAt(1, "t", "kh")};
        ${each(
          (t) => lines`
            let corr = ${ofRows("shared_c")};
            ${count(wide).map((c) => `o${t}_${c} = o${t}_${c} * corr;`)}
            for (var i = 0; i <= last; i += ${atOnce}) {
              ${count(atOnce).map((u) => {
                const vp = `v + min(i + ${u}, last) * ${stride}`;
                return `let x${u} = ${wide === 1 ? a.cached(`${vp} + column`) : a.quad(vp, "column")};`;
              })}
              ${count(atOnce).flatMap((u) => [
                `let p${u} = shared_p[rows * ${KV_BLOCK} + i + ${u}];`,
                ...count(wide).map((c) => {
                  const x = wide === 1 ? `x${u}` : `x${u}[${c}]`;
                  return `o${t}_${c} = fma(p${u}, vec4<f32>(${x}), o${t}_${c});`;
                }),
              ])}
            }`,
        )}
        workgroupBarrier();
      }
      ${
        folds
          ? lines`
            if (start / ${SPLIT} < (end - 1) / ${SPLIT}) {
              ${next}
              m = top;
              l = sum;
              ${sums.map(({ t, c }) => `o${t}_${c} = whole${t}_${c};`)}
            }`
          : []
      }
      ${
        tile || !isSplit(env)
          ? finish
          : lines`
            if (first / ${SPLIT} == pos / ${SPLIT}) {
              ${finish}
            } else {
              ${leave}
            }`
      }`,
  );
}

/** What the splits of a row and head left, folded: lanes over columns. */
export function merge(name: string, b: Body, env: KernelEnv): string {
  const a = attentionOf(b, env);
  const { hd, heads, out } = a;
  const [o, lse] = [out(0), out(1)];
  return wgsl.fn(
    name,
    lines`
      let row = ${a.word("merge_row", "wg.x")};
      let item = ${a.word("merge_item", "wg.x")};
      let h = wg.y;
      let pos = ${a.posOf("row")};
      let keys = pos + 1;
      ${a.seen}
      let first = (${a.firstTile}) / ${SPLIT};
      let last = pos / ${SPLIT};
      if (first == last) { return; }
      for (var d = lane; d < ${hd}; d += ${wgsl.WG}) {
        ${nothing}
        var whole = 0.0f;
        for (var s = first; s <= last; s++) {
          let at = ${env.partials} + ((item + s) * ${heads} + h) * ${partialWords(hd)};
          let m = arena[at];
          let l = arena[at + 1];
          ${fold}
          whole = fma(whole, a, arena[at + 2 + d] * b);
        }
        ${o.space}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = whole * (1.0f / sum);
        if (d == 0) { ${lse.space}[${lse.offset} + row * ${lse.stride} + h] = top + ${wgsl.pin("log(sum)")}; }
      }`,
  );
}
