/** In a page: nothing is compiled there. */
import { WeftError } from "../runtime/bundle.ts";
import type * as there from "./compile.ts";

const elsewhere = async (): Promise<never> => {
  throw new WeftError({
    code: "WEFT_OPTION",
    where: "a page",
    expected: "compiling ahead of time, in Node",
    found: "a build for pages",
    hint: "run `weft compile` and serve the bundle as static files",
  });
};
export const compile: typeof there.compile = elsewhere;
export const planMemory: typeof there.planMemory = elsewhere;
