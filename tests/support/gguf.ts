/** Writes GGUF from the format's own description. */
import { type Config, tensorsOfFamily } from "./tiny.ts";

export type Meta = Readonly<
  Record<string, string | number | boolean | Float32Array | readonly string[] | readonly number[]>
>;

/** A GGUF 3 file: header, metadata, tensor table, tensors at multiples of 32. */
export function writeGguf(
  meta: Meta,
  tensors: readonly { name: string; shape: readonly number[]; type: number; data: Uint8Array }[],
): Uint8Array {
  const parts: Uint8Array[] = [];
  const put = (n: number, f: (v: DataView) => void): void => {
    const b = new Uint8Array(n);
    f(new DataView(b.buffer));
    parts.push(b);
  };
  const u32 = (x: number) => put(4, (v) => v.setUint32(0, x, true));
  const u64 = (x: number) => put(8, (v) => v.setBigUint64(0, BigInt(x), true));
  const text = (s: string) => {
    const b = new TextEncoder().encode(s);
    u64(b.length);
    parts.push(b);
  };
  const number = (x: number) => (Number.isInteger(x) ? u32(x) : put(4, (v) => v.setFloat32(0, x, true)));
  parts.push(new TextEncoder().encode("GGUF"));
  u32(3);
  u64(tensors.length);
  u64(Object.keys(meta).length);
  for (const [key, value] of Object.entries(meta)) {
    text(key);
    if (typeof value === "string") {
      u32(8);
      text(value);
    } else if (typeof value === "boolean") {
      u32(7);
      put(1, (v) => v.setUint8(0, value ? 1 : 0));
    } else if (value instanceof Float32Array) {
      // One number that a reader wants as f32, whole or not.
      u32(6);
      put(4, (v) => v.setFloat32(0, value[0]!, true));
    } else if (typeof value === "number") {
      u32(Number.isInteger(value) ? 4 : 6);
      number(value);
    } else {
      u32(9);
      u32(typeof value[0] === "string" ? 8 : 5);
      u64(value.length);
      for (const x of value) typeof x === "string" ? text(x) : u32(x);
    }
  }
  let at = 0;
  for (const t of tensors) {
    text(t.name);
    u32(t.shape.length);
    for (const n of [...t.shape].reverse()) u64(n);
    u32(t.type);
    u64(at);
    at += Math.ceil(t.data.length / 32) * 32;
  }
  const pad = (n: number) => put(n, () => {});
  pad((32 - (parts.reduce((n, p) => n + p.length, 0) % 32)) % 32);
  for (const t of tensors) {
    parts.push(t.data);
    pad((32 - (t.data.length % 32)) % 32);
  }
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let o = 0;
  for (const p of parts) {
    out.set(p, o);
    o += p.length;
  }
  return out;
}
/** What llama.cpp's converter does to rows of q and k. */
export function interleaved(values: Float32Array, rows: number, heads: number): Float32Array {
  const [width, per] = [values.length / rows, rows / heads];
  const out = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) {
    const [h, i] = [Math.floor(r / per) * per, r % per];
    const to = h + (i % (per / 2)) * 2 + Math.floor(i / (per / 2));
    out.set(values.subarray(r * width, (r + 1) * width), to * width);
  }
  return out;
}
const llama: readonly (readonly [RegExp, string])[] = [
  [/^model\.embed_tokens/, "token_embd"],
  [/^model\.norm/, "output_norm"],
  [/input_layernorm/, "attn_norm"],
  [/self_attn\.([qkv])_proj/, "attn_$1"],
  [/self_attn\.o_proj/, "attn_output"],
  [/post_attention_layernorm/, "ffn_norm"],
  [/mlp\.(gate|up|down)_proj/, "ffn_$1"],
  [/^model\.layers\.(\d+)\./, "blk.$1."],
];
/** GGUF's name of a tensor of a folder: of families beside Llama, as llama.cpp's tables have it. */
export const ggufName = (name: string, config: Config): string =>
  tensorsOfFamily(config)?.gguf?.[name] ?? llama.reduce((n, [from, to]) => n.replace(from, to), name);
