/**
 * A page's own storage: its file system (OPFS) where that can be written from here, else IndexedDB (over
 * plain http, and in browsers whose OPFS only workers may write).
 */
import { databaseDrive } from "./database.ts";
import { handleDrive } from "./handle.ts";
import type * as there from "./own.ts";

const storage = (): Partial<StorageManager> => (navigator as Partial<Navigator>).storage ?? {};
async function fileSystem(): Promise<FileSystemDirectoryHandle | null> {
  const writes =
    typeof FileSystemFileHandle === "function" && "createWritable" in FileSystemFileHandle.prototype;
  if (!writes || !storage().getDirectory) return null;
  try {
    return await storage().getDirectory!();
  } catch {
    // Some browsers have the call and refuse it, in private windows say.
    return null;
  }
}
async function room(): Promise<number | null> {
  const { quota, usage } = (await storage().estimate?.()) ?? {};
  return quota === undefined || usage === undefined ? null : Math.max(0, quota - usage);
}
export const ownDrive: typeof there.ownDrive = async (path) => {
  const where = `storage:${path.replace(/^folders\//, "")}`;
  const root = await fileSystem();
  if (root) return handleDrive(root, where, `weft/${path}`, room);
  return typeof indexedDB === "undefined" ? null : databaseDrive(path, where, room);
};
export const keepOwn: typeof there.keepOwn = () => {
  // Some browsers ask the user: nothing waits for the answer, and either will do.
  void storage()
    .persist?.()
    .catch(() => {});
};
