/** Where a bundle is read from: a folder or an HTTP(S) address. The runtime's only door to files. */
import { WeftError } from "./bundle.ts";
import { SMALL_FILE } from "./disk.ts";
import { openLocal } from "./local.ts";
import { checkName } from "./names.ts";

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

/** What a server sends, of at most `limit` bytes. Throws WEFT_IO, and WEFT_BUNDLE for more. */
export async function readResponse(url: URL, where: string, limit: number): Promise<Uint8Array> {
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

/**
 * A reader of a bundle: an address, whose query (a token, say) goes with every file, or a folder. In a page
 * what is no address is one relative to the page.
 */
export async function openReader(location: string | URL): Promise<BundleReader> {
  const text = String(location);
  if (/^https?:/.test(text)) {
    const base = new URL(text);
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    return {
      where: text,
      read: async (name, limit = SMALL_FILE) => {
        checkName(name);
        const url = new URL(name, base);
        url.search = base.search;
        return readResponse(url, url.origin + url.pathname, limit);
      },
    };
  }
  return openLocal(text);
}
