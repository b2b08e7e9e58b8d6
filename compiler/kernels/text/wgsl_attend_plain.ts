/**
 * Attention in WGSL for CPUs behind WebGPU, without workgroup memory or barriers: forward, and its gradients.
 * A lane owns a row and head, or a key and key head, and all dims of it. Those of a quad have mostly one
 * sequence, and read what they need of it alike (quads.ts): fours of keys and values, or of queries, which
 * is most of the time that attention takes there. Every number is made in the order of the other kernels.
 */
import { KV_BLOCK } from "../../../ops/index.ts";
import { SPLIT } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, fold, isSplit, nothing, type Operands, sumOf } from "./wgsl_attention.ts";

/**
 * A score of the tile. From an array's length Mesa's compiler guesses how often a loop over it turns, and
 * unrolls that, unless the index is bounded in sight: behind llvmpipe LLVM took minutes for the result.
 */
const score = `s[j & ${KV_BLOCK - 1}]`;

/**
 * A lane's row and head, those of one key head side by side; how many keys it sees, and of which sequence. A
 * lane without a row leaves, unless its quad has some: then it goes with the last, and may not store.
 */
const ownRow = (b: Body, a: ReturnType<typeof attentionOf>): Lines => lines`
  let place = wg.x * ${wgsl.WG} + lane;
  let all = ${wgsl.count(b.domain)} * ${a.group};
  if (idle(place >= all)) { return; }
  let kh = wg.y;
  let row = min(place, all - 1) / ${a.group};
  let h = kh * ${a.group} + min(place, all - 1) % ${a.group};
  let keys = ${a.posOf("row")} + 1;
  ${a.seen}
  let own = ${a.tableOf("row")};`;
/**
 * Statements for each sequence that a quad has, one after another in the variable `of`. `mine` is true once
 * for every lane: in the turn of what it has in `own`.
 */
const bySequence = (own: string, of: string, text: Lines): Lines => lines`
  let turns = neighbours(${own});
  var left = true;
  for (var turn = 0; turn < 4; turn++) {
    let ${of} = turns[turn];
    let mine = left && ${own} == ${of};
    left = left && !mine;
    ${text}
  }`;
/** Statements for each tile of keys from `t` on, `end` of them, of which a lane sees some in its turn. */
const overTiles = (firstTile: string, text: Lines): Lines => lines`
  let last = most_of(select(0, keys, mine));
  let begin = -most_of(select(-last, -(${firstTile}), mine));
  for (var t = begin; t < last; t += ${KV_BLOCK}) {
    let end = min(${KV_BLOCK}, last - t);
    let c = select(0, min(${KV_BLOCK}, keys - t), mine);
    ${text}
  }`;

