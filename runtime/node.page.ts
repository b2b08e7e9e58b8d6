/** In a page there is no Node, and what needs it says so. */
import { WeftError } from "./errors.ts";
import type * as there from "./node.ts";

export const elsewhere = async (): Promise<never> => {
  throw new WeftError({
    code: "WEFT_IO",
    where: "a page",
    expected: "Node, for folders and local files",
    found: "a build for pages",
    hint: "in a page, load bundles by their http: address, and pass data as rows",
  });
};
export const node: typeof there.node = elsewhere;
export const isNode: typeof there.isNode = false;
