/**
 * How frozen matrices are stored. A value means the same on every target and in every kernel: f16 widens
 * exactly, and int8 is q · scale, which f32 holds exactly too (7 + 11 bits), so a bundle in int8 computes
 * what a bundle in f32 of the same values does, bit for bit.
 */
import { WeftError } from "./errors.ts";
import { floatToHalf, halfToFloat } from "./safetensors.ts";

/** `int8`: blocks of 32 along a row, each with an f16 scale. */
export type Format = "f32" | "f16" | "int8";
export const formats: readonly Format[] = ["f32", "f16", "int8"];
export const INT8_BLOCK = 32;
const blocksOf = (k: number): number => Math.ceil(k / INT8_BLOCK);

/**
 * Columns of a panel in a bundle, which are those of the CPU's kernels: there, what is read is what is
 * played. Other targets have a multiple of it.
 */
export const STORED_PANEL = 8;
/**
 * Words of a matrix [n, k] in panels: [panel][k][panel columns], after them int8's scales
 * [panel][block][panel columns]; the last panel is padded with zeros.
 */
export function packedWords(format: Format, n: number, k: number, panel: number): number {
  const columns = Math.ceil(n / panel) * panel;
  return format === "f32"
    ? columns * k
    : format === "f16"
      ? (columns * k) / 2
      : (columns * k) / 4 + (columns * blocksOf(k)) / 2;
}
export const storedBytes = (format: Format, n: number, k: number): number =>
  4 * packedWords(format, n, k, STORED_PANEL);

/**
 * f32 values [n, k], the rows of a matrix from row `first` on → a bundle's panels. Throws WEFT_WEIGHTS, naming
 * the element, when f16 has no such value. int8 rounds to nearest even, scales upwards.
 */
export function store(
  format: Format,
  values: Float32Array,
  n: number,
  k: number,
  where: string,
  first = 0,
): Uint8Array {
  const columns = Math.ceil(n / STORED_PANEL) * STORED_PANEL;
  const out = new Uint8Array(storedBytes(format, n, k));
  if (format === "f32") {
    intoPanels(new Uint32Array(values.buffer, values.byteOffset, n * k), n, k, new Uint32Array(out.buffer));
    return out;
  }
  const half = (x: number, at: number): number => {
    const h = floatToHalf(x);
    if ((h & 0x7c00) === 0x7c00)
      throw new WeftError({
        code: "WEFT_WEIGHTS",
        where,
        expected: "values within the range of f16",
        found: `${x} at element ${first * k + at}`,
        hint: "compile with --format f32",
      });
    return h;
  };
  if (format === "f16") {
    intoPanels(Uint16Array.from(values, half), n, k, new Uint16Array(out.buffer));
    return out;
  }
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
  intoPanels(new Uint8Array(q.buffer), n, k, out);
  intoPanels(scales, n, blocks, new Uint16Array(out.buffer, columns * k));
  return out;
}

type Words = Int8Array | Uint8Array | Uint16Array | Uint32Array;
/** [n, k] row-major → panels. */
function intoPanels<A extends Words>(from: A, n: number, k: number, to: A): void {
  for (let p = 0; p * STORED_PANEL < n; p++) {
    const columns = Math.min(STORED_PANEL, n - p * STORED_PANEL);
    for (let c = 0; c < columns; c++) {
      const row = (p * STORED_PANEL + c) * k;
      let at = p * STORED_PANEL * k + c;
      for (let i = 0; i < k; i++, at += STORED_PANEL) to[at] = from[row + i]!;
    }
  }
}
/** Panels as a bundle has them → panels of `panel` columns, a multiple. */
function widenPanels<A extends Words>(from: A, n: number, k: number, panel: number, to: A): void {
  for (let column = 0, at = 0; column < n; column += STORED_PANEL) {
    let out = Math.floor(column / panel) * panel * k + (column % panel);
    for (let i = 0; i < k; i++, out += panel)
      for (let c = 0; c < STORED_PANEL; c++) to[out + c] = from[at++]!;
  }
}
/** Panels → [n, k] row-major. */
function outOfPanels<A extends Words>(from: A, n: number, k: number, panel: number, to: A): A {
  for (let j = 0; j < n; j++) {
    const base = Math.floor(j / panel) * k * panel + (j % panel);
    for (let i = 0; i < k; i++) to[j * k + i] = from[base + i * panel]!;
  }
  return to;
}
const PIECE_BYTES = 4 * 2 ** 20;
/**
 * Pieces of a stored matrix of a few MiB, whole panels of a device: bytes, rows, and the word where they go
 * there. int8 is one piece: its scales lie after all values.
 */
