/** A folder of the disk as a drive, for what can be fetched again: nothing waits for the disk. Node alone. */
import { isMissing, onDisk, randomName, readRegular, unless } from "../disk.ts";
import { WeftError } from "../errors.ts";
import { LOCK, withLock } from "../lock.ts";
import { node } from "../node.ts";
import { throwIfAborted } from "../signals.ts";
import { byName, type WritableDrive } from "./drive.ts";

const TEMPORARY = /^\.part-[0-9a-f]{16}$/;

export function diskDrive(root: string): WritableDrive {
  const at = async (path: string): Promise<string> => (await node()).path.join(root, path);
  return {
    where: root,
    get: async (path, limit) => {
      try {
        return new Blob([(await readRegular(await at(path), limit, { inside: root })) as BufferSource]);
      } catch (e) {
        if (e instanceof WeftError && isMissing(e)) return null;
        throw e;
      }
    },
    put: async (path, data) => {
      const { fs, path: p } = await node();
      const to = await at(path);
      const part = p.join(p.dirname(to), `.part-${await randomName()}`);
      await onDisk(to, `${data.length} bytes that can be written`, async () => {
        await fs.mkdir(p.dirname(to), { recursive: true });
        try {
          await fs.writeFile(part, data, { mode: 0o600 });
          await fs.rename(part, to);
        } catch (e) {
          await fs.rm(part, { force: true });
          throw e;
        }
      });
    },
    remove: async (path) => {
      const { fs } = await node();
      const gone = await at(path);
      await onDisk(gone, "a file that can be removed", () => fs.rm(gone, { recursive: true, force: true }));
    },
    list: async (path) => {
      const { fs } = await node();
      const folder = await at(path);
      const entries = await onDisk(folder, "a readable folder", () =>
        unless(["ENOENT", "ENOTDIR"], () => fs.readdir(folder, { withFileTypes: true }), []),
      );
      return entries
        .filter((e) => !TEMPORARY.test(e.name) && !e.name.startsWith(LOCK))
        .map((e) => ({ name: e.name, isFolder: e.isDirectory() }))
        .sort(byName);
    },
    alone: async (path, work, signal) =>
      withLock(
        await at(path),
        async () => {
          throwIfAborted(signal);
          return work();
        },
        { patience: Number.POSITIVE_INFINITY },
      ),
    room: async () => {
      const { fs } = await node();
      const { bavail, bsize } = await fs.statfs(root);
      return bavail * bsize;
    },
  };
}
