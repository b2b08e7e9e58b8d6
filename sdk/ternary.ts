/**
 * Ternary adapters (ComPEFT, Yadav et al. 2023): of all trained numbers the largest by magnitude are kept as
 * signs with one common magnitude; their places are gaps in Rice code (Golomb's with a power of two).
 * Selections of channels are kept as they are.
 *
 *   file: "WEFT3" · u32 length of the JSON header · header · bit stream (gap: unary quotient, b low bits;
 *   then the sign), most significant bit first
 */
import * as v from "valibot";
import { WeftError } from "../runtime/bundle.ts";
import { decode, encode, parseHeader, type TensorData } from "../runtime/safetensors.ts";
import {
  check,
  count,
  finite,
  integer,
  numbers,
  type Of,
  object,
  positive,
  text,
} from "../runtime/schema.ts";

const MAGIC = "WEFT3";
const Header = object({
  magnitude: finite,
  /** Numbers kept, low bits of a gap. */
  kept: count,
  riceBits: integer(0, 32),
  tensors: v.array(object({ name: text, shape: v.array(positive) })),
  selections: v.array(
    object({
      name: text,
      channels: numbers("a channel", (x) => Number.isInteger(x) && x >= 0 && x < 2 ** 31),
    }),
  ),
});
type Header = Of<typeof Header>;
export interface Ternary {
  readonly bytes: Uint8Array;
  /** Bytes of the safetensors file over bytes of this one. */
  readonly ratio: number;
  /** ‖difference‖₂ / ‖adapter‖₂ over all trained numbers. */
  readonly error: number;
}

class Bits {
  private readonly out: number[] = [];
  private byte = 0;
  private n = 0;
  put(bit: number): void {
    this.byte = (this.byte << 1) | bit;
    if (++this.n === 8) {
      this.out.push(this.byte);
      this.byte = this.n = 0;
    }
  }
  done(): Uint8Array {
    while (this.n) this.put(0);
    return Uint8Array.from(this.out);
  }
}

/**
 * Compress a PEFT safetensors file; `density` is the share of numbers kept, in (0, 1]. Throws WEFT_OPTION.
 */
export function compressTernary(file: Uint8Array, density: number): Ternary {
  if (!(density > 0 && density <= 1))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "density",
      expected: "a number above 0, at most 1",
      found: String(density),
    });
  const { tensors } = parseHeader(file, file.length, "adapter");
  const dense = tensors
    .filter((t) => t.dtype !== "I32")
    .map((t) => ({
      name: t.name,
      shape: t.shape,
      data: decode(file.subarray(t.start, t.end), t.dtype, t.name),
    }));
  const selections = tensors
    .filter((t) => t.dtype === "I32")
    .map((t) => ({ name: t.name, channels: [...new Int32Array(file.slice(t.start, t.end).buffer)] }));
  const all = new Float32Array(dense.reduce((n, t) => n + t.data.length, 0));
  let at = 0;
  for (const t of dense) {
    all.set(t.data, at);
    at += t.data.length;
  }
  const kept = Math.max(1, Math.round(density * all.length));
  // Ties go to the earlier number, so that the result does not depend on the sort.
  const order = Uint32Array.from(all, (_, i) => i).sort(
    (a, b) => Math.abs(all[b]!) - Math.abs(all[a]!) || a - b,
  );
  const places = order.slice(0, kept).sort();
  // The magnitude that is nearest to all kept numbers at once.
  const magnitude = Math.fround(places.reduce((s, i) => s + Math.abs(all[i]!), 0) / kept);
  const riceBits = Math.max(0, Math.round(Math.log2((Math.LN2 * all.length) / kept)));
  const bits = new Bits();
  let last = -1;
  let lost = 0;
  let norm = 0;
  for (const x of all) norm += x * x;
  lost = norm;
  for (const i of places) {
    const gap = i - last - 1;
    for (let q = gap >>> riceBits; q > 0; q--) bits.put(1);
    bits.put(0);
    for (let b = riceBits - 1; b >= 0; b--) bits.put((gap >>> b) & 1);
    bits.put(all[i]! < 0 ? 1 : 0);
    lost += (Math.abs(all[i]!) - magnitude) ** 2 - all[i]! ** 2;
    last = i;
  }
  const header: Header = {
    magnitude,
    kept,
    riceBits,
    tensors: dense.map(({ name, shape }) => ({ name, shape })),
    selections,
  };
  const head = new TextEncoder().encode(JSON.stringify(header));
  const stream = bits.done();
  const bytes = new Uint8Array(MAGIC.length + 4 + head.length + stream.length);
  bytes.set(new TextEncoder().encode(MAGIC));
  new DataView(bytes.buffer).setUint32(MAGIC.length, head.length, true);
  bytes.set(head, MAGIC.length + 4);
  bytes.set(stream, MAGIC.length + 4 + head.length);
  return { bytes, ratio: file.length / bytes.length, error: norm ? Math.sqrt(Math.max(0, lost) / norm) : 0 };
}

