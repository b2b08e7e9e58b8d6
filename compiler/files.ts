/** The compiler's only door to the file system. */
import { createHash } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, readSync, renameSync, rmSync, statSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { WeftError } from "../runtime/bundle.ts";

export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new WeftError({ code: "WEFT_IO", where: path, expected: "a readable file", found: (cause as Error).message, cause });
  }
}
export const exists = (path: string): boolean => existsSync(path);
export const sizeOf = (path: string): number => statSync(path).size;
export function readRange(path: string, start: number, end: number): Uint8Array {
  const fd = openSync(path, "r");
  try {
    const out = new Uint8Array(end - start);
    let at = 0;
    while (at < out.length) {
      const n = readSync(fd, out, at, out.length - at, start + at);
      if (n <= 0) throw new WeftError({ code: "WEFT_WEIGHTS", where: path, expected: `bytes up to ${end}`, found: `end of file at ${start + at}` });
      at += n;
    }
    return out;
  } finally {
    closeSync(fd);
  }
}
export const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");

function writeSynced(path: string, bytes: Uint8Array): void {
  mkdirSync(dirname(path), { recursive: true });
  const fd = openSync(path, "w");
  try {
    let at = 0;
    while (at < bytes.length) at += writeSync(fd, bytes, at);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Write a folder of files as a whole: into a sibling first, then renamed over the old one. Nothing half-written is ever at `dir`. */
export function writeFolder(dir: string, files: ReadonlyMap<string, Uint8Array>): void {
  const temporary = `${dir}.partial-${process.pid}`;
  rmSync(temporary, { recursive: true, force: true });
  try {
    for (const [name, bytes] of files) writeSynced(join(temporary, name), bytes);
    const old = `${dir}.old-${process.pid}`;
    if (existsSync(dir)) renameSync(dir, old);
    renameSync(temporary, dir);
    rmSync(old, { recursive: true, force: true });
  } catch (cause) {
    rmSync(temporary, { recursive: true, force: true });
    if (cause instanceof WeftError) throw cause;
    throw new WeftError({ code: "WEFT_IO", where: dir, expected: "a writable folder", found: (cause as Error).message, cause });
  }
}
