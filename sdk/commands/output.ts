/** Where a command writes: asked for before it works. */
import { claimFile } from "../../runtime/disk.ts";
import { claimFolder, type FolderKind } from "../../runtime/folder.ts";
import { isGguf } from "../files.ts";

/** Throws WEFT_IO that names what stands in the way of a folder, or of a .gguf file. */
export const claimOutput = (path: string, kind: FolderKind): Promise<void> =>
  isGguf(path) ? claimFile(path) : claimFolder(path, kind);
