import { elsewhere } from "./node.page.ts";
import type * as there from "./spill.ts";

export const openSpill: typeof there.openSpill = elsewhere;
