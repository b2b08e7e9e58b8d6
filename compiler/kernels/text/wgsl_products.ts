/**
 * Matrix products in WGSL, all in one order, whatever the kernel: what is summed is cut into chunks of 128, a
 * chunk is one ascending chain of fma from zero, and the chunks' sums are added in order, from zero. Who
 * makes a chunk, and how many rows and columns a workgroup has, is then free, and a row has the same bits
 * alone and in a tile.
 */
import { wgslPrinter, wgslStores } from "../../emit/wgsl_dialect.ts";
import type { KernelEnv } from "../../kernel.ts";
import type { Body } from "../body.ts";
import { fn } from "./wgsl.ts";

/** Terms of a chunk. */
export const CHUNK = 128;
export const indices = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

/** A list of what is there of both sums of a body, or of its one. */
export const ofSums = (b: Body, each: (i: number) => string): string =>
  indices(b.beside ? 2 : 1)
    .map(each)
    .join(", ");

/** `name_e`: one element of a product's epilogue. */
export function epilogue(name: string, b: Body, env: KernelEnv): string {
  const p = wgslPrinter(env);
  const stores = wgslStores(p, b.stores, env, b.cols, "col == 0");
  return fn(
    `${name}_e`,
    [...p.row, ...p.col, ...stores],
    `row: i32, col: i32, ${ofSums(b, (i) => `acc${i}: f32`)}`,
  );
}
