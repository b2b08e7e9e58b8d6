/** Pieces of WGSL text that every kernel is made of. */
import type { Operand } from "../fuse.ts";
import type { KernelEnv } from "../kernel.ts";
import { DROPOUT_BIT, headerWords } from "../metadata.ts";

/** Lanes of a workgroup. */
export const WG = 64;
export const f32 = (v: number): string => {
  const s = String(Math.fround(v));
  return /[.e]/.test(s) ? `${s}f` : `${s}.0f`;
};
export const indent = (lines: readonly string[], n: number): string[] => lines.map((l) => " ".repeat(n) + l);
export const header = (name: string): string => `batch[${headerWords.indexOf(name as (typeof headerWords)[number])}]`;
/** Is a mask bit set in the block's header? */
export const maskBit = (bit: number): string => `((${header(`mask_${bit >> 5}`)} >> ${bit & 31}u) & 1) == 1`;
export const signature = "wg: vec3<i32>, lane: i32";
export const fn = (name: string, lines: readonly string[], params = signature): string => `fn ${name}(${params}) {\n${lines.join("\n")}\n}`;

/** First word of row `r` of an operand, and the buffer it is in. */
export function rowAt(o: Operand, env: KernelEnv, r: string): { cls: string; at: string } {
  const ad = env.address(o.value);
  if (o.undropped) return { cls: ad.cls, at: `select(${env.address(o.undropped).offset}, ${ad.offset}, ${maskBit(DROPOUT_BIT)}) + (${r}) * ${ad.stride}` };
  const row = o.index === null ? `(${r})` : `batch[${env.layout.arrays[o.index]} + ${r}]`;
  return { cls: ad.cls, at: `${ad.offset} + ${row} * ${ad.stride}` };
}
