/** Blobs by name, in memory: what a page got from its user, or is to give away. */
import { byName, type Drive, type Entry, inTurn, limited, type WritableDrive } from "./drive.ts";

/** Ids of maps, for whose turn it is. */
const ids = new WeakMap<ReadonlyMap<string, Blob>, number>();
let next = 0;

/** A map that is the caller's own: what is written to it, is in it. */
export function blobDrive(blobs: Map<string, Blob>, where = "blobs"): WritableDrive {
  if (!ids.has(blobs)) ids.set(blobs, next++);
  const within = (path: string): string[] =>
    [...blobs.keys()].filter((name) => path === "" || name === path || name.startsWith(`${path}/`));
  return {
    where,
    get: async (path, limit) => {
      const blob = blobs.get(path);
      return blob ? limited(blob, limit, `${where}: ${path}`) : null;
    },
    put: async (path, data) => void blobs.set(path, new Blob([data as BufferSource])),
    remove: async (path) => {
      for (const name of within(path)) blobs.delete(name);
    },
    list: async (path) => {
      const found = new Map<string, Entry>();
      for (const full of within(path)) {
        const [name, ...more] = full.slice(path === "" ? 0 : path.length + 1).split("/");
        found.set(name!, { name: name!, isFolder: more.length > 0 });
      }
      return [...found.values()].sort(byName);
    },
    alone: (_, work) => inTurn(`weft blobs ${ids.get(blobs)}`, work),
    room: async () => null,
  };
}
/** Files that the user dropped or chose: by their path in the folder that was chosen, else by name. */
export function fileDrive(files: Iterable<File>): Drive {
  const blobs = new Map<string, Blob>();
  for (const file of files) blobs.set(file.webkitRelativePath?.replace(/^[^/]*\//, "") || file.name, file);
  const { where, get } = blobDrive(blobs, "files");
  return { where, get };
}
