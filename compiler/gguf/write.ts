/**
 * GGUF files, version 3, as the format describes itself (ggml, docs/gguf.md): magic, counts, keys, a table of
 * tensors, and their bytes at multiples of 32.
 */
import { type Format, halfToFloat, type Words } from "../../runtime/bundle.ts";
import type { GgufNumber } from "../models/model.ts";

export type GgufValue =
  | string
  | boolean
  | GgufNumber
  | readonly string[]
  /** int32 */
  | Int32Array
  | Float32Array;
export interface GgufTensor {
  readonly name: string;
  /** Rows first, as elsewhere in weft; a file has the shortest stride first. */
  readonly shape: readonly number[];
  readonly layout: GgmlLayout;
}
/** A type of GGML: its number, and the bytes of a row of `k` values. */
export interface GgmlLayout {
  readonly type: number;
  readonly rowBytes: (k: number) => number;
}
const BLOCK = 32;
const plain = (type: number, size: number): GgmlLayout => ({ type, rowBytes: (k) => k * size });
const blocks = (type: number, size: number): GgmlLayout => ({ type, rowBytes: (k) => (k / BLOCK) * size });
/** By llama.cpp's names (ggml.h, ggml-common.h). */
export const ggml = {
  F32: plain(0, 4),
  F16: plain(1, 2),
  BF16: plain(30, 2),
  Q4_0: blocks(2, 18),
  Q4_1: blocks(3, 20),
  Q8_0: blocks(8, 34),
} as const;
export type GgmlName = keyof typeof ggml;

/**
 * The type that holds planes [rows, …] of rows of `k` values as they are; null where none does: blocks of a
 * file lie in whole rows.
 */
export function ggmlOf(format: Format, planes: readonly Words[], k: number): GgmlName | null {
  const [, scales] = planes;
  const exact = {
    f32: () => "F32",
    f16: () => "F16",
    bf16: () => "BF16",
    int8: () => "Q8_0",
    q4: () => (centred(scales!) ? "Q4_0" : "Q4_1"),
  } satisfies Record<Format, () => GgmlName>;
  return scales && k % BLOCK ? null : exact[format]();
}
/** Is each minimum -8 scales, as Q4_0 has it? */
function centred(scales: Words): boolean {
  for (let i = 0; i < scales.length; i += 2)
    if (halfToFloat(scales[i + 1]!) !== -8 * halfToFloat(scales[i]!)) return false;
  return true;
}
/** Planes of a format, row by row, as a type that holds them. */
export function ggmlBytes(name: GgmlName, [values, scales]: readonly Words[]): Uint8Array {
  const all = values!;
  if (!scales) return new Uint8Array(all.buffer, all.byteOffset, all.byteLength);
  const paired = name !== "Q8_0";
  const shared = name === "Q4_1" ? 2 : 1;
  const steps = paired ? BLOCK / 2 : BLOCK;
  const count = all.length / steps;
  const size = ggml[name].rowBytes(BLOCK);
  const out = new Uint8Array(count * size);
  const view = new DataView(out.buffer);
  for (let b = 0; b < count; b++) {
    const at = b * size;
    for (let s = 0; s < shared; s++) view.setUint16(at + 2 * s, scales[b * (paired ? 2 : 1) + s]!, true);
    const to = at + 2 * shared;
    for (let i = 0; i < steps; i++)
      if (!paired) out[to + i] = all[b * BLOCK + i]!;
      else {
        // A format has pairs of neighbours in a byte, a file the halves of a block.
        const step = (j: number): number => (all[b * steps + (j >> 1)]! >> ((j & 1) * 4)) & 15;
        out[to + i] = step(i) | (step(i + 16) << 4);
      }
  }
  return out;
}

const ALIGNMENT = 32;
const padded = (n: number): number => Math.ceil(n / ALIGNMENT) * ALIGNMENT;
export const tensorBytes = ({ shape, layout }: GgufTensor): number =>
  shape.slice(0, -1).reduce((n, x) => n * x, 1) * layout.rowBytes(shape.at(-1)!);

