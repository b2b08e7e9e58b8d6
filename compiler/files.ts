/** What the compiler reads from the file system. */
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { WeftError } from "../runtime/bundle.ts";

export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new WeftError({
      code: "WEFT_IO",
      where: path,
      expected: "a readable file",
      found: (cause as Error).message,
      cause,
    });
  }
}
/** A text file of the compiler's own, beside the module `from`. */
export const readBeside = (from: string, path: string): string => readFileSync(new URL(path, from), "utf8");
export const exists = (path: string): boolean => existsSync(path);
export const sizeOf = (path: string): number => statSync(path).size;
export function readRange(path: string, start: number, end: number): Uint8Array {
  const fd = openSync(path, "r");
  try {
    const out = new Uint8Array(end - start);
    let at = 0;
    while (at < out.length) {
      const n = readSync(fd, out, at, out.length - at, start + at);
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
  } finally {
    closeSync(fd);
  }
}
export const sha256 = (bytes: Uint8Array | string): string =>
  createHash("sha256").update(bytes).digest("hex");
