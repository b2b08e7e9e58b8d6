/** Which folder a caller means. In a page folders.page.ts stands in its place. */
import { claimFolder, readFolder, writeFolder } from "./folder.ts";
import { openLocal } from "./local.ts";
import { node } from "./node.ts";
import type { Remote } from "./remote.ts";
import { addressDrive } from "./storage/address.ts";
import { driveFolder, type Folder } from "./storage/folder.ts";
import { driveOf, type Place } from "./storage/places.ts";
import { claimVersions, readVersion, writeVersion } from "./versions.ts";

export type { Folder, Place };

/** Throws WEFT_OPTION for what is no folder. */
export async function folderAt(place: Place, o: Remote = {}): Promise<Folder> {
  if (typeof place !== "string" && !(place instanceof URL)) return driveFolder(driveOf(place));
  const text = String(place);
  if (/^https?:/i.test(text)) return driveFolder(addressDrive(text, o));
  return diskFolder(/^file:/i.test(text) ? (await node()).url.fileURLToPath(text) : text);
}
/** A folder of the disk: what is written is durable when its promise resolves. */
const diskFolder = (dir: string): Folder => ({
  where: dir,
  bundle: () => openLocal(dir),
  read: (names, limit, code) => readFolder(dir, names, limit, code),
  claim: (kind) => claimFolder(dir, kind),
  write: (kind, files) => writeFolder(dir, kind, files),
  claimVersions: (names) => claimVersions(dir, names),
  writeVersion: (step, files) => writeVersion(dir, step, files),
  readVersion: () => readVersion(dir),
});
