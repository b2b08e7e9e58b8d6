/** What the compiler reads from the file system. */
import { createHash } from "node:crypto";
import { closeSync, constants, existsSync, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { showBytes, WeftError } from "../runtime/bundle.ts";
import { ONE_READ } from "../runtime/disk.ts";

/** A text of more is none that a model folder has. */
const TEXT_BYTES = 64 * 2 ** 20;

/**
 * Run `read` on an open file. Only a regular one, or a link to one (the caches of Hugging Face are links), is
 * opened: a pipe would wait for its writer, a device may never end. Throws WEFT_IO for anything else.
 */
function withRegular<T>(path: string, read: (fd: number) => T): T {
  const refuse = (expected: string, found: string, cause?: unknown): never => {
    throw new WeftError({ code: "WEFT_IO", where: path, expected, found, ...(cause ? { cause } : {}) });
  };
  let fd = -1;
  try {
    fd = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    if (!fstatSync(fd).isFile()) refuse("a regular file", "a folder, a pipe or a device");
    return read(fd);
  } catch (cause) {
    if (cause instanceof WeftError) throw cause;
    return refuse("a readable file", (cause as Error).message, cause);
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}
export const readText = (path: string): string =>
  withRegular(path, (fd) => {
    const { size } = fstatSync(fd);
    if (size > TEXT_BYTES)
      throw new WeftError({
        code: "WEFT_IO",
        where: path,
        expected: `a text of at most ${showBytes(TEXT_BYTES, Math.floor)}`,
        found: showBytes(size, Math.ceil),
      });
    return readFileSync(fd, "utf8");
  });
/** A file of JSON. Throws `code` for what is none. */
export function readJson(path: string, code: "WEFT_CONFIG" | "WEFT_WEIGHTS" | "WEFT_TOKENIZER"): unknown {
  const text = readText(path);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new WeftError({ code, where: path, expected: "JSON", found: (cause as Error).message, cause });
  }
}
/** A text file of the compiler's own, beside the module `from`. */
export const readBeside = (from: string, path: string): string => readFileSync(new URL(path, from), "utf8");
export const exists = (path: string): boolean => existsSync(path);
export const sizeOf = (path: string): number => withRegular(path, (fd) => fstatSync(fd).size);
export const readRange = (path: string, start: number, end: number): Uint8Array =>
  withRegular(path, (fd) => {
    const out = new Uint8Array(end - start);
    let at = 0;
    while (at < out.length) {
      const n = readSync(fd, out, at, Math.min(out.length - at, ONE_READ), start + at);
      if (n <= 0)
        throw new WeftError({
          code: "WEFT_WEIGHTS",
          where: path,
          expected: `bytes up to ${end}`,
          found: `end of file at ${start + at}`,
        });
      at += n;
    }
    return out;
  });
/** SHA-256 in hexadecimal of what comes in pieces. */
export function hasher(): { update: (piece: Uint8Array | string) => void; digest: () => string } {
  const hash = createHash("sha256");
  return { update: (piece) => void hash.update(piece), digest: () => hash.digest("hex") };
}
export const sha256 = (bytes: Uint8Array | string): string =>
  createHash("sha256").update(bytes).digest("hex");

/** A file of a bundle on its way: whole, or in pieces. */
export type BundleFile = readonly [name: string, content: Uint8Array | AsyncIterable<Uint8Array>];
