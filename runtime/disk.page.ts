/** In a page a file that the user names is at an address, relative to the page. */
import type * as there from "./disk.ts";
import { readUrl } from "./remote.ts";

export const hereof = (address: string): URL =>
  new URL(address, typeof document === "undefined" ? location.href : document.baseURI);
export const readRegular: typeof there.readRegular = (path, limit) => readUrl(hereof(path), limit, {});
