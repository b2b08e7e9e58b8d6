/** In Node there is nobody to download: files are written where they are wanted. */
import { nobodyTo } from "./nobody.ts";

/** In a page: let the user save files as NAME.zip. Throws WEFT_OPTION elsewhere. */
export async function download(_name: string, _files: ReadonlyMap<string, Blob>): Promise<void> {
  throw nobodyTo("Node", "use save(dir)");
}
