/** Pieces of WGSL text that every kernel is made of. */
import type { Domain } from "../../../ops/index.ts";
import { DROPOUT_BIT, headerWords, LAUNCH_VECTORS, SLOT_ROW, SLOT_TABLE } from "../../../runtime/bundle.ts";
import { type KernelEnv, type ParamAddress, REST_HEADER, ROWS_HEADER, SEGMENT_ROWS } from "../../kernel.ts";
import type { Body, Operand } from "../body.ts";
import { indent, type Lines, lines } from "./lines.ts";

/** Lanes of a workgroup, unless a kernel says otherwise. */
export const WG = 64;
/** Rows that a workgroup of a pointwise kernel goes through: a group costs more than a few elements. */
export const ROWS = 4;
export const f32 = (v: number): string => {
  const s = String(Math.fround(v)).replace("e+", "e");
  return /[.e]/.test(s) ? `${s}f` : `${s}.0f`;
};
export const header = (name: string): string =>
  `batch[${headerWords.indexOf(name as (typeof headerWords)[number])}]`;
export const headerF = (name: string): string => `bitcast<f32>(${header(name)})`;
/** Is a mask bit set in the block's header? */
export const maskBit = (bit: number): string => `((${header(`mask_${bit >> 5}`)} >> ${bit & 31}u) & 1) == 1`;
export const signature = "wg: vec3<i32>, lane: i32";
/**
 * A function. Every variable in it has an initialiser: without one, a variable of a loop's body was seen to
 * keep what the turn before left in it (SwiftShader, llvmpipe), where the language says that it is zero.
 */
export function fn(name: string, body: Lines, params = signature, result = ""): string {
  const text = indent(body, 2).join("\n");
  const bare = /\bvar \w+\s*(:[^=;]*)?;/.exec(text);
  if (bare) throw new Error(`${name}: no initialiser: ${bare[0]}`);
  return `fn ${name}(${params})${result && ` -> ${result}`} {\n${text}\n}`;
}
/**
 * The number itself, rounded: with a run-time zero that the driver cannot see through, so that it cannot
 * contract the product inside into a later addition in one kernel and not in another.
 */
export const pin = (text: string, lanes: 1 | 4 = 1): string => {
  const [bits, number] = lanes === 4 ? ["vec4<u32>", "vec4<f32>"] : ["u32", "f32"];
  const zero = lanes === 4 ? `vec4<u32>(u32(${header("zero")}))` : `u32(${header("zero")})`;
  return `bitcast<${number}>(bitcast<${bits}>(${text}) ^ ${zero})`;
};
/** Registers of zeros. */
export const registers = (name: string, n: number): string => `var ${name} = array<f32, ${n}>();`;

/** First word of row `r` of an operand, and the buffer it is in. */
export function rowAt(o: Operand, env: KernelEnv, r: string): { space: string; at: string } {
  const ad = env.address(o.value);
  if (o.undropped) {
    const plain = env.address(o.undropped);
    const start = `select(${plain.offset}, ${ad.offset}, ${maskBit(DROPOUT_BIT)})`;
    return { space: ad.space, at: `${start} + (${r}) * ${ad.stride}` };
  }
  const row = o.index === null ? `(${r})` : `batch[${env.layout.arrays[o.index]} + ${r}]`;
  return { space: ad.space, at: `${ad.offset} + ${row} * ${ad.stride}` };
}
/**
 * The same, in one text for rows that may be dropped and for others, of which the mask then picks the one
 * place that they have: launches over either share a pipeline.
 */
export const rowAtAny = (o: Operand, env: KernelEnv, r: string): ReturnType<typeof rowAt> =>
  rowAt(o.index === null ? { ...o, undropped: o.undropped ?? o.value } : o, env, r);

export const count = (domain: Domain): string => header(ROWS_HEADER[domain]);
/** Of these, those at the end that kernels for a few take. */
export const restOf = (domain: Domain): string => header(REST_HEADER[domain]);
/** Return where the body has nothing to do. */
export const guard = (bits: readonly number[]): Lines =>
  bits.map((bit) => `if (!(${maskBit(bit)})) { return; }`);
/** Where a word of a branch is in a slot's row of the table. */
const tableAt = (slot: string, branch: number, word: keyof typeof SLOT_ROW, env: KernelEnv): string =>
  `${SLOT_TABLE + env.slots.branches[branch]!.at + SLOT_ROW[word]} + ${slot} * ${env.slots.row}`;
export const inTable = (slot: string, branch: number, word: "rank" | "home", env: KernelEnv): string =>
  `tables[${tableAt(slot, branch, word, env)}]`;
/** Where its quads are: pairs of words, a quad's place and its scale. */
export const quadsAt = (slot: string, branch: number, env: KernelEnv): string =>
  tableAt(slot, branch, "quads", env);
/** First word of a vector of a slot's branch, whose vectors begin at the branch's home. */
export const vectorOf = (slot: string, branch: number, offset: number, env: KernelEnv): string =>
  `${inTable(slot, branch, "home", env)} + ${offset}`;
export const jobRank = (branch: number, env: KernelEnv): string =>
  inTable(header("slot"), branch, "rank", env);
/** Words of a slot tensor that the job's slot uses: what lies beyond its rank is zero. */
export const wordsInUse = (p: ParamAddress, env: KernelEnv): string =>
  p.kind !== "factor" || p.rows === "one"
    ? String(p.words)
    : `min(${p.words}, ${jobRank(p.branch!, env)} * ${p.k})`;

/**
 * A loop over the unit's segments, and inside it over the segment's rows `r`: each segment is summed on its
 * own.
 */
export function overSegments(
  domain: Domain,
  env: KernelEnv,
  text: { readonly before: Lines; readonly row: Lines; readonly after: Lines },
): Lines {
  const [first, count] = SEGMENT_ROWS[domain]!;
  return lines`
    for (var s = 0; s < ${header("n_segments")}; s++) {
      let r0 = batch[${env.layout.arrays[first]!} + s];
      let r1 = r0 + batch[${env.layout.arrays[count]!} + s];
      ${text.before}
      for (var r = r0; r < r1; r++) {
        ${text.row}
      }
      ${text.after}
    }`;
}
/** Of the shard that a launch is over: its first row in the matrix, and how many it has. */
export const shard = { first: `launch[${LAUNCH_VECTORS}].x`, rows: `launch[${LAUNCH_VECTORS}].y` };
/** Row `r` of a matrix as one of the shard, and whether it is none. */
export const inShard = (r: string): string => `(${r} - ${shard.first})`;
export const notInShard = (r: string): string =>
  `${r} < ${shard.first} || ${r} >= ${shard.first} + ${shard.rows}`;
/** First word of the job's gradient of the parameter that a body is of; of a shard, full training's. */
export const gradient = (b: Body, env: KernelEnv): string => {
  const { accum, own } = env.param(String(b.node!.attrs.of));
  return own === null ? `${header("job")} * ${env.jobWords} + ${accum}` : "0";
};
/** First word of a vector of the job's slot. */
export const jobVector = (p: ParamAddress, env: KernelEnv): string =>
  vectorOf(header("slot"), p.branch!, p.offset, env);
/** Quads of a branch of the job's slot. */
export const jobQuads = (branch: number, env: KernelEnv): string => quadsAt(header("slot"), branch, env);
/** First word of the job's gradient norms: [group sums…, clip scale, total norm]. */
export const norms = (env: KernelEnv): string => `${env.norms} + ${header("job")} * ${env.groups + 2}`;
