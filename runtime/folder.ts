/**
 * Folders that others read too: bundles, PEFT adapters, Hugging Face model folders. They stay flat and are
 * written in place, so that mount points, links to folders and parents that cannot be written all work.
 *
 * A marker, `DIR/.weft.json`, says that weft wrote the folder, and which files. Only such a folder, or an
 * empty one, is ever written to.
 *
 *   DIR/.weft-<random>/   every new file is written here first
 *   DIR/.weft.json        then the marker says `writing`: from here on the folder is the new one
 *   DIR/…                 files move over the old ones, in the order given; what has no successor goes
 *   DIR/.weft.json        last, the marker without `writing`
 *
 * Whoever reads through this module meanwhile takes a file from the staging folder if it is still there, and
 * checks that the marker is the same before and after: all files are of one version. A writer that finds
 * `writing` (the one before it was killed) finishes that first. Readers never write.
 */
import { type ErrorCode, WeftError } from "./bundle.ts";
import {
  type Entry,
  isMissing,
  onDisk,
  openRegular,
  type RegularFile,
  randomName,
  readAndClose,
  readRecord,
  readRegular,
  sumOf,
  syncFolder,
  unless,
  writeFile,
} from "./disk.ts";
import { LOCK, type Lock, withLock } from "./lock.ts";
import { node } from "./node.ts";
import {
  checkKind,
  EDITED,
  type FileSum,
  type Files,
  type FolderKind,
  MARKER,
  type Marker,
  markerSchema,
  refused,
  replaced,
  STAGING,
  STRANGER,
  SYSTEM,
  stagingOf,
} from "./records.ts";

export type { Files, FolderKind };

/** The marker with `writing`, while it waits in the staging folder. */
const WRITING = ".weft.writing.json";

const readMarker = async (dir: string): Promise<Marker | null> =>
  readRecord(markerSchema, (await node()).path.join(dir, MARKER), dir);

const isTemporary = (e: Entry): boolean =>
  e.isDirectory() && (e.name === LOCK || e.name.startsWith(`${LOCK}-`) || STAGING.test(e.name));

/** The first file, link or folder of `dir` that is none of `owned`, or null. */
async function stranger(dir: string, owned: ReadonlySet<string>, below = ""): Promise<string | null> {
  const { fs, path } = await node();
  const at = path.join(dir, below);
  const entries = await unless(["ENOENT"], () => fs.readdir(at, { withFileTypes: true }), []);
  for (const e of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const name = below ? `${below}/${e.name}` : e.name;
    if (e.isFile() ? owned.has(name) || name === MARKER : !below && isTemporary(e)) continue;
    if (SYSTEM.test(e.name)) continue;
    if (!e.isDirectory() || ![...owned].some((o) => o.startsWith(`${name}/`))) return name;
    const inner = await stranger(dir, owned, name);
    if (inner) return inner;
  }
  return null;
}
/** The folder's marker, if `kind` may be written there. Throws WEFT_IO that names what stands in the way. */
async function inspect(dir: string, kind: FolderKind): Promise<Marker | null> {
  const { fs } = await node();
  const stat = await unless(["ENOENT"], () => fs.stat(dir), null);
  if (!stat) return null;
  if (!stat.isDirectory()) throw refused(dir, "a folder, or nothing", "a file");
  for (;;) {
    const marker = await readMarker(dir);
    const other = await stranger(dir, new Set(Object.keys({ ...marker?.files, ...marker?.writing })));
    if (other) {
      // Unless a writer has just brought it.
      if ((await readMarker(dir))?.id !== marker?.id) continue;
      throw refused(dir, STRANGER, other);
    }
    if (marker) checkKind(dir, marker, kind);
    return marker;
  }
}
/**
 * Throws WEFT_IO for a file that somebody edited: it is theirs now. One older than the marker is as weft left
 * it; after a copy all are newer.
 */
async function checkUnchanged(dir: string, marker: Marker): Promise<void> {
  const { fs, path } = await node();
  const written = (await fs.stat(path.join(dir, MARKER))).mtimeMs;
  for (const name of new Set(Object.keys({ ...marker.files, ...marker.writing }))) {
    const file = path.join(dir, name);
    const now = await unless(["ENOENT"], () => fs.stat(file), null);
    if (!now) continue;
    // On its way from one version to the next a folder has files of both.
    const sums = [marker.files, marker.writing ?? {}].flatMap((of) =>
      Object.hasOwn(of, name) && of[name]!.bytes === now.size ? [of[name]!] : [],
    );
    if (sums.length && now.mtimeMs <= written) continue;
    const found = sums.length ? (await sumOf(await readRegular(file, now.size, { inside: dir }))).sha256 : "";
    if (!sums.some(({ sha256 }) => sha256 === found)) throw refused(file, ...EDITED);
  }
}

