/** Where stored matrices lie: every plane of their format in panels, in a bundle and on a device. */
import { type Plane, planeBytes, termsOf, type Words } from "./formats/format.ts";
import { type Format, formatOf, weightFormats } from "./formats/index.ts";

export { type Plane, planeBytes, type WeightFormat, WGSL_PANEL, type Words } from "./formats/format.ts";
export { type Format, formatOf, formats, weightFormats } from "./formats/index.ts";

/**
 * Columns of a panel in a bundle, which are those of the CPU's kernels: there, what is read is what is
 * played. Other targets have a multiple of it.
 */
export const STORED_PANEL = 8;

/**
 * Where a plane of a matrix [n, k] lies: bytes from the matrix's start, as [panel][terms / run][panel
 * columns][run]. In a bundle a run is one term. On a GPU it is as many as a word holds: a word is one
 * column's, and what a lane reads in one go is four columns', whatever the format.
 */
export interface PlacedPlane extends Plane {
  readonly terms: number;
  readonly run: number;
  readonly from: number;
  readonly to: number;
}
/** The planes of a matrix [n, k] in panels, one after another; what is no column or term is zero. */
export function planesOf(format: string, n: number, k: number, panel: number): PlacedPlane[] {
  const columns = Math.ceil(n / panel) * panel;
  let from = 0;
  return formatOf(format).planes.map((p) => {
    const terms = termsOf(p, k);
    const run = panel === STORED_PANEL ? 1 : 4 / planeBytes(p);
    const placed = {
      ...p,
      terms,
      run,
      from,
      to: from + columns * Math.ceil(terms / run) * run * planeBytes(p),
    };
    from = placed.to;
    return placed;
  });
}
/** Words of a matrix [n, k] in panels. */
export const packedWords = (format: Format, n: number, k: number, panel: number): number =>
  planesOf(format, n, k, panel).at(-1)!.to / 4;
export const storedBytes = (format: Format, n: number, k: number): number =>
  4 * packedWords(format, n, k, STORED_PANEL);

/** A plane's numbers, in the bytes of a matrix at `at` of a buffer. */
export function numbersOf(plane: PlacedPlane, buffer: ArrayBufferLike, at: number): Words {
  const numbers = views[plane.dtype];
  return new numbers(buffer, at + plane.from, (plane.to - plane.from) / planeBytes(plane));
}
const views: Readonly<Record<Plane["dtype"], new (b: ArrayBufferLike, at: number, n: number) => Words>> = {
  F32: Uint32Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  I8: Int8Array,
  U8: Uint8Array,
};

/** Panels as a bundle has them → panels of `panel` columns, a multiple, in runs. */
function widenPanels(from: Words, n: number, { terms, run }: PlacedPlane, panel: number, to: Words): void {
  const runs = Math.ceil(terms / run);
  for (let column = 0, at = 0; column < n; column += STORED_PANEL) {
    const base = (Math.floor(column / panel) * panel * runs + (column % panel)) * run;
    for (let i = 0; i < terms; i++) {
      const out = base + Math.floor(i / run) * panel * run + (i % run);
      for (let c = 0; c < STORED_PANEL; c++) to[out + c * run] = from[at++]!;
    }
  }
}
const PIECE_BYTES = 4 * 2 ** 20;
/**
 * Pieces of a stored matrix of a few MiB, of `multiple` rows each (whole panels of a device) but the last:
 * bytes, rows, and the word where they go there. A matrix of several planes is one piece.
 */
export function* piecesOf(
  format: Format,
  n: number,
  k: number,
  panel: number,
  multiple = panel,
): Generator<{ from: number; to: number; rows: number; at: number }> {
  if (weightFormats[format].planes.length > 1)
    return yield { from: 0, to: storedBytes(format, n, k), rows: n, at: 0 };
  const step = Math.max(1, Math.floor(PIECE_BYTES / storedBytes(format, multiple, k))) * multiple;
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
/** A bundle's panels → those of a device; `rows`: in blocks of so many, one after another, the last whole. */
export function pack(
  format: Format,
  raw: Uint8Array,
  n: number,
  k: number,
  panel: number,
  rows = n,
): Uint32Array {
  const { buffer, byteOffset, length } = raw.byteOffset % 4 ? raw.slice() : raw;
  if (panel === STORED_PANEL) return new Uint32Array(buffer, byteOffset, length / 4);
  const block = packedWords(format, rows, k, panel);
  const out = new Uint32Array(Math.ceil(n / rows) * block);
  const wide = planesOf(format, rows, k, panel);
  planesOf(format, n, k, STORED_PANEL).forEach((p, i) => {
    const stored = numbersOf(p, buffer, byteOffset);
    for (let row = 0, at = 0; row < n; row += rows, at += 4 * block) {
      const to = numbersOf(wide[i]!, out.buffer, at);
      widenPanels(stored.subarray(row * p.terms), Math.min(rows, n - row), wide[i]!, panel, to);
    }
  });
  return out;
}
