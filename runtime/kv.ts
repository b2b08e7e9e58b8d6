/**
 * How the paged cache holds keys and values, [block][k|v][kv head][32][stride] numbers of one format, where a
 * row of head_dim numbers is padded to a multiple of four, so that lanes read it in fours. What
 * kernels compute with is f32 either way, and their gradients stay f32. `f16` halves the cache and what
 * attention reads of it; it rounds, so it is a class of numerics of its own. Numbers beyond the largest half
 * become that half.
 */
import { BLOCK } from "./contract.ts";

export interface KvFormat {
  /** Bytes of a number. */
  readonly bytes: 2 | 4;
  /** What it adds to the name of a class of numerics. */
  readonly numerics: "" | " f16";
  /** WGSL, over `kv`: as fours where it is read, as words where lanes each store one number. */
  readonly wgsl: {
    readonly read: "vec4<f32>" | "vec2<u32>";
    readonly written: "f32" | "atomic<u32>";
    /** `kv_NAME(i)`: number i of the cache. */
    readonly at: string;
    /** `kv_quad_NAME(i)`: numbers i to i + 3, of a multiple of four. */
    readonly quad: string;
    /** `kv_put_NAME(i, v)`: number i becomes v. */
    readonly put: string;
  };
  /** AssemblyScript, over addresses in bytes: four numbers and one. */
  readonly assembly: {
    readonly load4: (ptr: string, offset: number) => string;
    readonly load1: (ptr: string, offset: number) => string;
    readonly store4: (ptr: string, v: string) => string;
    readonly store1: (ptr: string, v: string) => string;
  };
}

const f32: KvFormat = {
  bytes: 4,
  numerics: "",
  wgsl: {
    read: "vec4<f32>",
    written: "f32",
    at: `
fn kv_f32(i: i32) -> f32 {
  return kv[i >> 2u][i & 3];
}`,
    quad: `
fn kv_quad_f32(i: i32) -> vec4<f32> {
  return kv[i >> 2u];
}`,
    put: `
fn kv_put_f32(i: i32, v: f32) {
  kv[i] = v;
}`,
  },
  assembly: {
    load4: (ptr, offset) => `v128.load(${ptr}, ${offset})`,
    load1: (ptr, offset) => `load<f32>(${ptr}, ${offset})`,
    store4: (ptr, v) => `v128.store(${ptr}, ${v});`,
    store1: (ptr, v) => `store<f32>(${ptr}, ${v});`,
  },
};
const f16: KvFormat = {
  bytes: 2,
  numerics: " f16",
  wgsl: {
    read: "vec2<u32>",
    written: "atomic<u32>",
    at: `
fn kv_f16(i: i32) -> f32 {
  return unpack2x16float(kv[i >> 2u][(i >> 1u) & 1])[i & 1];
}`,
    quad: `
fn kv_quad_f16(i: i32) -> vec4<f32> {
  let h = kv[i >> 2u];
  return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}`,
    // A word is two lanes': each changes its half alone, in whatever order they come.
    put: `
fn kv_put_f16(i: i32, v: f32) {
  let h = pack2x16float(vec2<f32>(clamp(v, -65504.0f, 65504.0f), 0.0f));
  let shift = u32(i & 1) * 16u;
  atomicAnd(&kv[i >> 1u], 0xffff0000u >> shift);
  atomicOr(&kv[i >> 1u], h << shift);
}`,
  },
  // Of the prelude: half4 and half1, and back narrow4 and narrow1.
  assembly: {
    load4: (ptr, offset) => `half4(${ptr} + ${offset})`,
    load1: (ptr, offset) => `half1(load<u16>(${ptr}, ${offset}))`,
    store4: (ptr, v) => `v128.store64_lane(${ptr}, narrow4(${v}), 0);`,
    store1: (ptr, v) => `store<u16>(${ptr}, narrow1(${v}));`,
  },
};

export const kvFormats = { f32, f16 } satisfies Readonly<Record<string, KvFormat>>;
export type KvName = keyof typeof kvFormats;
/** Numbers from a row of the cache to the next. */
export const kvStride = (headDim: number): number => Math.ceil(headDim / 4) * 4;
/** Words of a block: keys and values of 32 tokens. */
export const kvBlockWords = (m: { readonly kvHeads: number; readonly headDim: number }, kv: KvName): number =>
  (2 * BLOCK * m.kvHeads * kvStride(m.headDim) * kvFormats[kv].bytes) / 4;
export const kvNames = Object.keys(kvFormats) as readonly KvName[];
/** The format of a name that the graph carries. */
export function kvFormatOf(name: string): KvFormat {
  if (!Object.hasOwn(kvFormats, name)) throw new Error(`no format of the cache named ${name}`);
  return kvFormats[name as KvName];
}
