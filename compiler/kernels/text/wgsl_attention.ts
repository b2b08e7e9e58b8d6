/**
 * What the kernels of attention share in WGSL. All do the same operations in the same order on every number:
 * dims ascending in a dot product, key tiles of 32 from position 0, keys ascending in a tile.
 */
import { KV_BLOCK, type Type } from "../../../ops/index.ts";
import { layerWord } from "../../../runtime/bundle.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { f32, pin, rowAt } from "./wgsl.ts";

type Kv = Type & { kind: "kv" };
/**
 * Dims of a gradient that a lane owns: all of a head's would not fit its registers. Lanes that share a row
 * and head make the same dot products.
 */
const PART = 32;
export const partsOf = (headDim: number): number => Math.ceil(headDim / PART);
/** Which part is wg.y's, beside its head: parts are innermost. */
export const partOf = (headDim: number): { readonly head: string; readonly first: string } => {
  const parts = partsOf(headDim);
  return { head: `wg.y / ${parts}`, first: `(wg.y % ${parts}) * ${PART}` };
};

export function attentionOf(b: Body, env: KernelEnv) {
  const node = b.node!;
  const kv = node.ins[1]!.type as Kv;
  const heads = Number(node.attrs.heads);
  const offset = env.address(node.ins[1]!).offset;
  const { scale: s, softcap: cap, window } = node.attrs;
  const scale = f32(Number(s));
  const capped = cap !== undefined;
  return {
    hd: kv.headDim,
    heads,
    kvHeads: kv.heads,
    group: heads / kv.heads,
    /** Under a soft cap: `z`, the score of `dot` in units of the cap. */
    bound: capped ? [`let z = tanh(clamp(dot * ${f32(Number(s) / Number(cap))}, -20.0f, 20.0f));`] : [],
    /**
     * `dot`, a product of q and k, in the scale of the softmax; what is subtracted from it next must not be
     * contracted into it.
     */
    score: pin(capped ? `z * ${f32(Number(cap))}` : `dot * ${scale}`),
    /** The score's derivative. */
    slope: capped ? `(${scale} * (1.0f - ${pin("z * z")}))` : scale,
    /** The first tile that a row sees, and in tile t its first key; with a window these need `seen`. */
    seen: window ? [`let seen = max(0, keys - tables[${layerWord("window")}]);`] : [],
    firstTile: window ? `seen / ${KV_BLOCK} * ${KV_BLOCK}` : "0",
    firstKey: window ? "max(0, seen - t)" : "0",
    /** Of the rows `r0` to `end` of a segment, the end of those that see `key`. */
    lastRow: (end: string, r0: string, pos0: string): string =>
      window ? `min(${end}, ${r0} + max(0, key + tables[${layerWord("window")}] - ${pos0}))` : end,
    /** Number i of the cache. */
    cached: (i: string): string => `kv_${kv.format}(${i})`,
    /** The first number of a position's key (part 0) or value (1). */
    kvAt: (part: 0 | 1, position: string, kh: string): string =>
      `${offset} + kv_index(table, ${position}, ${part}, ${kh}, ${kv.heads}, ${kv.headDim})`,
    /** Row `row` of operand `i`. */
    operand: (i: number) => rowAt(b.operands[i]!, env, "row"),
    out: (index: number) => env.address({ node, index, type: node.outs[index]! }),
    pos: `batch[${env.layout.arrays.pos} + row]`,
    table: `batch[${env.layout.arrays.table} + row]`,
    /** A statement for every dim. */
    dims: (statements: string): string => `for (var d = 0; d < ${kv.headDim}; d++) { ${statements} }`,
    /** Registers of zeros, one a dim. */
    vector: (name: string): string => `var ${name} = array<f32, ${kv.headDim}>();`,
    /** A statement for every dim of a part from dim `first` on, as `d`, whose register is `i`. */
    own: (statements: string): string => {
      const whole = kv.headDim % PART ? `if (d < ${kv.headDim}) { ${statements} }` : statements;
      return `for (var i = 0; i < ${Math.min(PART, kv.headDim)}; i++) { let d = first + i; ${whole} }`;
    },
    /** Registers of zeros, one a dim of a part. */
    part: (name: string): string => `var ${name} = array<f32, ${Math.min(PART, kv.headDim)}>();`,
  };
}
