/** A bundle at an address, kept for the next time where something can be kept. */
import { WeftError } from "./bundle.ts";
import { checkName } from "./names.ts";
import type { BundleReader, ReadOptions } from "./reader.ts";
import { fileUrl, folderUrl, type Remote, readUrl, shown } from "./remote.ts";
import { SMALL_FILE } from "./schema.ts";

export async function openAddress(url: URL, o: ReadOptions): Promise<BundleReader> {
  if (o.cache !== false) {
    const { cachedReader } = await import("./storage/cache.ts");
    const reader = await cachedReader(url, typeof o.cache === "string" ? o.cache : undefined, o);
    if (reader) return reader;
    if (o.cache !== undefined)
      throw new WeftError({
        code: "WEFT_IO",
        where: "cache",
        expected: "a place where bundles can be kept",
        found: "none",
        hint: "load with { cache: false }",
      });
  }
  const base = folderUrl(url);
  let asking: Remote = o;
  return {
    where: shown(url),
    read: async (name, limit = SMALL_FILE, heard) => {
      checkName(name);
      return readUrl(fileUrl(base, name), limit, asking, heard);
    },
    // What is read again later is not the load's to abort.
    loaded: async () => {
      asking = { ...o, signal: undefined };
    },
  };
}
