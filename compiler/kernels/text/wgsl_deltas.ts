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

/** Rows of a tile: two quads. */
export const DELTA_ROWS = 8;

/**
 * Statements that fill DELTA_ROWS elements of `out` a delta, from `first` on: of the rows of a tile from r0
 * on, of n in all, the four columns of a lane.
 */
export function deltasOfTile(b: Body, env: KernelEnv, deltas: readonly Expand[], first: number): Lines {
  const rows = indices(DELTA_ROWS);
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
          let x0 = four_${u.space}(u0 + r + j, step, min(3, n - 1 - r0));
          let x4 = four_${u.space}(u4 + r + j, step, max(0, min(3, n - 5 - r0)));
          ${rows.map((k) => `t${k} = fma(vec4<f32>(x${k & 4}[${k & 3}]), v, t${k});`)}
        }
      }`;
    const places: Lines = lines`
      let step = ${u.stride};
      let u0 = ${u.offset} + r0 * step;
      let u4 = ${u.offset} + min(r0 + 4, n - 1) * step;`;
    const put = (of: string): Lines => rows.map((k) => `out[${first + i * DELTA_ROWS} + ${k}] = ${of}${k};`);
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
      for (var i = 0; i < min(${DELTA_ROWS}, n - r0); i++) {
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
