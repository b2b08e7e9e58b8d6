/**
 * What is read back of a logits row in place of all of it, on WebGPU: its largest logits in order, of equal
 * ones the lower id first, and Σ exp over the row. A workgroup a part of a row, in two passes: the largest
 * four of every lane bound from below what can be among the wanted ones; what reaches that is ranked. Where a
 * row has several parts, a second launch folds what they leave. Numbers are compared as integers, so that no
 * driver's way with zeros and infinities is in it.
 */
import type { Value } from "../../ops/index.ts";
import { CANDIDATE_WORDS, CANDIDATES } from "../../runtime/bundle.ts";
import type { BareBody, Kernel, KernelEnv } from "../kernel.ts";
import { fixed } from "./grid.ts";
import * as assembly from "./text/assemblyscript.ts";
import { type Lines, lines } from "./text/lines.ts";
import * as wgsl from "./text/wgsl.ts";

export interface CandidatesBody extends BareBody<"candidates"> {
  readonly logits: Value;
  readonly vocab: number;
  /** Where they lie in the arena; null on a target that has none. */
  readonly to: number | null;
  /** Where those of parts lie, a row's side by side. */
  readonly parts: number;
}

const LANES = 128;
/** Logits of a row's part, at most: one workgroup has few reads on their way. */
const PART = 8192;
/** Of a row: one has more logits than all lanes of a workgroup keep. */
export const partsOf = (vocab: number): number => Math.ceil(vocab / PART);
/** Of each lane; a row has more logits than all lanes keep. */
const KEPT = 4;
/** Logits that a lane has on their way at once. */
const AT_ONCE = 8;
/** Room for what reaches the bound: as many as are wanted, and those that share a lane with five of them. */
const ROOM = 768;
const each = (n: number, text: (i: number) => Lines): Lines =>
  Array.from({ length: n }, (_, i) => text(i)).flat();

/**
 * A pass over the part: `take` has a logit's bits as `v`, its column as `i`.
 */
const pass = (before: Lines, take: Lines, after: Lines): Lines => {
  const turn = LANES * AT_ONCE;
  return lines`
    for (var c = begin + lane; c - lane + ${turn} <= end; c += ${turn}) {
      ${each(AT_ONCE, (j) => [`let v_${j} = bitcast<u32>(arena[x + c + ${j * LANES}]);`])}
      ${before}
      ${each(
        AT_ONCE,
        (j) => lines`
      {
        let v = v_${j};
        let i = c + ${j * LANES};
        ${take}
      }`,
      )}
      ${after}
    }
    for (var i = end - (end - begin) % ${turn} + lane; i < end; i += ${LANES}) {
      let v = bitcast<u32>(arena[x + i]);
      ${before}
      ${take}
      ${after}
    }`;
};
const word = (env: KernelEnv, array: string): string => `batch[${env.layout.arrays[array]!} + wg.x]`;

