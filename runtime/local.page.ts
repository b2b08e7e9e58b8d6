/** In a page a bundle that is no full address is one relative to the page. */
import { hereof } from "./disk.page.ts";
import type * as there from "./local.ts";
import { openReader } from "./reader.ts";

export const openLocal: typeof there.openLocal = (text) => openReader(hereof(text));
