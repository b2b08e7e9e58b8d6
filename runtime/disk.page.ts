/** In a page a file that the user names is at an address, relative to the page. */
import type * as there from "./disk.ts";
import { readUrl } from "./remote.ts";

/** In a worker: the page that it works for. */
let page: string | null = null;
export const setHere = (address: string | null): void => {
  page = address;
};
export const hereof = (address: string): URL =>
  new URL(address, typeof document === "undefined" ? (page ?? location.href) : document.baseURI);
export const readRegular: typeof there.readRegular = (path, limit) => readUrl(hereof(path), limit, {});
