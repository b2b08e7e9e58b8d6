/**
 * What lies in a page's own storage under `storage:NAME`: folders that weft wrote there. In Node there are
 * none.
 */
import type { FolderKind } from "../records.ts";
import { join, type WritableDrive } from "./drive.ts";
import { currentOf, markerOf } from "./folder.ts";
import { ownDrive } from "./own.ts";

export interface StoredFolder {
  /** As it is asked for: `storage:NAME`. */
  readonly name: string;
  readonly kind: FolderKind | "checkpoint";
  /** Of its files, as they are now. */
  readonly bytes: number;
}
const FOLDERS = "folders";
/** A drive that is seen from a folder of it. */
const within = (drive: WritableDrive, folder: string): WritableDrive => ({
  ...drive,
  get: (path, limit) => drive.get(join(folder, path), limit),
});

async function* foldersIn(drive: WritableDrive, path = ""): AsyncGenerator<StoredFolder> {
  for (const { name, isFolder } of await drive.list(path)) {
    if (!isFolder) continue;
    const at = join(path, name);
    const inside = within(drive, at);
    const [marker, current] = [await markerOf(inside), await currentOf(inside)];
    const files = Object.values(marker?.files ?? current?.files ?? {});
    const bytes = files.reduce((n, f) => n + f.bytes, 0);
    if (marker || current) yield { name: `storage:${at}`, kind: marker?.kind ?? "checkpoint", bytes };
    yield* foldersIn(drive, at);
  }
}
export async function listStored(): Promise<StoredFolder[]> {
  const drive = await ownDrive(FOLDERS);
  const out: StoredFolder[] = [];
  if (drive) for await (const folder of foldersIn(drive)) out.push(folder);
  return out;
}
/** Remove a folder, but for others that are inside it; false where there is none of that name. */
export async function deleteStored(name: string): Promise<boolean> {
  const all = await listStored();
  if (!all.some((f) => f.name === name)) return false;
  // The lock is that of whoever writes there.
  const drive = (await ownDrive(`${FOLDERS}/${name.slice("storage:".length)}`))!;
  return drive.alone("", async () => {
    for (const e of await drive.list(""))
      if (!all.some((f) => `${f.name}/`.startsWith(`${name}/${e.name}/`))) await drive.remove(e.name);
    return true;
  });
}
