/** Where a command writes: asked for before it works. */
import { WeftError } from "../../runtime/bundle.ts";
import { claimFile } from "../../runtime/disk.ts";
import { claimFolder, type FolderKind, isWritten } from "../../runtime/folder.ts";
import { article } from "../../runtime/records.ts";
import { isGguf } from "../files.ts";
import { type Flags, toggle } from "./command.ts";

/** The flag of commands that write what may be the only copy of what was learned. */
export const replaceFlag = { replace: toggle("replace what weft wrote there before") } as const;

/**
 * Throws WEFT_IO that names what stands in the way of a folder, or of a .gguf file. An adapter or a model
 * that weft wrote is replaced only with `--replace`; a file never.
 */
export async function claimOutput(
  path: string,
  kind: FolderKind,
  { replace }: Flags,
  /** What else to do where one is there. */
  hint = "",
): Promise<void> {
  if (isGguf(path)) return claimFile(path);
  await claimFolder(path, kind);
  if (replace || !(await isWritten(path))) return;
  throw new WeftError({
    code: "WEFT_IO",
    where: path,
    expected: "a name that is free",
    found: `${article(kind)} that weft wrote`,
    hint: `${hint}--replace replaces it`,
  });
}
