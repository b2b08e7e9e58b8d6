/**
 * How frozen matrices are stored. A value means the same on every target and in every kernel: f16 widens exactly, and int8 is q · scale, which f32 holds
 * exactly too (7 + 11 bits), so a bundle in int8 computes what a bundle in f32 of the same values does, bit for bit.
 */
import { WeftError } from "./errors.ts";
import { floatToHalf, halfToFloat } from "./safetensors.ts";

/** `int8`: blocks of 32 along a row, each with an f16 scale. */
export type Format = "f32" | "f16" | "int8";
export const formats: readonly Format[] = ["f32", "f16", "int8"];
export const INT8_BLOCK = 32;
const blocksOf = (k: number): number => Math.ceil(k / INT8_BLOCK);

/** Bytes of a matrix [n, k] in a bundle: row-major values, after them the scales [n, blocks] of int8. */
export const storedBytes = (format: Format, n: number, k: number): number => (format === "f32" ? 4 * n * k : format === "f16" ? 2 * n * k : n * k + 2 * n * blocksOf(k));
/** Words of the same on a device: [panel][k][panel columns], after them int8's scales [panel][block][panel columns]. */
export function packedWords(format: Format, n: number, k: number, panel: number): number {
  const columns = Math.ceil(n / panel) * panel;
  return format === "f32" ? columns * k : format === "f16" ? (columns * k) / 2 : (columns * k) / 4 + (columns * blocksOf(k)) / 2;
}

/** f32 values → stored bytes. Throws WEFT_WEIGHTS, naming the element, when f16 has no such value. int8 rounds to nearest even, scales upwards. */
export function store(format: Format, values: Float32Array, n: number, k: number, where: string): Uint8Array {
  if (format === "f32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const half = (x: number, at: number): number => {
    const h = floatToHalf(x);
    if ((h & 0x7c00) === 0x7c00)
      throw new WeftError({ code: "WEFT_WEIGHTS", where, expected: "values within the range of f16", found: `${x} at element ${at}`, hint: "compile with --format f32" });
    return h;
  };
  if (format === "f16") return new Uint8Array(Uint16Array.from(values, half).buffer);
  const blocks = blocksOf(k);
  const q = new Int8Array(n * k);
  const scales = new Uint16Array(n * blocks);
  for (let row = 0; row < n; row++)
    for (let b = 0; b < blocks; b++) {
      const [from, to] = [row * k + b * INT8_BLOCK, row * k + Math.min(k, (b + 1) * INT8_BLOCK)];
      let max = 0;
      for (let i = from; i < to; i++) max = Math.max(max, Math.abs(values[i]!));
      let h = half(max / 127, from);
      // The next half up where it was rounded down: no value may need more than 127 steps.
      if (halfToFloat(h) * 127 < max) h++;
      const scale = halfToFloat(h);
      scales[row * blocks + b] = h;
      for (let i = from; scale && i < to; i++) {
        const x = values[i]! / scale;
        const r = Math.round(x);
        q[i] = r - x === 0.5 && r % 2 ? r - 1 : r;
      }
    }
  const out = new Uint8Array(storedBytes(format, n, k));
  out.set(new Uint8Array(q.buffer));
  out.set(new Uint8Array(scales.buffer), n * k);
  return out;
}
/** Stored bytes → f32 values [n, k]. */
export function restore(format: Format, raw: Uint8Array, n: number, k: number): Float32Array {
  if (format === "f32") return new Float32Array(raw.slice().buffer);
  if (format === "f16") return Float32Array.from(new Uint16Array(raw.slice().buffer), halfToFloat);
  const blocks = blocksOf(k);
  const q = new Int8Array(raw.buffer, raw.byteOffset, n * k);
  const scales = Float32Array.from(new Uint16Array(raw.slice(n * k).buffer), halfToFloat);
  return Float32Array.from(q, (x, i) => x * scales[Math.floor(i / k) * blocks + Math.floor((i % k) / INT8_BLOCK)]!);
}

