/**
 * What is read back of a logits row in place of all of it, on WebGPU: its largest logits in order, of equal
 * ones the lower id first, and Σ exp over the row. A workgroup a row, in two passes: the largest four of
 * every lane bound from below what can be among the wanted ones; what reaches that is ranked. Numbers are
 * compared as integers, so that no driver's way with zeros and infinities is in it.
 */
import type { Value } from "../../ops/index.ts";
import { CANDIDATE_WORDS, CANDIDATES } from "../../runtime/bundle.ts";
import type { BareBody, Kernel } from "../kernel.ts";
import { one } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export interface CandidatesBody extends BareBody<"candidates"> {
  readonly logits: Value;
  readonly vocab: number;
  /** Where they lie in the arena; null on a target that has none. */
  readonly to: number | null;
}

const LANES = 128;
/** Of each lane; a row has more logits than all lanes keep. */
const KEPT = 4;
/** Logits that a lane has on their way at once. */
const AT_ONCE = 8;
/** Room for what reaches the bound: as many as are wanted, and those that share a lane with five of them. */
const ROOM = 768;
const each = (n: number, text: (i: number) => Lines): Lines =>
  Array.from({ length: n }, (_, i) => text(i)).flat();

/**
 * A pass over the row: `take` has a logit's bits as `v`, its column as `i` and its number among eight as `j`.
 */
const pass = (vocab: number, before: Lines, take: (j: number) => Lines, after: Lines): Lines => {
  const full = vocab - (vocab % (LANES * AT_ONCE));
  const at = (j: number): string => `x + c + ${j * LANES}`;
  return lines`
    for (var c = lane; c < ${full}; c += ${LANES * AT_ONCE}) {
      ${each(AT_ONCE, (j) => [`let v_${j} = bitcast<u32>(arena[${at(j)}]);`])}
      ${before}
      ${each(
        AT_ONCE,
        (j) => lines`
      {
        let v = v_${j};
        let i = c + ${j * LANES};
        ${take(j)}
      }`,
      )}
      ${after}
    }
    for (var i = ${full} + lane; i < ${vocab}; i += ${LANES}) {
      let v = bitcast<u32>(arena[x + i]);
      ${before}
      ${take(0)}
      ${after}
    }`;
};

export const candidates: Kernel<CandidatesBody> = {
  grid: () => [{ count: "candidate_head", mul: 1, div: 1 }, one],
  lanes: () => LANES,
  shared: () => [
    `var<workgroup> keys: array<u32, ${ROOM}>;`,
    `var<workgroup> ids: array<i32, ${ROOM}>;`,
    `var<workgroup> sums: array<vec2<f32>, ${LANES}>;`,
    "var<workgroup> reach: atomic<u32>;",
    "var<workgroup> odd: atomic<u32>;",
    "var<workgroup> most: i32;",
    "var<workgroup> least: i32;",
  ],
  wgsl: (name, { logits, vocab, to }, env) => {
    const { offset, stride } = env.address(logits);
    const word = (array: string): string => `batch[${env.layout.arrays[array]!} + wg.x]`;
    const insert = lines`
      let k = order_of(v);
      infinite |= u32((v & 0x7f800000u) == 0x7f800000u);
      if (k > k_3) {
        if (k > k_1) {
          k_3 = k_2; i_3 = i_2;
          k_2 = k_1; i_2 = i_1;
          if (k > k_0) { k_1 = k_0; i_1 = i_0; k_0 = k; i_0 = i; } else { k_1 = k; i_1 = i; }
        } else if (k > k_2) { k_3 = k_2; i_3 = i_2; k_2 = k; i_2 = i; } else { k_3 = k; i_3 = i; }
      }`;
    return wgsl.fn(
      name,
      lines`
          let x = ${offset} + wg.x * ${stride};
          let out = ${to!} + wg.x * ${CANDIDATE_WORDS};
          let wanted = ${word("head_wanted")};
          let scale = bitcast<f32>(${word("head_scale")});
          var infinite = 0u;
          // Places of a lane that has fewer come last, in an order.
          ${each(KEPT, (j) => [`var k_${j} = 0u;`, `var i_${j} = ${vocab} + ${j * LANES} + lane;`])}
          ${pass(vocab, [], () => insert, [])}
          ${each(KEPT, (j) => [`keys[lane + ${j * LANES}] = k_${j};`, `ids[lane + ${j * LANES}] = i_${j};`])}
          if (infinite > 0u) { atomicStore(&odd, 1u); }
          workgroupBarrier();
          ${each(KEPT, (j) => [`var before_${j} = 0;`])}
          for (var s = 0; s < ${KEPT * LANES}; s++) {
            let k = keys[s];
            let i = ids[s];
            ${each(KEPT, (j) => [`before_${j} += i32(k > k_${j} || (k == k_${j} && i < i_${j}));`])}
          }
          ${each(KEPT, (j) => [`if (before_${j} == wanted - 1) { least = lane + ${j * LANES}; }`])}
          if (before_0 == 0) { most = i_0; }
          workgroupBarrier();
          let top = arena[x + most];
          let least_key = keys[least];
          let least_id = ids[least];
          workgroupBarrier();
          var sum = vec2<f32>();
          ${pass(
            vocab,
            ["var few = vec2<f32>();"],
            () => lines`
              let d = bitcast<f32>(v) - top;
              few = few + vec2<f32>(exp(max(d, -100.0f)), exp(max(d * scale, -100.0f)));
              let k = order_of(v);
              if (k > least_key || (k == least_key && i <= least_id)) {
                let at = atomicAdd(&reach, 1u);
                if (at < ${ROOM}u) { keys[at] = k; ids[at] = i; }
              }`,
            ["sum = sum + few;"],
          )}
          sums[lane] = sum;
          workgroupBarrier();
          for (var half = ${LANES / 2}; half > 0; half = half / 2) {
            if (lane < half) { sums[lane] = sums[lane] + sums[lane + half]; }
            workgroupBarrier();
          }
          let n = i32(atomicLoad(&reach));
          let finite = atomicLoad(&odd) == 0u;
          if (lane == 0) {
            arena[out] = f32(select(0, wanted, finite && n <= ${ROOM}));
            arena[out + 1] = top;
            arena[out + 2] = select(0.0f, sums[0].x, finite);
            arena[out + 3] = sums[0].y;
          }
          for (var e = lane; e < min(n, ${ROOM}); e += ${LANES}) {
            let k = keys[e];
            let i = ids[e];
            var before = 0;
            for (var s = 0; s < min(n, ${ROOM}); s++) {
              before += i32(keys[s] > k || (keys[s] == k && ids[s] < i));
            }
            if (before < wanted) {
              arena[out + 4 + 2 * before] = arena[x + i];
              arena[out + 5 + 2 * before] = f32(i);
            }
          }`,
    );
  },
  assembly: (name) => assembly.fn(name, []),
};
if (CANDIDATES > KEPT * LANES || CANDIDATES > ROOM) throw new Error("no room for all candidates");