export function plain(name: string, b: Body, env: KernelEnv): string {
  const a = attentionOf(b, env);
  const { stride, kvAt, operand, out } = a;
  const [q, o, lse] = [operand(0), out(0), out(1)];
  const folds = isSplit(env);
  const next = lines`
    ${fold}
    ${a.each("whole[i] = fma(whole[i], vec4<f32>(a), o[i] * b);")}`;
  const turn = overTiles(
    a.firstTile,
    lines`
      ${
        folds
          ? lines`
            if (t % ${SPLIT} == 0 && t > start && c > 0) {
              ${next}
              m = -1.0e30f;
              l = 0.0f;
              ${a.each("o[i] = vec4<f32>();")}
            }`
          : []
      }
      let k = ${kvAt(0, "t", "kh")};
      var mt = m;
      for (var j = 0; j < end; j++) {
        let kp = k + j * ${stride};
        var dots = vec4<f32>();
        ${a.unrolled((i) => `dots = fma(q[${i}], ${a.alikeQuad("kp", i)}, dots);`)}
        let dot = ${sumOf("dots")};
        ${a.bound}
        ${score} = select(-1.0e30f, ${a.score}, ${a.seesKey});
        mt = max(mt, ${score});
      }
      let corr = exp(m - mt);
      m = mt;
      var runs = vec4<f32>();
      for (var j = 0; j < end; j++) {
        ${score} = select(0.0f, exp(${score} - m), ${a.seesKey});
        runs[j >> 3u] = runs[j >> 3u] + ${score};
      }
      l = fma(l, corr, ${sumOf("runs")});
      let v = ${kvAt(1, "t", "kh")};
      ${a.each("o[i] = o[i] * corr;")}
      for (var j = 0; j < end; j++) {
        let vp = v + j * ${stride};
        ${a.unrolled((i) => `let v${i} = ${a.alikeQuad("vp", i)};`)}
        if (${a.seesKey}) {
          let p = vec4<f32>(${score});
          ${a.unrolled((i) => `o[${i}] = fma(p, v${i}, o[${i}]);`)}
        }
      }`,
  );
  return wgsl.fn(
    name,
    lines`
      ${ownRow(b, a)}
      ${a.fours("q", "o")}
      ${folds ? [...a.fours("whole"), ...nothing] : []}
      var s = array<f32, ${KV_BLOCK}>();
      let qp = ${q.at} + h * ${a.hd};
      ${a.each(`q[i] = ${a.row(q.space, "qp", "i")};`)}
      var m = -1.0e30f;
      var l = 0.0f;
      let start = ${a.firstTile};
      ${bySequence("own", "table", turn)}
      if (place >= all) { return; }
      ${
        folds
          ? lines`
            if (start / ${SPLIT} < (keys - 1) / ${SPLIT}) {
              ${next}
              m = top;
              l = sum;
              o = whole;
            }`
          : []
      }
      let inv = 1.0f / l;
      for (var d = 0; d < ${a.hd}; d++) {
        ${o.space}[${o.offset} + row * ${o.stride} + h * ${a.hd} + d] = o[d >> 2u][d & 3] * inv;
      }
      ${lse.space}[${lse.offset} + row * ${lse.stride} + h] = m + ${wgsl.pin("log(l)")};`,
  );
}

/** The gradient of queries. */
export function plainDq(name: string, b: Body, env: KernelEnv, { Q, O, LSE, DO }: Operands): string {
  const a = attentionOf(b, env);
  const { stride, kvAt, operand, out } = a;
  const [q, o, lse, g, dq] = [operand(Q), operand(O), operand(LSE), operand(DO), out(0)];
  const turn = overTiles(
    a.firstTile,
    lines`
      let k = ${kvAt(0, "t", "kh")};
      let v = ${kvAt(1, "t", "kh")};
      for (var j = 0; j < end; j++) {
        let kp = k + j * ${stride};
        let vp = v + j * ${stride};
        var dots = vec4<f32>();
        var dps = vec4<f32>();
        ${a.unrolled((i) => [
          `let k${i} = ${a.alikeQuad("kp", i)};`,
          `dots = fma(q[${i}], k${i}, dots);`,
          `dps = fma(g[${i}], ${a.alikeQuad("vp", i)}, dps);`,
        ])}
        let dot = ${sumOf("dots")};
        ${a.bound}
        let dp = ${sumOf("dps")};
        let ds = vec4<f32>(exp(${a.score} - lse) * (dp - dsum) * ${a.slope});
        if (${a.seesKey}) {
          ${a.unrolled((i) => `dq[${i}] = fma(ds, k${i}, dq[${i}]);`)}
        }
      }`,
  );
  return wgsl.fn(
    name,
    lines`
      ${ownRow(b, a)}
      ${a.fours("q", "g", "dq")}
      let qp = ${q.at} + h * ${a.hd};
      let gp = ${g.at} + h * ${a.hd};
      let op = ${o.at} + h * ${a.hd};
      var dots = vec4<f32>();
      ${a.each(
        `q[i] = ${a.row(q.space, "qp", "i")};`,
        `g[i] = ${a.row(g.space, "gp", "i")};`,
        `dots = fma(g[i], ${a.row(o.space, "op", "i")}, dots);`,
      )}
      let dsum = ${sumOf("dots")};
      let lse = ${lse.space}[${lse.at} + h];
      ${bySequence("own", "table", turn)}
      if (place >= all) { return; }
      for (var d = 0; d < ${a.hd}; d++) {
        ${dq.space}[${dq.offset} + row * ${dq.stride} + h * ${a.hd} + d] = dq[d >> 2u][d & 3];
      }`,
  );
}

