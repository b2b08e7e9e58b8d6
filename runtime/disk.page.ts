/** In a page a file that the user names is at an address, relative to the page. */
import type * as there from "./disk.ts";
import { readResponse } from "./reader.ts";

export const SMALL_FILE: typeof there.SMALL_FILE = 64 * 2 ** 20;
export const hereof = (address: string): URL =>
  new URL(address, typeof document === "undefined" ? location.href : document.baseURI);
export const readRegular: typeof there.readRegular = (path, limit) => readResponse(hereof(path), path, limit);
