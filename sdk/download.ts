/** In Node there is nobody to download: files are written where they are wanted. */
import { WeftError } from "../runtime/bundle.ts";

/** In a page: let the user save files as NAME.zip. Throws WEFT_OPTION elsewhere. */
export async function download(_name: string, _files: ReadonlyMap<string, Blob>): Promise<void> {
  throw new WeftError({
    code: "WEFT_OPTION",
    where: "download",
    expected: "a page, whose user saves the file",
    found: "Node",
    hint: "use save(dir)",
  });
}
