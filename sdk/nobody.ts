import { WeftError } from "../runtime/errors.ts";

/** Where there is no user who could save a file: what `download` throws. */
export const nobodyTo = (found: string, hint: string): WeftError =>
  new WeftError({
    code: "WEFT_OPTION",
    where: "download",
    expected: "a page, whose user saves the file",
    found,
    hint,
  });
