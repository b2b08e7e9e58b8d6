/** Where a command writes: asked for before it works. */
import { WeftError } from "../../runtime/bundle.ts";
import { claimFolder, isWritten } from "../../runtime/folder.ts";
import { article } from "../../runtime/records.ts";
import { isGguf } from "../files.ts";
import { claimGguf } from "../gguf.ts";
import { type Flags, toggle } from "./command.ts";

/** The flag of commands that write what may be the only copy of what was learned. */
export const replaceFlag = { replace: toggle("replace what weft wrote there before") } as const;

/**
 * Throws WEFT_IO that names what stands in the way of a folder, or of a .gguf file. An adapter or a model
 * that weft wrote is replaced only with `--replace`.
 */
export async function claimOutput(
  path: string,
  kind: "adapter" | "model",
  { replace }: Flags,
  /** What else to do where one is there. */
  hint = "",
): Promise<void> {
  const inFolder = async (): Promise<boolean> => {
    await claimFolder(path, kind);
    return isWritten(path);
  };
  const written = await (isGguf(path) ? claimGguf(path, kind) : inFolder());
  if (replace || !written) return;
  throw new WeftError({
    code: "WEFT_IO",
    where: path,
    expected: "a name that is free",
    found: `${article(kind)} that weft wrote`,
    hint: `${hint}--replace replaces it`,
  });
}
