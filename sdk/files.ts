/** The SDK's files in Node. */
import { WeftError } from "../runtime/bundle.ts";
import { readRegular } from "../runtime/disk.ts";
import { node } from "../runtime/node.ts";
import type { TensorData } from "../runtime/safetensors.ts";
import { check, foreign } from "../runtime/schema.ts";

/** What a single file that nothing describes may have: rows of data, a shard of a model. */
const LARGE_FILE = 16 * 2 ** 30;
/** A regular file that the user names. Throws `code`. */
export const readFileOr = (
  path: string,
  code: "WEFT_ADAPTER" | "WEFT_DATA" | "WEFT_IO",
): Promise<Uint8Array> => readRegular(path, LARGE_FILE, { code });
/** Is a path that of a GGUF file, and not of a folder? */
export const isGguf = (path: unknown): path is string => typeof path === "string" && path.endsWith(".gguf");
export const decodeText = (b: Uint8Array): string => new TextDecoder().decode(b);
export function parseJson(bytes: Uint8Array, where: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(decodeText(bytes));
  } catch (cause) {
    throw new WeftError({
      code: "WEFT_ADAPTER",
      where,
      expected: "JSON",
      found: (cause as Error).message,
      cause,
    });
  }
  return check(foreign({}), json, { code: "WEFT_ADAPTER", where });
}
/** Run `f` on a new empty folder, which is removed afterwards. */
export async function withTemporaryFolder<T>(f: (folder: string) => Promise<T>): Promise<T> {
  const { fs, os, path } = await node();
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "weft-"));
  try {
    return await f(path.join(folder, "bundle"));
  } finally {
    await fs.rm(folder, { recursive: true, force: true });
  }
}
/** A safetensors file with these tensors, in the order given. */
export async function encodeSafetensors(
  tensors: readonly TensorData[],
  metadata?: Readonly<Record<string, string>>,
): Promise<Uint8Array> {
  const { encode } = await import("../runtime/safetensors.ts");
  return encode(tensors, metadata);
}