/** Every folder that files of these names lie in, innermost first; "" is the folder itself, last. */
function foldersOf(names: Iterable<string>): string[] {
  const out = new Set([""]);
  for (const name of names)
    for (let at = name.lastIndexOf("/"); at > 0; at = name.lastIndexOf("/", at - 1))
      out.add(name.slice(0, at));
  return [...out].sort((a, b) => b.length - a.length);
}
/**
 * From a marker with `writing` to one without: what a writer does last, and the next one if it was killed.
 */
async function finish(dir: string, m: Marker & { readonly writing: Marker["files"] }): Promise<void> {
  const { fs, path } = await node();
  const staging = path.join(dir, stagingOf(m));
  const names = Object.keys(m.writing);
  const all = [...names, ...Object.keys(m.files)];
  for (const name of names) {
    const to = path.join(dir, name);
    await fs.mkdir(path.dirname(to), { recursive: true });
    const moved = await unless(
      ["ENOENT"],
      () => fs.rename(path.join(staging, name), to).then(() => true),
      false,
    );
    if (!moved && (await unless(["ENOENT"], () => fs.stat(to), null))?.size !== m.writing[name]!.bytes)
      throw new WeftError({
        code: "WEFT_IO",
        where: to,
        expected: `the file of ${m.writing[name]!.bytes} bytes that was being written`,
        found: "another, or none",
      });
  }
  for (const name of Object.keys(m.files))
    if (!(name in m.writing)) await fs.rm(path.join(dir, name), { force: true });
  for (const folder of foldersOf(all).slice(0, -1))
    if (!names.some((n) => n.startsWith(`${folder}/`)))
      await unless(["ENOENT", "ENOTEMPTY", "EEXIST"], () => fs.rmdir(path.join(dir, folder)), undefined);
  for (const folder of foldersOf(names)) await syncFolder(path.join(dir, folder));
  await fs.rename(path.join(staging, MARKER), path.join(dir, MARKER));
  await syncFolder(dir);
  await fs.rm(staging, { recursive: true, force: true });
}
/** As the only writer: what killed ones left is finished, or swept. */
async function settle(dir: string, kind: FolderKind): Promise<Marker | null> {
  const { fs, path } = await node();
  const marker = await inspect(dir, kind);
  if (marker) await checkUnchanged(dir, marker);
  if (marker?.writing) {
    await within(dir, stagingOf(marker), [...Object.keys(marker.writing), MARKER]);
    await finish(dir, { ...marker, writing: marker.writing });
  }
  for (const e of await fs.readdir(dir, { withFileTypes: true }))
    if (isTemporary(e) && e.name !== LOCK)
      await fs.rm(path.join(dir, e.name), { recursive: true, force: true, maxRetries: 3 });
  return marker?.writing ? readMarker(dir) : marker;
}
/**
 * Throws WEFT_IO if a file of the staging folder is not really there: nothing is moved out of other folders
 * through links.
 */
async function within(dir: string, staging: string, names: readonly string[]): Promise<void> {
  const { fs, path } = await node();
  const root = await fs.realpath(dir);
  for (const name of names) {
    const file = path.join(dir, staging, name);
    const real = await unless(["ENOENT"], () => fs.realpath(file), null);
    if (real !== null && real !== path.join(root, staging, name))
      throw new WeftError({ code: "WEFT_IO", where: file, expected: "a file", found: `a link to ${real}` });
  }
}

/**
 * Would `writeFolder` take this folder? Asked before long work starts; leaves nothing behind. Throws WEFT_IO
 * that names what stands in the way: a file, a folder that weft did not write or that holds anything else,
 * one of another kind, one that cannot be written; WEFT_CONFLICT (retryable) when somebody else is writing it
 * and does not end.
 */
export async function claimFolder(dir: string, kind: FolderKind): Promise<void> {
  await asWriter(dir, kind, async () => {});
}
/** Is there a version of what weft writes? */
export const isWritten = async (dir: string): Promise<boolean> => (await readMarker(dir)) !== null;
async function asWriter(
  dir: string,
  kind: FolderKind,
  work: (dir: string, old: Marker | null, lock: Lock) => Promise<void>,
): Promise<void> {
  const { path } = await node();
  const at = path.resolve(dir);
  await onDisk(dir, "a folder that can be written", async () => {
    await inspect(at, kind);
    await withLock(at, async (lock) => work(at, await settle(at, kind), lock));
  });
}

