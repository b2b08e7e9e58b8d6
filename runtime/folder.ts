/**
 * Folders that are replaced as a whole. A new one is written and synced beside the old one, becomes `DIR.new` when it is complete, and then takes its
 * place in two renames; who finds neither old nor new between them (the writer was killed) finishes the second.
 */
import { WeftError } from "./bundle.ts";
import type { RangeFile } from "./reader.ts";

/** Replace `dir` by these files. At any moment a reader finds all of the old folder or all of the new one. Throws WEFT_IO; the old one is kept then. */
export async function writeFolder(
  dir: string,
  files: Iterable<readonly [string, Uint8Array | string]>,
): Promise<void> {
  const { mkdir, open, rename, rm } = await import("node:fs/promises");
  const { dirname, join } = await import("node:path");
  const mark = `${process.pid}-${Date.now()}`;
  const partial = `${dir}.partial-${mark}`;
  const old = `${dir}.old-${mark}`;
  try {
    await settle(dir);
    for (const [name, data] of files) {
      const path = join(partial, name);
      await mkdir(dirname(path), { recursive: true });
      const file = await open(path, "w");
      try {
        await file.writeFile(data);
        await file.sync();
      } finally {
        await file.close();
      }
    }
    await rm(`${dir}.new`, { recursive: true, force: true });
    await rename(partial, `${dir}.new`);
    await rename(dir, old).catch((e: NodeJS.ErrnoException) => {
      if (e.code !== "ENOENT") throw e;
    });
    await settle(dir);
    await rm(old, { recursive: true, force: true });
  } catch (cause) {
    await rm(partial, { recursive: true, force: true });
    if (cause instanceof WeftError) throw cause;
    throw new WeftError({
      code: "WEFT_IO",
      where: dir,
      expected: "a writable folder",
      found: (cause as Error).message,
      cause,
    });
  }
}
/** Put a complete `dir.new` where `dir` is missing. */
async function settle(dir: string): Promise<void> {
  const { access, rename } = await import("node:fs/promises");
  const there = (path: string): Promise<boolean> =>
    access(path).then(
      () => true,
      () => false,
    );
  if (await there(dir)) return;
  await rename(`${dir}.new`, dir).catch(async (e: NodeJS.ErrnoException) => {
    // Nothing to settle, or another process was faster.
    if (e.code !== "ENOENT" && !(await there(dir))) throw e;
  });
}
/** A file of such a folder. Throws what the file system throws. */
export async function readFromFolder(path: string): Promise<Uint8Array> {
  const { readFile } = await import("node:fs/promises");
  const { dirname } = await import("node:path");
  // The same memory, without what Buffer adds.
  const read = async (): Promise<Uint8Array> => {
    const { buffer, byteOffset, byteLength } = await readFile(path);
    return new Uint8Array(buffer, byteOffset, byteLength);
  };
  return read().catch(async (e: NodeJS.ErrnoException) => {
    if (e.code !== "ENOENT") throw e;
    await settle(dirname(path));
    return read();
  });
}

const PIECE = 8 * 2 ** 20;
/** A file of such a folder, read through once for its hash and then by ranges: never as a whole in memory. */
export async function openInFolder(path: string): Promise<RangeFile> {
  const { open } = await import("node:fs/promises");
  const { createHash } = await import("node:crypto");
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    const range = async (from: number, to: number, into = new Uint8Array(to - from)): Promise<Uint8Array> => {
      let at = 0;
      while (at < to - from) {
        const { bytesRead } = await file.read(into, at, to - from - at, from + at);
        if (!bytesRead) throw new Error(`the file ends at byte ${from + at}`);
        at += bytesRead;
      }
      return into.subarray(0, to - from);
    };
    const hash = createHash("sha256");
    const piece = new Uint8Array(PIECE);
    for (let at = 0; at < size; at += PIECE) hash.update(await range(at, Math.min(size, at + PIECE), piece));
    return {
      bytes: size,
      sha256: hash.digest("hex"),
      range: (from, to) => range(from, to),
      close: () => file.close(),
    };
  } catch (e) {
    await file.close();
    throw e;
  }
}
