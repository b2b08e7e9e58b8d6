/** Where a bundle is read from: a folder or an HTTP(S) address. The runtime's only door to files. */
import { WeftError } from "./bundle.ts";
import { isMissing, node, readAndClose, readRange, SMALL_FILE } from "./disk.ts";
import { openFolder } from "./folder.ts";

export { sha256 } from "./hash.ts";

export interface BundleReader {
  readonly where: string;
  /** A whole file of the bundle, of at most `limit` bytes where its size is declared. */
  readonly read: (name: string, limit?: number) => Promise<Uint8Array>;
  /**
   * A large file in pieces, where that can be: its size and SHA-256, read through once, and any range of it.
   */
  readonly open?: (name: string, limit: number) => Promise<RangeFile>;
}
export interface RangeFile {
  readonly bytes: number;
  readonly sha256: string;
  readonly range: (from: number, to: number) => Promise<Uint8Array>;
  readonly close: () => Promise<void>;
}

/** Names inside a bundle stay inside it. */
export function checkName(name: string): void {
  if (
    name.startsWith("/") ||
    name.includes("\\") ||
    name.split("/").some((p) => p === "" || p === "." || p === "..") ||
    /^[a-z]+:/i.test(name)
  )
    throw new WeftError({
      code: "WEFT_BUNDLE",
      where: `manifest file ${JSON.stringify(name)}`,
      expected: "a path inside the bundle",
      found: "a path that leaves it",
    });
}

/** How much of a large file is in memory while it is hashed. */
const PIECE = 8 * 2 ** 20;

/** What a server sends, of at most `limit` bytes. Throws WEFT_IO, and WEFT_BUNDLE for more. */
async function readResponse(url: URL, where: string, limit: number): Promise<Uint8Array> {
  const broken = (cause: Error): never => {
    const found = cause.message;
    throw new WeftError({ code: "WEFT_IO", where, expected: "a response", found, retryable: true, cause });
  };
  const response = await fetch(url).catch(broken);
  if (!response.ok)
    throw new WeftError({ code: "WEFT_IO", where, expected: "200", found: String(response.status) });
  const body = response.body?.getReader();
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for (;;) {
    const piece = await body?.read().catch(broken);
    if (!piece || piece.done) break;
    bytes += piece.value.length;
    if (bytes > limit) {
      await body!.cancel().catch(() => {});
      const expected = `at most ${limit} bytes`;
      throw new WeftError({ code: "WEFT_BUNDLE", where, expected, found: "more" });
    }
    pieces.push(piece.value);
  }
  const out = new Uint8Array(bytes);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

export async function openReader(location: string | URL): Promise<BundleReader> {
  const text = String(location);
  if (/^https?:/.test(text)) {
    const base = text.endsWith("/") ? text : `${text}/`;
    return {
      where: text,
      read: async (name, limit = SMALL_FILE) => {
        checkName(name);
        return readResponse(new URL(name, base), `${base}${name}`, limit);
      },
    };
  }
  const { fileURLToPath } = await import("node:url");
  const { path, crypto } = await node();
  const folder = text.startsWith("file:") ? fileURLToPath(text) : text;
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
  return {
    where: folder,
    read: async (name, limit = SMALL_FILE) => readAndClose(await open(name, limit)).catch(unreadable(name)),
    open: async (name, limit) => {
      const file = await open(name, limit);
      try {
        const hash = crypto.createHash("sha256");
        const piece = new Uint8Array(PIECE);
        for (let at = 0; at < file.bytes; at += PIECE)
          hash.update(await readRange(file, at, Math.min(file.bytes, at + PIECE), piece));
        return {
          bytes: file.bytes,
          sha256: hash.digest("hex"),
          range: (from, to) => readRange(file, from, to),
          close: () => file.handle.close(),
        };
      } catch (e) {
        await file.handle.close();
        return unreadable(name)(e as Error);
      }
    },
  };
}