/**
 * Make `dir` a folder of exactly these files, in the order in which they may become visible: what others read
 * first goes last. Durable when it resolves. Throws as `claimFolder`, and WEFT_IO when the disk does not take
 * the files; the old folder is untouched then.
 */
export async function writeFolder(dir: string, kind: FolderKind, files: Files): Promise<void> {
  const { fs, path } = await node();
  await asWriter(dir, kind, async (at, old, lock) => {
    const id = await randomName();
    const staging = path.join(at, stagingOf({ id }));
    const writing: Record<string, FileSum> = {};
    const marker = { format: "weft-folder", kind, id } as const;
    const next = { ...marker, files: old?.files ?? {}, writing };
    try {
      await fs.mkdir(staging);
      for await (const [name, content] of files) {
        await fs.mkdir(path.dirname(path.join(staging, name)), { recursive: true });
        writing[name] = await writeFile(path.join(staging, name), content);
      }
      // Both markers lie ready, so that the rest takes no room on the disk.
      await writeFile(path.join(staging, MARKER), JSON.stringify({ ...marker, files: writing }));
      await writeFile(path.join(staging, WRITING), JSON.stringify(next));
      for (const folder of foldersOf(Object.keys(writing))) await syncFolder(path.join(staging, folder));
      await syncFolder(at);
      await lock.check();
      await fs.rename(path.join(staging, WRITING), path.join(at, MARKER));
    } catch (e) {
      await fs.rm(staging, { recursive: true, force: true });
      throw e;
    }
    await syncFolder(at);
    await finish(at, next);
  });
}

/** A file of the version that `m` describes: staged, or in its place. */
async function openOf(
  dir: string,
  m: Marker | null,
  name: string,
  limit: number,
  code: ErrorCode,
): Promise<RegularFile> {
  const { path } = await node();
  const o = { inside: dir, code };
  if (m?.writing)
    try {
      return await openRegular(path.join(dir, stagingOf(m), name), limit, o);
    } catch (e) {
      if (!isMissing(e)) throw e;
    }
  return openRegular(path.join(dir, name), limit, o);
}

const TRIES = 100;
/**
 * Those of `names` that the folder has, all of one version, whatever writers do meanwhile. A folder that weft
 * did not write is simply read. Throws `code` (default WEFT_IO) for what is no regular file inside the folder
 * or over `limit` bytes, and WEFT_CONFLICT (retryable) when writers never pause.
 */
export async function readFolder(
  dir: string,
  names: readonly string[],
  limit: number,
  code: ErrorCode = "WEFT_IO",
): Promise<ReadonlyMap<string, Uint8Array>> {
  for (let i = 0; i < TRIES; i++) {
    const before = await readMarker(dir);
    const opened = new Map<string, RegularFile>();
    try {
      for (const name of names)
        try {
          opened.set(name, await openOf(dir, before, name, limit, code));
        } catch (e) {
          if (!isMissing(e)) throw e;
        }
      // Open files are never changed, so they may be read at leisure.
      if ((await readMarker(dir))?.id !== before?.id) continue;
      const out = new Map<string, Uint8Array>();
      for (const [name, file] of opened) {
        opened.delete(name);
        out.set(name, await onDisk(`${dir}/${name}`, "a readable file", () => readAndClose(file)));
      }
      return out;
    } finally {
      for (const file of opened.values()) await file.handle.close();
    }
  }
  throw replaced(dir);
}
/** A folder that stays what it was when it was opened: once it is replaced, its files are refused. */
export interface OpenFolder {
  /** Throws WEFT_CONFLICT (retryable) when the folder was replaced, else as `openRegular`. */
  readonly open: (name: string, limit: number) => Promise<RegularFile>;
}
export function openFolder(dir: string, code: ErrorCode): OpenFolder {
  let first: Promise<Marker | null> | undefined;
  return {
    open: async (name, limit) => {
      const pinned = await (first ??= readMarker(dir));
      const now = await readMarker(dir);
      let file: RegularFile | undefined;
      try {
        if (now?.id === pinned?.id) file = await openOf(dir, now, name, limit, code);
      } catch (e) {
        if ((await readMarker(dir))?.id === pinned?.id) throw e;
      }
      if (file && (await readMarker(dir))?.id === pinned?.id) return file;
      await file?.handle.close();
      throw replaced(dir);
    },
  };
}