type Words = Uint8Array | Uint16Array | Uint32Array;
/** [n, k] row-major ↔ [n / panel][k][panel], zero-padded. */
function intoPanels<A extends Words>(from: A, n: number, k: number, panel: number, to: A): A {
  for (let p = 0; p * panel < n; p++) {
    const columns = Math.min(panel, n - p * panel);
    for (let c = 0; c < columns; c++) {
      const row = (p * panel + c) * k;
      let at = p * panel * k + c;
      for (let i = 0; i < k; i++, at += panel) to[at] = from[row + i]!;
    }
  }
  return to;
}
function outOfPanels<A extends Words>(from: A, n: number, k: number, panel: number, to: A): A {
  for (let j = 0; j < n; j++) {
    const base = Math.floor(j / panel) * k * panel + (j % panel);
    for (let i = 0; i < k; i++) to[j * k + i] = from[base + i * panel]!;
  }
  return to;
}
const PIECE_BYTES = 4 * 2 ** 20;
/** Pieces of a stored matrix of a few MiB: bytes, rows, and the word where they go on a device. int8 is one piece: its scales lie after all values. */
export function* piecesOf(format: Format, n: number, k: number, panel: number): Generator<{ from: number; to: number; rows: number; at: number }> {
  if (format === "int8") return yield { from: 0, to: storedBytes(format, n, k), rows: n, at: 0 };
  const step = Math.max(1, Math.floor(PIECE_BYTES / storedBytes(format, panel, k))) * panel;
  for (let row = 0; row < n; row += step) {
    const rows = Math.min(step, n - row);
    yield { from: storedBytes(format, row, k), to: storedBytes(format, row + rows, k), rows, at: packedWords(format, row, k, panel) };
  }
}
/** Stored bytes → the words a device holds. */
export function pack(format: Format, raw: Uint8Array, n: number, k: number, panel: number): Uint32Array {
  const columns = Math.ceil(n / panel) * panel;
  const out = new Uint32Array(packedWords(format, n, k, panel));
  const part = (bytes: number): ArrayBuffer => raw.slice(0, bytes).buffer;
  if (format === "f32") intoPanels(raw.byteOffset % 4 ? new Uint32Array(part(4 * n * k)) : new Uint32Array(raw.buffer, raw.byteOffset, n * k), n, k, panel, out);
  else if (format === "f16") intoPanels(new Uint16Array(part(2 * n * k)), n, k, panel, new Uint16Array(out.buffer));
  else {
    intoPanels(raw.subarray(0, n * k), n, k, panel, new Uint8Array(out.buffer));
    intoPanels(new Uint16Array(raw.slice(n * k).buffer), n, blocksOf(k), panel, new Uint16Array(out.buffer, columns * k));
  }
  return out;
}
/** What a device holds → f32 values [n, k]. */
export function unpack(format: Format, packed: Float32Array, n: number, k: number, panel: number): Float32Array {
  const columns = Math.ceil(n / panel) * panel;
  const { buffer, byteOffset: at } = packed;
  const raw = new Uint8Array(storedBytes(format, n, k));
  if (format === "f32") outOfPanels(new Uint32Array(buffer, at, columns * k), n, k, panel, new Uint32Array(raw.buffer));
  else if (format === "f16") outOfPanels(new Uint16Array(buffer, at, columns * k), n, k, panel, new Uint16Array(raw.buffer));
  else {
    outOfPanels(new Uint8Array(buffer, at, columns * k), n, k, panel, raw);
    const scales = outOfPanels(new Uint16Array(buffer, at + columns * k, columns * blocksOf(k)), n, blocksOf(k), panel, new Uint16Array(n * blocksOf(k)));
    raw.set(new Uint8Array(scales.buffer), n * k);
  }
  return restore(format, raw, n, k);
}
