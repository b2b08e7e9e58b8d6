/** The SDK's files in Node. */
import { WeftError } from "../runtime/bundle.ts";
import { readFromFolder } from "../runtime/folder.ts";

export async function readFileOr(
  path: string,
  code: "WEFT_ADAPTER" | "WEFT_DATA" | "WEFT_IO",
): Promise<Uint8Array> {
  try {
    return await readFromFolder(path);
  } catch (cause) {
    throw new WeftError({
      code,
      where: path,
      expected: "a readable file",
      found: (cause as Error).message,
      cause,
    });
  }
}
export const decodeText = (b: Uint8Array): string => new TextDecoder().decode(b);
export function parseJson(bytes: Uint8Array, where: string): Record<string, unknown> {
  try {
    return JSON.parse(decodeText(bytes)) as Record<string, unknown>;
  } catch (cause) {
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where,
      expected: "JSON",
      found: (cause as Error).message,
      cause,
    });
  }
}
/** Run `f` on a new empty folder, which is removed afterwards. */
export async function withTemporaryFolder<T>(f: (folder: string) => Promise<T>): Promise<T> {
  const { mkdtemp, rm } = await import("node:fs/promises");
  const { tmpdir } = await import("node:os");
  const { join } = await import("node:path");
  const folder = await mkdtemp(join(tmpdir(), "weft-"));
  try {
    return await f(join(folder, "bundle"));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