export function* piecesOf(
  format: Format,
  n: number,
  k: number,
  panel: number,
): Generator<{ from: number; to: number; rows: number; at: number }> {
  if (format === "int8") return yield { from: 0, to: storedBytes(format, n, k), rows: n, at: 0 };
  const step = Math.max(1, Math.floor(PIECE_BYTES / storedBytes(format, panel, k))) * panel;
  for (let row = 0; row < n; row += step) {
    const rows = Math.min(step, n - row);
    yield {
      from: storedBytes(format, row, k),
      to: storedBytes(format, row + rows, k),
      rows,
      at: packedWords(format, row, k, panel),
    };
  }
}
/** A bundle's panels → those of a device. */
export function pack(format: Format, raw: Uint8Array, n: number, k: number, panel: number): Uint32Array {
  const stored = raw.byteOffset % 4 ? raw.slice() : raw;
  const whole = new Uint32Array(stored.buffer, stored.byteOffset, stored.length / 4);
  if (panel === STORED_PANEL) return whole;
  const out = new Uint32Array(packedWords(format, n, k, panel));
  if (format === "f32") widenPanels(whole, n, k, panel, out);
  else if (format === "f16")
    widenPanels(
      new Uint16Array(stored.buffer, stored.byteOffset, stored.length / 2),
      n,
      k,
      panel,
      new Uint16Array(out.buffer),
    );
  else {
    const values = Math.ceil(n / STORED_PANEL) * STORED_PANEL * k;
    widenPanels(stored, n, k, panel, new Uint8Array(out.buffer));
    widenPanels(
      new Uint16Array(stored.buffer, stored.byteOffset + values, (stored.length - values) / 2),
      n,
      blocksOf(k),
      panel,
      new Uint16Array(out.buffer, Math.ceil(n / panel) * panel * k),
    );
  }
  return out;
}
/** Panels (a bundle's, or a device's) → f32 values [n, k]. */
export function unpack(
  format: Format,
  packed: Uint8Array | Float32Array,
  n: number,
  k: number,
  panel: number,
): Float32Array {
  const columns = Math.ceil(n / panel) * panel;
  const { buffer, byteOffset: at } = packed.byteOffset % 4 ? packed.slice() : packed;
  const values = new Float32Array(n * k);
  if (format === "f32") {
    outOfPanels(new Uint32Array(buffer, at, columns * k), n, k, panel, new Uint32Array(values.buffer));
    return values;
  }
  if (format === "f16")
    return Float32Array.from(
      outOfPanels(new Uint16Array(buffer, at, columns * k), n, k, panel, new Uint16Array(n * k)),
      halfToFloat,
    );
  const blocks = blocksOf(k);
  const q = outOfPanels(new Int8Array(buffer, at, columns * k), n, k, panel, new Int8Array(n * k));
  const scales = Float32Array.from(
    outOfPanels(
      new Uint16Array(buffer, at + columns * k, columns * blocks),
      n,
      blocks,
      panel,
      new Uint16Array(n * blocks),
    ),
    halfToFloat,
  );
  return values.map((_, i) => q[i]! * scales[Math.floor(i / k) * blocks + Math.floor((i % k) / INT8_BLOCK)]!);
}
/** A bundle's panels → f32 values [n, k]. */
export const restore = (format: Format, raw: Uint8Array, n: number, k: number): Float32Array =>
  unpack(format, raw, n, k, STORED_PANEL);
