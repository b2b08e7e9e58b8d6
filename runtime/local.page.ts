/** In a page a bundle that is no full address is one relative to the page, or in the page's own storage. */
import { openAddress } from "./address.ts";
import { hereof } from "./disk.page.ts";
import type * as there from "./local.ts";

export const openLocal: typeof there.openLocal = async (text, o = {}) =>
  /^storage:/i.test(text)
    ? (await (await import("./folders.ts")).folderAt(text)).bundle()
    : openAddress(hereof(text), o);
