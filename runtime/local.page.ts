/** In a page a bundle is at an address, relative to the page, or in the page's own storage. */
import { hereof } from "./disk.page.ts";
import type * as there from "./local.ts";

export const urlOf: typeof there.urlOf = (text) => (/^storage:/i.test(text) ? null : hereof(text));
export const openLocal: typeof there.openLocal = async (text) =>
  (await (await import("./folders.ts")).folderAt(text)).bundle();
