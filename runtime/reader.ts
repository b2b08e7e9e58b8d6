/** Where a bundle is read from: a folder, an address, or what is kept of one. */
import { openAddress } from "./address.ts";
import { openLocal, urlOf } from "./local.ts";
import type { Heard, Remote } from "./remote.ts";
import type { Place } from "./storage/places.ts";

export { sha256 } from "./hash.ts";
export type { Place };

export interface BundleReader {
  readonly where: string;
  /**
   * A whole file of the bundle, of at most `limit` bytes where its size is declared. `heard` hears of bytes
   * that come over a network.
   */
  readonly read: (name: string, limit?: number, heard?: Heard) => Promise<Uint8Array>;
  /**
   * A large file in pieces, where that can be: its size and SHA-256, read through once, and any range of it.
   */
  readonly open?: (name: string, limit: number, heard?: Heard) => Promise<RangeFile>;
  /** A load has read all that it needs. */
  readonly loaded?: () => Promise<void>;
}
export interface RangeFile {
  readonly bytes: number;
  readonly sha256: string;
  /** What it gives may be written over by the next range. */
  readonly range: (from: number, to: number) => Promise<Uint8Array>;
  readonly close: () => Promise<void>;
}

/** How a bundle is read from an address. */
export interface ReadOptions extends Remote {
  /** Keep it for the next time: under its address, or under a name. Default: where something can be kept. */
  readonly cache?: boolean | string | undefined;
}
/**
 * A reader of a bundle: of a folder, of an address, whose query (a token, say) goes with every file, or of
 * what a page got from its user. In a page what is no full address is one relative to the page.
 */
export async function openReader(location: Place, o: ReadOptions = {}): Promise<BundleReader> {
  if (typeof location !== "string" && !(location instanceof URL))
    return (await (await import("./folders.ts")).folderAt(location)).bundle();
  const url = urlOf(String(location));
  return url ? openAddress(url, o) : openLocal(String(location));
}
