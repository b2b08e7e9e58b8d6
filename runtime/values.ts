/** Stored matrices as values: read, written, and what rounding took. */
import { WeftError } from "./errors.ts";
import { formatValues } from "./formats/values.ts";
import {
  type Format,
  numbersOf,
  type PlacedPlane,
  packedWords,
  planesOf,
  STORED_PANEL,
  storedBytes,
  type Words,
} from "./formats.ts";

export { formatValues } from "./formats/values.ts";

/**
 * f32 values [n, k], the rows of a matrix from row `first` on → a bundle's panels. Throws WEFT_WEIGHTS,
 * naming the element, when the format has no such value.
 */
export function store(
  format: Format,
  values: Float32Array,
  n: number,
  k: number,
  where: string,
  first = 0,
): Uint8Array {
  const planes = formatValues[format].encode(values, n, k, (at, expected) => {
    throw new WeftError({
      code: "WEFT_WEIGHTS",
      where,
      expected,
      found: `${values[at]} at element ${first * k + at}`,
      hint: "compile with --format f32",
    });
  });
  return storePlanes(format, planes, n, k);
}
/** The numbers of each plane of a matrix [n, k], row by row → a bundle's panels. */
export function storePlanes(format: Format, planes: readonly Words[], n: number, k: number): Uint8Array {
  const out = new Uint8Array(storedBytes(format, n, k));
  planesOf(format, n, k, STORED_PANEL).forEach((p, i) => {
    intoPanels(planes[i]!, n, p.terms, numbersOf(p, out.buffer, 0));
  });
  return out;
}

/** What rounding took: the squared error, and the squares of the values that it is of. */
export interface Rounding {
  readonly error: number;
  readonly squares: number;
}
/** What was taken of `values` to make them `kept`. */
export function roundedTo(kept: Float32Array, values: Float32Array): Rounding {
  let [error, squares] = [0, 0];
  for (let i = 0; i < kept.length; i++) {
    error += (kept[i]! - values[i]!) ** 2;
    squares += values[i]! ** 2;
  }
  return { error, squares };
}
/** Of several: root of the squared error by the squares. 0: nothing was rounded. */
export function roundingOf(all: readonly Rounding[]): number {
  let [error, squares] = [0, 0];
  for (const r of all) {
    error += r.error;
    squares += r.squares;
  }
  return Math.sqrt(error / (squares || 1));
}
/**
 * A bundle's panels of a matrix [n, k] with the values that `change` makes of its own; rows that it leaves
 * alone keep their numbers, whatever the format. Throws as `store`.
 */
export function changed(
  format: Format,
  raw: Uint8Array,
  n: number,
  k: number,
  change: (values: Float32Array) => void,
  where: string,
): { readonly stored: Uint8Array; readonly rounding: Rounding } {
  const before = restore(format, raw, n, k);
  const values = before.slice();
  change(values);
  const stored = store(format, values, n, k, where);
  const rows = Array.from({ length: n }, (_, row) => row);
  const same = (row: number): boolean => {
    for (let i = row * k; i < (row + 1) * k; i++) if (values[i] !== before[i]) return false;
    return true;
  };
  keepRows(format, stored, raw, n, k, rows.filter(same));
  return { stored, rounding: roundedTo(restore(format, stored, n, k), values) };
}
/** The numbers of some rows as `from` has them. */
function keepRows(
  format: Format,
  to: Uint8Array,
  from: Uint8Array,
  n: number,
  k: number,
  rows: readonly number[],
): void {
  const raw = from.slice();
  for (const p of planesOf(format, n, k, STORED_PANEL)) {
    const [out, old] = [numbersOf(p, to.buffer, 0), numbersOf(p, raw.buffer, 0)];
    for (const row of rows) {
      const panel = Math.floor(row / STORED_PANEL) * p.terms * STORED_PANEL + (row % STORED_PANEL);
      for (let t = 0; t < p.terms; t++) out[panel + t * STORED_PANEL] = old[panel + t * STORED_PANEL]!;
    }
  }
}
/** [n, k] row-major → panels. */
function intoPanels(from: Words, n: number, k: number, to: Words): void {
  for (let p = 0; p * STORED_PANEL < n; p++) {
    const columns = Math.min(STORED_PANEL, n - p * STORED_PANEL);
    for (let c = 0; c < columns; c++) {
      const row = (p * STORED_PANEL + c) * k;
      let at = p * STORED_PANEL * k + c;
      for (let i = 0; i < k; i++, at += STORED_PANEL) to[at] = from[row + i]!;
    }
  }
}
/** Panels → [n, terms] row-major. */
function outOfPanels(from: Words, n: number, { terms, run }: PlacedPlane, panel: number): Words {
  const runs = Math.ceil(terms / run);
  const to = new (from.constructor as new (length: number) => Words)(n * terms);
  for (let j = 0; j < n; j++) {
    const base = (Math.floor(j / panel) * panel * runs + (j % panel)) * run;
    for (let i = 0; i < terms; i++)
      to[j * terms + i] = from[base + Math.floor(i / run) * panel * run + (i % run)]!;
  }
  return to;
}
/** Panels (a bundle's, or a device's, in blocks of `rows` rows) → the numbers of each plane, row by row. */
export function unpackPlanes(
  format: Format,
  packed: Uint8Array | Float32Array,
  n: number,
  k: number,
  panel: number,
  rows = n,
): readonly Words[] {
  const { buffer, byteOffset } = packed.byteOffset % 4 ? packed.slice() : packed;
  const block = 4 * packedWords(format, rows, k, panel);
  return planesOf(format, rows, k, panel).map((p) => {
    const parts = Array.from({ length: Math.ceil(n / rows) }, (_, i) =>
      outOfPanels(numbersOf(p, buffer, byteOffset + i * block), Math.min(rows, n - i * rows), p, panel),
    );
    if (parts.length === 1) return parts[0]!;
    const all = new (parts[0]!.constructor as new (length: number) => Words)(n * p.terms);
    parts.forEach((part, i) => all.set(part, i * rows * p.terms));
    return all;
  });
}
/** Panels (a bundle's, or a device's, in blocks of `rows` rows) → f32 values [n, k]. */
export const unpack = (
  format: Format,
  packed: Uint8Array | Float32Array,
  n: number,
  k: number,
  panel: number,
  rows = n,
): Float32Array => formatValues[format].decode(unpackPlanes(format, packed, n, k, panel, rows), n, k);
/** A bundle's panels → f32 values [n, k]. */
export const restore = (format: Format, raw: Uint8Array, n: number, k: number): Float32Array =>
  unpack(format, raw, n, k, STORED_PANEL);
