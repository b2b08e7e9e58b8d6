/**
 * What is kept of bundles that were loaded from addresses: in a page in its own storage, in Node in a folder.
 */
import type { CachedBundle } from "../runtime/storage/cache.ts";

export type { CachedBundle };

const cached = () => import("../runtime/storage/cache.ts");
export const cache = {
  /** Each bundle: its name, where it is from, how much of it is here. */
  list: async (): Promise<CachedBundle[]> => (await cached()).listCached(),
  /** Remove a bundle, by its name in `list`; false where there is none of that name. */
  delete: async (name: string): Promise<boolean> => (await cached()).deleteCached(name),
};
