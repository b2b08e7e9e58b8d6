/** The SDK's files in Node. */
import { WeftError } from "../runtime/bundle.ts";
import { readRegular } from "../runtime/disk.ts";

/** What a single file that nothing describes may have: rows of data, a shard of a model. */
const LARGE_FILE = 16 * 2 ** 30;
/** A regular file that the user names. Throws `code`. */
export const readFileOr = (
  path: string,
  code: "WEFT_ADAPTER" | "WEFT_DATA" | "WEFT_IO",
): Promise<Uint8Array> => readRegular(path, LARGE_FILE, { code });
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
