/** In a page there are no files. */
import { elsewhere } from "../runtime/node.page.ts";
import type * as there from "./gguf.ts";

export const saveModelAsGguf: typeof there.saveModelAsGguf = elsewhere;
export const saveAdapterAsGguf: typeof there.saveAdapterAsGguf = elsewhere;
export const readAdapterGguf: typeof there.readAdapterGguf = elsewhere;