/** Bytes that grow. */
class Bytes {
  private view = new DataView(new ArrayBuffer(1 << 16));
  private at = 0;
  private room(n: number): number {
    if (this.at + n > this.view.byteLength) {
      const grown = new Uint8Array(Math.max(2 * this.view.byteLength, this.at + n));
      grown.set(new Uint8Array(this.view.buffer));
      this.view = new DataView(grown.buffer);
    }
    this.at += n;
    return this.at - n;
  }
  u8(x: number): void {
    const at = this.room(1);
    this.view.setUint8(at, x);
  }
  u32(x: number): void {
    const at = this.room(4);
    this.view.setUint32(at, x, true);
  }
  i32(x: number): void {
    const at = this.room(4);
    this.view.setInt32(at, x, true);
  }
  f32(x: number): void {
    const at = this.room(4);
    this.view.setFloat32(at, x, true);
  }
  u64(x: number): void {
    const at = this.room(8);
    this.view.setBigUint64(at, BigInt(x), true);
  }
  text(s: string): void {
    const bytes = new TextEncoder().encode(s);
    this.u64(bytes.length);
    const at = this.room(bytes.length);
    new Uint8Array(this.view.buffer).set(bytes, at);
  }
  all(): Uint8Array {
    return new Uint8Array(this.view.buffer, 0, this.at);
  }
}
/** Numbers of types of values (gguf.h). */
const [UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY] = [4, 5, 6, 7, 8, 9] as const;
function putValue(b: Bytes, value: GgufValue): void {
  const array = <T>(type: number, list: ArrayLike<T>, put: (x: T) => void): void => {
    b.u32(ARRAY);
    b.u32(type);
    b.u64(list.length);
    for (let i = 0; i < list.length; i++) put(list[i]!);
  };
  if (typeof value === "string") {
    b.u32(STRING);
    b.text(value);
  } else if (typeof value === "boolean") {
    b.u32(BOOL);
    b.u8(Number(value));
  } else if (value instanceof Int32Array) array(INT32, value, (x) => b.i32(x));
  else if (value instanceof Float32Array) array(FLOAT32, value, (x) => b.f32(x));
  else if ("u32" in value) {
    b.u32(UINT32);
    b.u32(value.u32);
  } else if ("f32" in value) {
    b.u32(FLOAT32);
    b.f32(value.f32);
  } else array(STRING, value, (x) => b.text(x));
}
/** The key that says that weft wrote a file. */
export const WROTE = "weft.wrote";
/**
 * What it says: how many tensors of which types there are. Programs that convert a file keep its keys, and
 * make others of these.
 */
export const wroteOf = (types: readonly number[]): string =>
  [...new Set(types)]
    .sort((a, b) => a - b)
    .map((type) => `${types.filter((t) => t === type).length} of type ${type}`)
    .join(", ");
/**
 * A file in pieces: what it says, its table of tensors, and the bytes of each, of one or several pieces,
 * asked for in order. Throws where those are not as many as the table has.
 */
export async function* writeGguf(
  about: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
  data: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, void> {
  const said = { ...about, [WROTE]: wroteOf(tensors.map((t) => t.layout.type)) };
  const b = new Bytes();
  b.u32(0x46554747);
  b.u32(3);
  b.u64(tensors.length);
  b.u64(Object.keys(said).length);
  for (const [key, value] of Object.entries(said)) {
    b.text(key);
    putValue(b, value);
  }
  let at = 0;
  for (const t of tensors) {
    b.text(t.name);
    b.u32(t.shape.length);
    for (const n of t.shape.toReversed()) b.u64(n);
    b.u32(t.layout.type);
    b.u64(at);
    at += padded(tensorBytes(t));
  }
  const head = b.all();
  yield head;
  yield new Uint8Array(padded(head.length) - head.length);
  let i = 0;
  let written = 0;
  for await (const bytes of data) {
    const t = tensors[i];
    written += bytes.length;
    if (!t || written > tensorBytes(t))
      throw new Error(`${t?.name}: ${written} bytes, and not ${t && tensorBytes(t)}`);
    yield bytes;
    if (written < tensorBytes(t)) continue;
    yield new Uint8Array(padded(written) - written);
    written = 0;
    i++;
  }
  if (i !== tensors.length) throw new Error(`bytes of ${i} tensors, and not of ${tensors.length}`);
}