/**
 * A ternary file → the PEFT safetensors file it stands for, of at most `most` numbers. Throws WEFT_ADAPTER
 * for a file that is cut short, of another kind, or stands for more.
 */
export function expandTernary(file: Uint8Array, where: string, most: number): Uint8Array {
  const bad = (expected: string, found: string): WeftError =>
    new WeftError({
      code: "WEFT_ADAPTER",
      where,
      expected,
      found,
      hint: "the file is truncated or was changed",
    });
  const start = MAGIC.length + 4;
  if (file.length < start || new TextDecoder().decode(file.subarray(0, MAGIC.length)) !== MAGIC)
    throw bad(`a file that begins with ${MAGIC}`, `${file.length} bytes`);
  const length = new DataView(file.buffer, file.byteOffset).getUint32(MAGIC.length, true);
  if (start + length > file.length) throw bad(`a header of ${length} bytes`, `${file.length - start} bytes`);
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(file.subarray(start, start + length)));
  } catch (cause) {
    throw bad("a JSON header", (cause as Error).message);
  }
  const header: Header = check(Header, json, { code: "WEFT_ADAPTER", where });
  const size = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
  const total = header.tensors.reduce((n, t) => n + size(t.shape), 0);
  const chosen = header.selections.reduce((n, s) => n + s.channels.length, 0);
  if (!(total + chosen <= most))
    throw bad(`at most ${most} numbers, which this base has room for`, `${total + chosen}`);
  if (header.kept > total) throw bad(`at most ${total} numbers kept`, String(header.kept));
  const names = [...header.tensors, ...header.selections].map((t) => t.name);
  if (new Set(names).size < names.length) throw bad("tensors of different names", "a name twice");
  const all = new Float32Array(total);
  let bit = (start + length) * 8;
  const next = (): number => {
    if (bit >= file.length * 8) throw bad(`${header.kept} numbers`, "the end of the file");
    const v = (file[bit >> 3]! >> (7 - (bit & 7))) & 1;
    bit++;
    return v;
  };
  let last = -1;
  for (let k = 0; k < header.kept; k++) {
    let gap = 0;
    while (next()) gap++;
    for (let b = 0; b < header.riceBits; b++) gap = gap * 2 + next();
    last += gap + 1;
    if (last >= all.length) throw bad(`places below ${all.length}`, String(last));
    all[last] = next() ? -header.magnitude : header.magnitude;
  }
  let at = 0;
  const tensors: TensorData[] = header.tensors.map(({ name, shape }) => {
    const data = all.slice(at, at + size(shape));
    at += data.length;
    return { name, shape, dtype: "F32", data };
  });
  for (const { name, channels } of header.selections)
    tensors.push({ name, shape: [channels.length], dtype: "I32", data: Int32Array.from(channels) });
  return encode(tensors);
}
