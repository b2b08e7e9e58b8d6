/** weft's own storage: in Node folders of the user's cache, in a page what own.page.ts says. */
import { cacheFolder } from "../cache.ts";
import { diskDrive } from "./disk.ts";
import type { WritableDrive } from "./drive.ts";

/** A folder of it; null where there is none to be had. */
export async function ownDrive(path: string): Promise<WritableDrive | null> {
  const folder = await cacheFolder(path);
  return folder === null ? null : diskDrive(folder);
}
/** Ask the browser not to clear it when room is short. */
export function keepOwn(): void {}