/** The gradient of keys and values, added to what later windows of the sequence left. */
export function plainDkv(name: string, b: Body, env: KernelEnv, { Q, O, LSE, DO }: Operands): string {
  const a = attentionOf(b, env);
  const { hd, group, kvAt, operand, out, word } = a;
  const [q, o, lse, g, d] = [operand(Q), operand(O), operand(LSE), operand(DO), out(0)];
  const value = a.kvHeads * hd;
  const [k, v] = [`${d.space}[out + d]`, `${d.space}[out + ${value} + d]`];
  const overDims = (...text: string[]): string => `for (var d = 0; d < ${hd}; d++) { ${text.join(" ")} }`;
  // The sequence this key belongs to: its segments follow one another, and only the first counts keys. Sums
  // of the segments before lie where they will be stored.
  const turn = lines`
    var s = first;
    var more = most_of(select(0, 1, mine)) == 1;
    while (more) {
      let r0 = ${word("seg_row", "s")};
      let pos0 = ${word("pos", "r0")};
      let n = ${a.lastRow(`r0 + ${word("seg_rows", "s")}`, "r0", "pos0")};
      let start = r0 + max(0, key - pos0);
      let end = most_of(select(0, n, mine));
      ${a.each("dk[i] = vec4<f32>();", "dv[i] = vec4<f32>();")}
      for (var h = kh * ${group}; h < (kh + 1) * ${group}; h++) {
        for (var row = -most_of(select(-end, -start, mine)); row < end; row++) {
          let qp = ${q.at} + h * ${hd};
          let gp = ${g.at} + h * ${hd};
          let op = ${o.at} + h * ${hd};
          var dots = vec4<f32>();
          var dps = vec4<f32>();
          var dsums = vec4<f32>();
          ${a.unrolled((i) => [
            `let q${i} = ${a.alikeRow(q.space, "qp", i)};`,
            `let g${i} = ${a.alikeRow(g.space, "gp", i)};`,
            `dots = fma(q${i}, k[${i}], dots);`,
            `dps = fma(g${i}, v[${i}], dps);`,
            `dsums = fma(g${i}, ${a.alikeRow(o.space, "op", i)}, dsums);`,
          ])}
          let dot = ${sumOf("dots")};
          ${a.bound}
          let p = exp(${a.score} - ${lse.space}[${lse.at} + h]);
          let dp = ${sumOf("dps")};
          let dsum = ${sumOf("dsums")};
          let ds = p * (dp - dsum) * ${a.slope};
          if (mine && row >= start && row < n) {
            ${a.unrolled((i) => [
              `dk[${i}] = fma(vec4<f32>(ds), q${i}, dk[${i}]);`,
              `dv[${i}] = fma(vec4<f32>(p), g${i}, dv[${i}]);`,
            ])}
          }
        }
      }
      if (mine && start < n && place < all) {
        ${overDims(`${k} = ${k} + dk[d >> 2u][d & 3];`, `${v} = ${v} + dv[d >> 2u][d & 3];`)}
      }
      s = s + 1;
      more = false;
      if (s < ${wgsl.header("n_segments")}) { more = ${word("seg_keys", "s")} == 0; }
    }`;
  return wgsl.fn(
    name,
    lines`
      let place = wg.x * ${wgsl.WG} + lane;
      let all = ${wgsl.header("n_keys")};
      if (idle(place >= all)) { return; }
      let kh = wg.y;
      var key = min(place, all - 1);
      var own = 0;
      while (key >= ${word("seg_keys", "own")}) { key = key - ${word("seg_keys", "own")}; own = own + 1; }
      let table = ${a.tableOf(word("seg_row", "own"))};
      let kp = ${kvAt(0, "key", "kh")};
      let vp = ${kvAt(1, "key", "kh")};
      let out = ${d.offset} + (${word("seg_base", "own")} + key) * ${d.stride} + kh * ${hd};
      ${a.fours("k", "v", "dk", "dv")}
      ${a.each(`k[i] = ${a.quad("kp", "i")};`, `v[i] = ${a.quad("vp", "i")};`)}
      if (${word("seg_fresh", "own")} != 0 && place < all) { ${overDims(`${k} = 0.0f;`, `${v} = 0.0f;`)} }
      ${bySequence("own", "first", turn)}`,
  );
}
