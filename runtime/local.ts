/** A bundle in a folder of this machine. */
import { WeftError } from "./bundle.ts";
import { isMissing, readAndClose, readRange } from "./disk.ts";
import { openFolder } from "./folder.ts";
import { checkName } from "./names.ts";
import { node } from "./node.ts";
import type { BundleReader } from "./reader.ts";
import { SMALL_FILE } from "./schema.ts";

/** The address that `text` is; null for a folder. */
export const urlOf = (text: string): URL | null => (/^https?:/i.test(text) ? new URL(text) : null);

/** How much of a large file is in memory at once, where no range is larger. */
const PIECE = 2 ** 20;

/** A reader of the folder that `text` names: a path, or a file: address. */
export async function openLocal(text: string): Promise<BundleReader> {
  const { path, crypto, url } = await node();
  const folder = text.startsWith("file:") ? url.fileURLToPath(text) : text;
  // Merges read weights again later, when the process may stand in another folder.
  const opened = openFolder(path.resolve(folder), "WEFT_BUNDLE");
  // Errors of a file that is there name what it is; one that is missing may be no bundle at all.
  const open = async (name: string, limit: number) => {
    checkName(name);
    return opened.open(name, limit).catch((cause: unknown) => {
      if (!isMissing(cause)) throw cause;
      throw new WeftError({
        code: "WEFT_BUNDLE",
        where: path.join(folder, name),
        expected: "a file of the bundle",
        found: "none",
        hint: "compile the model with `weft compile`",
        cause,
      });
    });
  };
  const unreadable = (name: string) => (cause: Error) => {
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: path.join(folder, name),
      expected: "a readable file",
      found: cause.message,
      cause,
    });
  };
  // Of one file after another: what is made anew for each piece is garbage for long.
  let spare: Uint8Array<ArrayBuffer> | null = null;
  return {
    where: folder,
    read: async (name, limit = SMALL_FILE) => readAndClose(await open(name, limit)).catch(unreadable(name)),
    open: async (name, limit) => {
      const file = await open(name, limit);
      try {
        const hash = crypto.createHash("sha256");
        const piece = spare ?? new Uint8Array(PIECE);
        spare = null;
        for (let at = 0; at < file.bytes; at += PIECE)
          hash.update(await readRange(file, at, Math.min(file.bytes, at + PIECE), piece));
        return {
          bytes: file.bytes,
          sha256: hash.digest("hex"),
          range: (from, to) => readRange(file, from, to, to - from > PIECE ? undefined : piece),
          close: () => {
            spare = piece;
            return file.handle.close();
          },
        };
      } catch (e) {
        await file.handle.close();
        return unreadable(name)(e as Error);
      }
    },
  };
}
