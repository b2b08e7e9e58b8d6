/** The SDK's files in Node: whole folders replaced at once, nothing half-written. */
import { WeftError } from "../runtime/bundle.ts";

export async function readFileOr(path: string, code: "WEFT_ADAPTER" | "WEFT_DATA" | "WEFT_IO"): Promise<Uint8Array> {
  const { readFile } = await import("node:fs/promises");
  try {
    return new Uint8Array(await readFile(path));
  } catch (cause) {
    throw new WeftError({ code, where: path, expected: "a readable file", found: (cause as Error).message, cause });
  }
}
export const decodeText = (b: Uint8Array): string => new TextDecoder().decode(b);
export function parseJson(bytes: Uint8Array, where: string): Record<string, unknown> {
  try {
    return JSON.parse(decodeText(bytes)) as Record<string, unknown>;
  } catch (cause) {
    throw new WeftError({ code: "WEFT_ADAPTER", where, expected: "JSON", found: (cause as Error).message, cause });
  }
}
/** Write all files beside `dir`, sync them, then swap: at any moment `dir` is the old folder or the new one. */
export async function writeFolder(dir: string, files: Readonly<Record<string, Uint8Array | string>>): Promise<void> {
  const { mkdir, open, rename, rm } = await import("node:fs/promises");
  const { dirname, join } = await import("node:path");
  const temporary = `${dir}.partial-${process.pid}-${Date.now()}`;
  const old = `${dir}.old-${process.pid}-${Date.now()}`;
  try {
    await mkdir(dirname(temporary), { recursive: true });
    await mkdir(temporary);
    for (const [name, data] of Object.entries(files)) {
      const file = await open(join(temporary, name), "w");
      try {
        await file.writeFile(data);
        await file.sync();
      } finally {
        await file.close();
      }
    }
    await rename(dir, old).catch((e: NodeJS.ErrnoException) => {
      if (e.code !== "ENOENT") throw e;
    });
    await rename(temporary, dir);
    await rm(old, { recursive: true, force: true });
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true });
    if (cause instanceof WeftError) throw cause;
    throw new WeftError({ code: "WEFT_IO", where: dir, expected: "a writable folder", found: (cause as Error).message, cause });
  }
}
