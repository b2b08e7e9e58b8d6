/**
 * What a folder is like when its writer, or the machine, stops at any moment. Every change of the disk that a
 * function makes is recorded, and made again in another folder up to that moment.
 *
 * When the machine stops, a file has its contents if it was synced after they were written, else none; and
 * changes of entries (files made, renamed, removed) are kept in their order up to some point, at least up to
 * the last sync of anything: as journaling file systems do.
 */
import fs from "node:fs";
import promises, { type FileHandle } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { dirname, join, relative } from "node:path";

export type Change =
  | { readonly op: "mkdir" | "create" | "unlink" | "rmdir" | "sync"; readonly path: string }
  | { readonly op: "write"; readonly path: string; readonly data: Buffer }
  | { readonly op: "rename"; readonly from: string; readonly to: string };

/** What `f` changes below `root`, in order. */
export async function record(root: string, f: () => Promise<unknown>): Promise<Change[]> {
  const out: Change[] = [];
  const real = { ...promises };
  const name = (path: unknown): string => relative(root, String(path));
  const below = (path: unknown): boolean => !name(path).startsWith("..");
  const note = (change: Change): void => void out.push(change);
  const remove = async (path: string): Promise<void> => {
    const stat = await real.lstat(path);
    if (stat.isDirectory()) {
      for (const e of await real.readdir(path)) await remove(join(path, e));
      await real.rmdir(path);
      note({ op: "rmdir", path: name(path) });
    } else {
      await real.unlink(path);
      note({ op: "unlink", path: name(path) });
    }
  };
  const patched = {
    mkdir: async (path: string, o?: { recursive?: boolean }) => {
      const missing: string[] = [];
      for (let at = path; o?.recursive && below(at) && !fs.existsSync(at); at = dirname(at))
        missing.unshift(at);
      const first = await real.mkdir(path, o);
      for (const p of o?.recursive ? missing : [path]) note({ op: "mkdir", path: name(p) });
      return first;
    },
    rename: async (from: string, to: string) => {
      await real.rename(from, to);
      note({ op: "rename", from: name(from), to: name(to) });
    },
    unlink: async (path: string) => {
      await real.unlink(path);
      note({ op: "unlink", path: name(path) });
    },
    rmdir: async (path: string) => {
      await real.rmdir(path);
      note({ op: "rmdir", path: name(path) });
    },
    rm: async (path: string) => {
      if (fs.existsSync(path)) await remove(path);
    },
    writeFile: async (path: string, data: string) => {
      await real.writeFile(path, data);
      note({ op: "create", path: name(path) });
      note({ op: "write", path: name(path), data: Buffer.from(data) });
    },
    open: async (path: string, flags: string | number) => {
      const handle: FileHandle = await real.open(path, flags);
      if (typeof flags !== "string" || !below(path)) return handle;
      if (flags.startsWith("w")) note({ op: "create", path: name(path) });
      const { writeFile, sync } = handle;
      return Object.assign(handle, {
        writeFile: async (data: Uint8Array | string) => {
          await writeFile.call(handle, data);
          note({ op: "write", path: name(path), data: Buffer.from(data as string) });
        },
        sync: async () => {
          await sync.call(handle);
          note({ op: "sync", path: name(path) });
        },
      });
    },
  };
  Object.assign(promises, patched);
  syncBuiltinESMExports();
  try {
    await f();
  } finally {
    Object.assign(promises, real);
    syncBuiltinESMExports();
  }
  return out;
}

/**
 * Make the first `entries` changes again below `root`. `lost`: files that the changes up to `until` do not
 * sync have no contents.
 */
export function replay(
  root: string,
  changes: readonly Change[],
  entries: number,
  lost?: { until: number },
): void {
  const done = changes.slice(0, entries);
  // A file is followed through its renames: by its number.
  const synced = new Set<number>();
  const number = new Map<string, number>();
  const move = (from: string, to: string): void => {
    for (const [path, n] of [...number])
      if (path === from || path.startsWith(`${from}/`)) {
        number.delete(path);
        number.set(to + path.slice(from.length), n);
      }
  };
  changes.slice(0, lost?.until).forEach((c, i) => {
    if (c.op === "create") number.set(c.path, i);
    else if (c.op === "rename") move(c.from, c.to);
    else if (c.op === "sync" && number.has(c.path)) synced.add(number.get(c.path)!);
  });
  const current = new Map<string, number>();
  done.forEach((c, i) => {
    const at = "path" in c ? join(root, c.path) : "";
    if (c.op === "mkdir") fs.mkdirSync(at);
    else if (c.op === "create") {
      current.set(c.path, i);
      fs.writeFileSync(at, "");
    } else if (c.op === "write") {
      if (!lost || synced.has(current.get(c.path)!)) fs.writeFileSync(at, c.data);
    } else if (c.op === "rename") fs.renameSync(join(root, c.from), join(root, c.to));
    else if (c.op === "unlink") fs.unlinkSync(at);
    else if (c.op === "rmdir") fs.rmdirSync(at);
  });
}
/** How many changes of entries are certainly on the disk after `n` changes: those before the last sync. */
export function kept(changes: readonly Change[], n: number): number {
  for (let i = n - 1; i >= 0; i--) if (changes[i]!.op === "sync") return i;
  return 0;
}
