/** Attention forward in WGSL where nothing is shared between lanes: in the order of wgsl_attend.ts. */
import { KV_BLOCK } from "../../../ops/index.ts";
import { SPLIT } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { type Lines, lines } from "./lines.ts";
import * as wgsl from "./wgsl.ts";
import { attentionOf, fold, isSplit, nothing, sumOf } from "./wgsl_attention.ts";

/**
 * A score of the tile. From an array's length Mesa's compiler guesses how often a loop over it turns, and
 * unrolls that, unless the index is bounded in sight: behind llvmpipe LLVM took minutes for the result.
 */
const score = `s[j & ${KV_BLOCK - 1}]`;

/** A lane for a row and head. */
export function plain(name: string, b: Body, env: KernelEnv): string {
  const a = attentionOf(b, env);
  const { hd, stride, quads, group, kvAt, operand, out } = a;
  const [q, o, lse] = [operand(0), out(0), out(1)];
  const each = (text: string): string => `for (var i = 0; i < ${quads}; i++) { ${text} }`;
  const registers = (of: string): string => `var ${of} = array<vec4<f32>, ${quads}>();`;
  const store = (value: string): Lines => lines`
    for (var d = 0; d < ${hd}; d++) {
      ${o.space}[${o.offset} + row * ${o.stride} + h * ${hd} + d] = ${value}[d >> 2u][d & 3] * inv;
    }`;
  const folds = isSplit(env);
  const next = lines`
    {
      ${fold}
      ${each("whole[i] = fma(whole[i], vec4<f32>(a), o[i] * b);")}
    }`;
  return wgsl.fn(
    name,
    lines`
      let row = wg.x * ${wgsl.WG} + lane;
      if (row >= ${wgsl.header("n_rows")}) { return; }
      let h = wg.y;
      let kh = h / ${group};
      let keys = ${a.posOf("row")} + 1;
      ${a.seen}
      let table = ${a.tableOf("row")};
      ${registers("q")}
      ${registers("o")}
      ${folds ? [registers("whole"), ...nothing] : []}
      var s = array<f32, ${KV_BLOCK}>();
      let qp = ${q.at} + h * ${hd};
      ${each(`q[i] = ${a.row(q.space, "qp", "i")};`)}
      var m = -1.0e30f;
      var l = 0.0f;
      let start = ${a.firstTile};
      for (var t = start; t < keys; t += ${KV_BLOCK}) {
        ${
          folds
            ? lines`
              if (t % ${SPLIT} == 0 && t > start) {
                ${next}
                m = -1.0e30f;
                l = 0.0f;
                ${each("o[i] = vec4<f32>();")}
              }`
            : []
        }
        let c = min(${KV_BLOCK}, keys - t);
        let k = ${kvAt(0, "t", "kh")};
        var mt = m;
        for (var j = ${a.firstKey}; j < c; j++) {
          var dots = vec4<f32>();
          ${each(`dots = fma(q[i], ${a.quad(`k + j * ${stride}`, "i")}, dots);`)}
          let dot = ${sumOf("dots")};
          ${a.bound}
          ${score} = ${a.score};
          mt = max(mt, ${score});
        }
        let corr = exp(m - mt);
        m = mt;
        var runs = vec4<f32>();
        for (var j = ${a.firstKey}; j < c; j++) {
          ${score} = exp(${score} - m);
          runs[j >> 3u] = runs[j >> 3u] + ${score};
        }
        l = fma(l, corr, ${sumOf("runs")});
        let v = ${kvAt(1, "t", "kh")};
        ${each("o[i] = o[i] * corr;")}
        for (var j = ${a.firstKey}; j < c; j++) {
          let p = vec4<f32>(${score});
          ${each(`o[i] = fma(p, ${a.quad(`v + j * ${stride}`, "i")}, o[i]);`)}
        }
      }
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
      ${store("o")}
      ${lse.space}[${lse.offset} + row * ${lse.stride} + h] = m + ${wgsl.pin("log(l)")};`,
  );
}
