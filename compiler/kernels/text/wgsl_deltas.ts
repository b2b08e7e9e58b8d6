/**
 * Low-rank deltas of a tile of rows, for CPUs behind WebGPU: a factor's row is read once for all rows in turn
 * that are of one slot, and not for each element as an epilogue would. Each delta is the same ascending chain
 * either way.
 */
import type { Type } from "../../../ops/index.ts";
import { QUAD, QUAD_WORDS } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import { type Body, widthOf } from "../body.ts";
import { type Expand, shiftOf } from "../deltas.ts";
import { inTurn } from "./alike.ts";
import { type Lines, lines } from "./lines.ts";
import { inTable, quadsAt } from "./wgsl.ts";
import { indices } from "./wgsl_products.ts";

/**
 * Statements that fill an element of `out` for each row of a tile and delta, from `first` of it on: of the
 * rows from r0 on, of n in all, four columns of a lane, from `col` on.
 */
export function deltasOfTile(
  b: Body,
  env: KernelEnv,
  deltas: readonly Expand[],
  first: (delta: number) => string,
): Lines {
  const tile = env.plainRows;
  const rows = indices(tile);
  /** Fours of rows, and the last that each has: those of lanes that exchange what they read. */
  const fours = rows.filter((k) => k % 4 === 0).map((k) => ({ k, last: Math.min(3, tile - 1 - k) }));
  const width = widthOf(b);
  const slotOf = (row: string): string => `batch[${env.layout.arrays.slot} + ${row}]`;
  // Columns are those of the sums, which may be those of halves of parts.
  const col = b.half ? `col + col / ${b.half} * ${b.half}` : "col";
  // Of the last four columns those that are there.
  const at = (c: number): string => (width % 4 ? `min(${c}, ${width - 1} - col)` : String(c));
  const each = deltas.map((e, i) => {
    const { branch, cols } = e.factor.type as Type & { kind: "factor" };
    const u = env.address(e.u);
    const sums: Lines = lines`
      ${rows.map((k) => `var t${k} = vec4<f32>();`)}
      let rank = ${inTable("slot", branch, "rank", env)};
      var quads = ${quadsAt("slot", branch, env)};
      for (var r = 0; r < rank; r += ${QUAD}) {
        let quad = tables[quads] + ${env.address(e.factor).offset + shiftOf(e)} + ${col};
        quads += ${QUAD_WORDS};
        for (var j = 0; j < min(${QUAD}, rank - r); j++) {
          let w = quad + j * ${cols};
          let v = vec4<f32>(${[0, 1, 2, 3].map((c) => `adapters[w + ${at(c)}]`).join(", ")});
          ${fours.map(({ k, last }) => {
            const there = `min(${last}, n - ${k + 1} - r0)`;
            return `let x${k} = four_${u.space}(u${k} + r + j, step, ${k ? `max(0, ${there})` : there});`;
          })}
          ${rows.map((k) => `t${k} = fma(vec4<f32>(x${k & ~3}[${k & 3}]), v, t${k});`)}
        }
      }`;
    const places: Lines = lines`
      let step = ${u.stride};
      ${fours.map(({ k }) => `let u${k} = ${u.offset} + ${k ? `min(r0 + ${k}, n - 1)` : "r0"} * step;`)}`;
    const put = (of: string): Lines => rows.map((k) => `out[${first(i)} + ${k}] = ${of}${k};`);
    // All rows of a unit are a job's.
    if (b.domain === "W")
      return lines`
        ${places}
        let slot = ${slotOf("r0")};
        ${sums}
        ${put("t")}`;
    // Rows of other slots are summed too, which costs next to nothing: what begins later takes their place.
    return lines`
      ${rows.map((k) => `var o${k} = vec4<f32>();`)}
      ${places}
      for (var i = 0; i < min(${tile}, n - r0); i++) {
        let slot = ${slotOf("r0 + i")};
        if (i == 0 || ${slotOf("r0 + max(i, 1) - 1")} != slot) {
          ${sums}
          ${rows.map((k) => `o${k} = select(t${k}, o${k}, ${k} < i);`)}
        }
      }
      ${put("o")}`;
  });
  return each.length ? inTurn(each, "d") : [];
}