const ofPart = [
  `var<workgroup> sums: array<vec2<f32>, ${LANES}>;`,
  "var<workgroup> reach: atomic<u32>;",
  "var<workgroup> odd: atomic<u32>;",
  "var<workgroup> most: i32;",
  "var<workgroup> least: i32;",
];
function part(name: string, { logits, vocab, to, parts }: CandidatesBody, env: KernelEnv): string {
  const { offset, stride } = env.address(logits);
  const n = partsOf(vocab);
  const columns = Math.ceil(vocab / n);
  const home =
    n > 1 ? `${parts} + (wg.x * ${n} + wg.y) * ${CANDIDATE_WORDS}` : `${to!} + wg.x * ${CANDIDATE_WORDS}`;
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
      let out = ${home};
      let begin = wg.y * ${columns};
      let end = min(begin + ${columns}, ${vocab});
      let wanted = ${word(env, "head_wanted")};
      let scale = bitcast<f32>(${word(env, "head_scale")});
      var infinite = 0u;
      // Places of a lane that has fewer come last, in an order.
      ${each(KEPT, (j) => [`var k_${j} = 0u;`, `var i_${j} = ${vocab} + ${j * LANES} + lane;`])}
      ${pass([], insert, [])}
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
        ["var few = vec2<f32>();"],
        lines`
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
}
/**
 * Of what parts left. Their wanted ones are in order: of the best so far and the next part's, each against
 * its opposite, the better ones rise and fall, and are put in order by halves.
 */
function fold(name: string, { logits, vocab, to, parts }: CandidatesBody, env: KernelEnv): string {
  const { offset, stride } = env.address(logits);
  const n = partsOf(vocab);
  return wgsl.fn(
    name,
    lines`
      let x = ${offset} + wg.x * ${stride};
      let first = ${parts} + wg.x * ${n * CANDIDATE_WORDS};
      let out = ${to!} + wg.x * ${CANDIDATE_WORDS};
      let wanted = ${word(env, "head_wanted")};
      let scale = bitcast<f32>(${word(env, "head_scale")});
      // A power of two; places past what is wanted come last.
      var most = 1;
      while (most < wanted) { most = most * 2; }
      for (var e = lane; e < most; e += ${LANES}) { keys[e] = 0u; ids[e] = ${vocab}; }
      workgroupBarrier();
      var top = arena[first + 1];
      var told = true;
      var finite = true;
      for (var p = 0; p < ${n}; p++) {
        let left = first + p * ${CANDIDATE_WORDS};
        top = max(top, arena[left + 1]);
        told = told && arena[left] > 0.0f;
        finite = finite && arena[left + 2] > 0.0f;
        for (var e = lane; e < wanted; e += ${LANES}) {
          let k = order_of(bitcast<u32>(arena[left + 4 + 2 * e]));
          let i = i32(arena[left + 5 + 2 * e]);
          let at = most - 1 - e;
          if (k > keys[at] || (k == keys[at] && i < ids[at])) { keys[at] = k; ids[at] = i; }
        }
        workgroupBarrier();
        for (var half = most / 2; half > 0; half = half / 2) {
          if (lane < most / 2) {
            let a = lane + lane / half * half;
            let b = a + half;
            let k = keys[a];
            let i = ids[a];
            if (keys[b] > k || (keys[b] == k && ids[b] < i)) {
              keys[a] = keys[b]; ids[a] = ids[b];
              keys[b] = k; ids[b] = i;
            }
          }
          workgroupBarrier();
        }
      }
      var sum = vec2<f32>();
      for (var p = 0; p < ${n}; p++) {
        let left = first + p * ${CANDIDATE_WORDS};
        let d = arena[left + 1] - top;
        let by = vec2<f32>(exp(max(d, -100.0f)), exp(max(d * scale, -100.0f)));
        sum = fma(vec2<f32>(arena[left + 2], arena[left + 3]), by, sum);
      }
      if (lane == 0) {
        arena[out] = f32(select(0, wanted, told));
        arena[out + 1] = top;
        arena[out + 2] = select(0.0f, sum.x, finite);
        arena[out + 3] = sum.y;
      }
      for (var e = lane; told && e < wanted; e += ${LANES}) {
        arena[out + 4 + 2 * e] = arena[x + ids[e]];
        arena[out + 5 + 2 * e] = f32(ids[e]);
      }`,
  );
}

export const candidates: Kernel<CandidatesBody> = {
  variants: ({ vocab }) => (partsOf(vocab) > 1 ? ["any", "merge"] : ["any"]),
  grid: ([b], _env, variant) => [
    { count: "candidate_head", mul: 1, div: 1 },
    fixed(variant === "merge" ? 1 : partsOf(b!.vocab)),
  ],
  lanes: () => LANES,
  shared: (variant) => [
    `var<workgroup> keys: array<u32, ${variant === "merge" ? CANDIDATES : ROOM}>;`,
    `var<workgroup> ids: array<i32, ${variant === "merge" ? CANDIDATES : ROOM}>;`,
    ...(variant === "merge" ? [] : ofPart),
  ],
  wgsl: (name, b, env, variant) => (variant === "merge" ? fold : part)(name, b, env),
  assembly: (name) => assembly.fn(name, []),
};
if (CANDIDATES > KEPT * LANES || CANDIDATES > ROOM) throw new Error("no room for all candidates");
