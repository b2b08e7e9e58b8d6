/**
 * The header of a GGUF file, walked before it is parsed: every count and length in it must fit the bytes that
 * follow, so that what the parser allocates is bounded by the file. Nothing is kept.
 */
import { WeftError } from "../../runtime/bundle.ts";

/** Bytes of a value by GGUF's type number; strings and arrays say theirs. */
const sizes: Readonly<Record<number, number>> = {
  0: 1,
  1: 1,
  2: 2,
  3: 2,
  4: 4,
  5: 4,
  6: 4,
  7: 1,
  10: 8,
  11: 8,
  12: 8,
};
const [STRING, ARRAY] = [8, 9];
/** Least bytes of a tensor's entry: an empty name, no dimensions, type and offset. */
const TENSOR = 8 + 4 + 4 + 8;
/** Least bytes of a key and its value. */
const PAIR = 8 + 4 + 1;
const PIECE = 1 << 20;

/** Throws WEFT_WEIGHTS for a file that is not GGUF, or whose header does not fit it. */
export function checkContainer(
  read: (from: number, to: number) => Uint8Array,
  bytes: number,
  where: string,
): void {
  const fail = (expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_WEIGHTS", where, expected, found, hint: "truncated, or not GGUF" });
  };
  let at = 0;
  let piece: DataView = new DataView(new ArrayBuffer(0));
  let start = 0;
  const need = (n: number, what: string): void => {
    if (!(n <= bytes - at)) fail(`${what} inside the file (${bytes} bytes)`, `${n} bytes at ${at}`);
  };
  /** A view of the next `n` (at most eight) bytes. */
  const next = (n: number, what: string): DataView => {
    need(n, what);
    if (at < start || at + n > start + piece.byteLength) {
      const raw = read(at, Math.min(bytes, at + PIECE));
      piece = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
      start = at;
    }
    at += n;
    return new DataView(piece.buffer, piece.byteOffset + at - n - start, n);
  };
  const u32 = (what: string): number => next(4, what).getUint32(0, true);
  const u64 = (what: string): number => Number(next(8, what).getBigUint64(0, true));
  const skip = (n: number, what: string): void => {
    need(n, what);
    at += n;
  };
  const value = (type: number, depth: number): void => {
    if (type === STRING) skip(u64("a string's length"), "a string");
    else if (type === ARRAY) {
      if (depth > 2) fail("arrays of at most two levels", "more");
      const of = u32("an array's type");
      const length = u64("an array's length");
      const each = sizes[of];
      need(length * (each ?? 8), "an array");
      if (each) at += length * each;
      else for (let i = 0; i < length; i++) value(of, depth + 1);
    } else skip(sizes[type] ?? fail("a known type of value", String(type)), "a value");
  };

  if (u32("GGUF") !== 0x46554747) fail("a file that begins with GGUF", "another");
  const version = u32("a version");
  if (version !== 2 && version !== 3) fail("version 2 or 3", String(version));
  const tensors = u64("a count of tensors");
  const pairs = u64("a count of keys");
  need(tensors * TENSOR + pairs * PAIR, `a header of ${tensors} tensors and ${pairs} keys`);
  for (let i = 0; i < pairs; i++) {
    skip(u64("a key's length"), "a key");
    value(u32("a value's type"), 0);
  }
  for (let i = 0; i < tensors; i++) {
    skip(u64("a tensor's name"), "a tensor's name");
    const dimensions = u32("a tensor's dimensions");
    if (dimensions > 4) fail("tensors of at most four dimensions", String(dimensions));
    skip(dimensions * 8 + 4, "a tensor's shape");
    if (u64("a tensor's offset") > bytes) fail(`offsets below ${bytes}`, "a tensor beyond the file");
  }
}
