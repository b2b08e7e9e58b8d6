/**
 * A directory handle: of a page's own storage (OPFS), or one that the user picked. A file is written beside
 * itself and takes its place when it is closed (File System Standard, FileSystemWritableFileStream): a tab
 * that dies leaves the old one. Nothing promises that it reached the disk before the machine stops.
 */
import { byName, type Entry, inTurn, join, limited, onDrive, type WritableDrive } from "./drive.ts";

const missing = (e: unknown): null => {
  const { name } = (e ?? {}) as { name?: unknown };
  if (name === "NotFoundError" || name === "TypeMismatchError") return null;
  throw e;
};

/** `base` is the folder in `root` that counts; `room` tells what is left: of a picked folder nobody knows. */
export function handleDrive(
  root: FileSystemDirectoryHandle,
  where: string,
  base = "",
  room: WritableDrive["room"] = async () => null,
): WritableDrive {
  const folder = async (path: readonly string[], create: boolean): Promise<FileSystemDirectoryHandle> => {
    let at = root;
    for (const name of path) at = await at.getDirectoryHandle(name, { create });
    return at;
  };
  const split = (path: string): readonly [string[], string] => {
    const parts = join(base, path).split("/");
    const name = parts.pop()!;
    return [parts, name];
  };
  const at = (path: string): string => `${where}/${path}`;
  return {
    where,
    get: (path, limit) =>
      onDrive(at(path), "a readable file", async () => {
        const [parts, name] = split(path);
        const file = await folder(parts, false)
          .then((f) => f.getFileHandle(name))
          .then((h) => h.getFile())
          .catch(missing);
        // A new file is empty until what is written to it is closed: till then it is not there.
        return file?.size ? limited(file, limit, at(path)) : null;
      }),
    put: (path, data) =>
      onDrive(at(path), `${data.length} bytes that can be written`, async () => {
        const [parts, name] = split(path);
        const file = await (await folder(parts, true)).getFileHandle(name, { create: true });
        const stream = await file.createWritable();
        try {
          await stream.write(data as BufferSource);
          await stream.close();
        } catch (e) {
          // It may have failed for good already; the error is what counts.
          await stream.abort().catch(() => {});
          throw e;
        }
      }),
    remove: (path) =>
      onDrive(at(path), "a file that can be removed", async () => {
        const [parts, name] = split(path);
        await folder(parts, false)
          .then((f) => f.removeEntry(name, { recursive: true }))
          .catch(missing);
      }),
    list: (path) =>
      onDrive(at(path), "a readable folder", async () => {
        const f = await folder(join(base, path).split("/").filter(Boolean), false).catch(missing);
        const out: Entry[] = [];
        if (f)
          for await (const [name, handle] of f.entries())
            out.push({ name, isFolder: handle.kind === "directory" });
        return out.sort(byName);
      }),
    alone: (path, work, signal) => inTurn(`weft ${at(path)}`, work, signal),
    room,
  };
}
