/** Where stored matrices lie: every plane of their format in panels, in a bundle and on a device. */
import { type Plane, planeBytes, termsOf, type Words } from "./formats/format.ts";
import { type Format, formatOf } from "./formats/index.ts";

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
const PIECE_BYTES = 2 ** 20;
/** Whole rows of a plane of a stored matrix: their bytes in it, and the word where they go on a device. */
interface Piece {
  readonly plane: number;
  readonly from: number;
  readonly to: number;
  readonly rows: number;
  readonly at: number;
}
/**
 * A stored matrix in pieces of a MiB, or of a panel where that is more. On the device it lies in blocks of
 * `block` rows (all, or whole panels), one after another, the last with room for as many.
 */
export function* piecesOf(
  format: Format,
  n: number,
  k: number,
  panel: number,
  block = n,
): Generator<Piece, void, void> {
  const placed = planesOf(format, block, k, panel);
  for (const [plane, stored] of planesOf(format, n, k, STORED_PANEL).entries()) {
    const { run, from } = placed[plane]!;
    const row = stored.terms * planeBytes(stored);
    const wide = Math.ceil(stored.terms / run) * run * planeBytes(stored);
    const step = Math.max(1, Math.floor(PIECE_BYTES / (panel * row))) * panel;
    for (let first = 0, rows = 0; first < n; first += rows) {
      const inside = first % block;
      rows = Math.min(step, n - first, block - inside);
      const columns = Math.ceil(rows / STORED_PANEL) * STORED_PANEL;
      yield {
        plane,
        from: stored.from + first * row,
        to: stored.from + (first + columns) * row,
        rows,
        at: (((first - inside) / block) * placed.at(-1)!.to + from + inside * wide) / 4,
      };
    }
  }
}
/** A piece as a bundle has it → as a device does. */
export function packPiece(
  format: Format,
  { plane, rows }: Pick<Piece, "plane" | "rows">,
  raw: Uint8Array,
  k: number,
  panel: number,
): Uint32Array {
  const { buffer, byteOffset, length } = raw.byteOffset % 4 ? raw.slice() : raw;
  if (panel === STORED_PANEL) return new Uint32Array(buffer, byteOffset, length / 4);
  const p = planesOf(format, rows, k, panel)[plane]!;
  const numbers = views[p.dtype];
  const out = new Uint32Array((p.to - p.from) / 4);
  const stored = new numbers(buffer, byteOffset, length / planeBytes(p));
  widenPanels(stored, rows, p, panel, new numbers(out.buffer, 0, out.byteLength / planeBytes(p)));
  return out;
}
/** A matrix as a bundle has it → as a device does. */
export function pack(
  format: Format,
  raw: Uint8Array,
  n: number,
  k: number,
  panel: number,
  block = n,
): Uint32Array {
  const out = new Uint32Array(Math.ceil(n / block) * packedWords(format, block, k, panel));
  for (const piece of piecesOf(format, n, k, panel, block))
    out.set(packPiece(format, piece, raw.subarray(piece.from, piece.to), k, panel), piece.at);
  return out;
}
