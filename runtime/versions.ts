/**
 * Versions of what weft alone reads back. A version is written beside the others and never changed; `CURRENT`
 * names the one that counts.
 *
 *   DIR/v-<step>-<random>/   a version's files
 *   DIR/CURRENT              its name, sizes and hashes of its files: renamed into place, last
 *
 * The current version and the one before it are kept; the others, and what killed writers left, are swept by
 * the next writer.
 */
import {
  isMissing,
  onDisk,
  randomName,
  readRecord,
  readRegular,
  sumOf,
  syncFolder,
  unless,
  writeFile,
} from "./disk.ts";
import { LOCK, withLock } from "./lock.ts";
import { node } from "./node.ts";
import {
  type Content,
  CURRENT,
  type Current,
  changedSince,
  currentSchema,
  type Files,
  noVersion,
  refusedVersions,
  SYSTEM,
  VERSION,
} from "./records.ts";

const readCurrent = async (dir: string): Promise<Current | null> =>
  readRecord(currentSchema, (await node()).path.join(dir, CURRENT), dir);

/**
 * Throws WEFT_IO that names what in `dir` is neither a version of such files nor left by a writer of them.
 */
async function inspect(dir: string, names: readonly string[]): Promise<Current | null> {
  const { fs, path } = await node();
  const refuse = (found: string, expected?: string): never => {
    throw refusedVersions(dir, found, expected);
  };
  const stat = await unless(["ENOENT"], () => fs.stat(dir), null);
  if (!stat) return null;
  if (!stat.isDirectory()) refuse("a file", "a folder, or nothing");
  const current = await readCurrent(dir);
  const owned = new Set([...names, ...Object.keys(current?.files ?? {}), CURRENT]);
  const entries = await fs.readdir(dir, { withFileTypes: true });
  for (const e of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (SYSTEM.test(e.name) || (e.isFile() && e.name === CURRENT)) continue;
    if (e.isDirectory() && (e.name === LOCK || e.name.startsWith(`${LOCK}-`))) continue;
    if (!e.isDirectory() || !VERSION.test(e.name)) refuse(e.name);
    const inner = await unless(
      ["ENOENT"],
      () => fs.readdir(path.join(dir, e.name), { withFileTypes: true }),
      [],
    );
    for (const i of inner)
      if (!SYSTEM.test(i.name) && (!i.isFile() || !owned.has(i.name))) refuse(`${e.name}/${i.name}`);
  }
  return current;
}
/** Is there a version? */
export const hasVersion = async (dir: string): Promise<boolean> => (await readCurrent(dir)) !== null;
async function asWriter(
  dir: string,
  names: readonly string[],
  work: (dir: string, old: Current | null, check: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const { fs, path } = await node();
  const at = path.resolve(dir);
  await onDisk(dir, "a folder that can be written", async () => {
    await inspect(at, names);
    await withLock(at, async (lock) => {
      const current = await inspect(at, names);
      for (const e of await fs.readdir(at))
        if (e.startsWith(`${LOCK}-`))
          await fs.rm(path.join(at, e), { recursive: true, force: true, maxRetries: 3 });
      await work(at, current, lock.check);
    });
  });
}
/**
 * Would `writeVersion` take this folder, for files of these names? Leaves nothing behind. Throws as
 * `claimFolder`.
 */
export async function claimVersions(dir: string, names: readonly string[]): Promise<void> {
  await asWriter(dir, names, async () => {});
}
/**
 * Make these files the current version. Durable when it resolves. Throws WEFT_IO, naming what in `dir` is not
 * weft's, or when the disk does not take them (the version before stays the current one), and WEFT_CONFLICT
 * (retryable) when another writer does not end.
 */
export async function writeVersion(dir: string, step: number, files: Files): Promise<void> {
  const list: (readonly [string, Content])[] = [];
  for await (const file of files) list.push(file);
  const { fs, path } = await node();
  await asWriter(
    dir,
    list.map(([name]) => name),
    async (at, old, check) => {
      const version = `v-${step}-${await randomName()}`;
      const folder = path.join(at, version);
      try {
        await fs.mkdir(folder);
        const sums: Record<string, { bytes: number; sha256: string }> = {};
        for (const [name, data] of list) sums[name] = await writeFile(path.join(folder, name), data);
        const current: Current = { format: "weft-versions", version, files: sums };
        await writeFile(path.join(folder, CURRENT), JSON.stringify(current));
        await syncFolder(folder);
        await syncFolder(at);
        await check();
        await fs.rename(path.join(folder, CURRENT), path.join(at, CURRENT));
      } catch (e) {
        await fs.rm(folder, { recursive: true, force: true });
        throw e;
      }
      await syncFolder(at);
      for (const e of await fs.readdir(at))
        if (VERSION.test(e) && e !== version && e !== old?.version)
          await fs.rm(path.join(at, e), { recursive: true, force: true });
    },
  );
}

/**
 * The files of the current version, each as it was written. Throws WEFT_IO that names a file that is missing,
 * or is another than was written, with the hash that was expected and the one that was found.
 */
export async function readVersion(dir: string): Promise<ReadonlyMap<string, Uint8Array>> {
  const { path } = await node();
  for (let tried: string | undefined; ; ) {
    const current = await readCurrent(dir);
    if (!current) throw noVersion(path.join(dir, CURRENT));
    const folder = path.join(dir, current.version);
    const out = new Map<string, Uint8Array>();
    try {
      for (const [name, sum] of Object.entries(current.files)) {
        const where = path.join(folder, name);
        const data = await readRegular(where, sum.bytes, { inside: dir });
        const found = await sumOf(data);
        if (found.sha256 !== sum.sha256) throw changedSince(where, sum, found);
        out.set(name, data);
      }
      return out;
    } catch (e) {
      // Two writers later the version is swept: there is a newer one to read.
      if (!isMissing(e) || current.version === tried) throw e;
      tried = current.version;
    }
  }
}
