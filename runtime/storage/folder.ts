/**
 * What weft reads and writes as one folder, wherever it lies: adapters, models, checkpoints, bundles. Here
 * the laws of runtime/folder.ts and runtime/versions.ts over a drive, which renames nothing: a file is moved
 * by writing it in its place and removing it from the other. The files are the same, so folders may be copied
 * between the two.
 */
import type { GenericSchema, InferOutput } from "valibot";
import { type ErrorCode, WeftError } from "../errors.ts";
import { hasher, sha256 } from "../hash.ts";
import { checkName } from "../names.ts";
import type { BundleReader } from "../reader.ts";
import {
  CURRENT,
  type Current,
  changedSince,
  checkKind,
  currentSchema,
  EDITED,
  type FileSum,
  type Files,
  type FolderKind,
  MARKER,
  type Marker,
  markerSchema,
  noVersion,
  refused,
  refusedVersions,
  replaced,
  STAGING,
  STRANGER,
  SYSTEM,
  stagingOf,
  VERSION,
} from "../records.ts";
import { check, SMALL_FILE } from "../schema.ts";
import { bytesOf, type Drive, type Entry, isWritable, join, readWhole, type WritableDrive } from "./drive.ts";

export interface Folder {
  readonly where: string;
  /** Its files as those of a bundle. */
  readonly bundle: () => Promise<BundleReader>;
  /**
   * Those of `names` that the folder has, all of one version. Throws `code` (default WEFT_IO) for what is
   * over `limit` bytes, WEFT_CONFLICT (retryable) where it is being replaced.
   */
  readonly read: (
    names: readonly string[],
    limit: number,
    code?: ErrorCode,
  ) => Promise<ReadonlyMap<string, Uint8Array>>;
  /** Would `write` take it? Throws WEFT_IO that names what stands in the way; leaves nothing behind. */
  readonly claim: (kind: FolderKind) => Promise<void>;
  /** Make it a folder of exactly these files: what others read first goes last. */
  readonly write: (kind: FolderKind, files: Files) => Promise<void>;
  /** Would `writeVersion` take it, for files of these names? */
  readonly claimVersions: (names: readonly string[]) => Promise<void>;
  /** Make these files the current version; the one before it is kept. */
  readonly writeVersion: (step: number, files: Files) => Promise<void>;
  /** The files of the current version, each as it was written. Throws WEFT_IO. */
  readonly readVersion: () => Promise<ReadonlyMap<string, Uint8Array>>;
}

export const randomName = (): string =>
  [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, "0")).join("");
const sumOf = async (data: Uint8Array): Promise<FileSum> => ({
  bytes: data.length,
  sha256: await sha256(data),
});
async function whole(content: Uint8Array | string | AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  if (content instanceof Uint8Array) return content;
  if (typeof content === "string") return new TextEncoder().encode(content);
  const pieces: BlobPart[] = [];
  for await (const piece of content) pieces.push(piece as BlobPart);
  return bytesOf(new Blob(pieces));
}
const print = (record: Marker | Current): Uint8Array => new TextEncoder().encode(JSON.stringify(record));
/** A JSON file of `schema`, or null where there is none. Throws WEFT_IO for anything else. */
export async function readJson<const S extends GenericSchema>(
  schema: S,
  drive: Drive,
  path: string,
): Promise<InferOutput<S> | null> {
  const data = await readWhole(drive, path, SMALL_FILE);
  if (!data) return null;
  const where = `${drive.where}/${path}`;
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(data));
  } catch (cause) {
    throw new WeftError({ code: "WEFT_IO", where, expected: "JSON", found: (cause as Error).message, cause });
  }
  return check(schema, value, { code: "WEFT_IO", where });
}

export function driveFolder(drive: Drive): Folder {
  const writable = (): WritableDrive => {
    if (isWritable(drive)) return drive;
    throw new WeftError({
      code: "WEFT_IO",
      where: drive.where,
      expected: "a folder that can be written",
      found: "one that can only be read",
      hint: "write to a directory handle, or to storage:NAME in a page",
    });
  };
  return {
    where: drive.where,
    bundle: async () => bundleOf(drive),
    read: (...a) => readFlat(drive, ...a),
    claim: async (kind) => flatly(writable(), kind, async () => {}),
    write: async (kind, files) => writeFlat(writable(), kind, files),
    claimVersions: async (names) => void (await inspectVersions(writable(), names)),
    writeVersion: async (step, files) => writeVersionOn(writable(), step, files),
    readVersion: () => readVersionOf(drive),
  };
}

/** A bundle's files are checked against its manifest by who loads it. */
function bundleOf(drive: Drive): BundleReader {
  const where = (name: string): string => `${drive.where}/${name}`;
  const file = async (name: string, limit: number): Promise<Blob> => {
    checkName(name);
    const blob = await drive.get(name, limit);
    if (blob) return blob;
    const expected = "a file of the bundle";
    throw new WeftError({ code: "WEFT_BUNDLE", where: where(name), expected, found: "none" });
  };
  return {
    where: drive.where,
    read: async (name, limit = SMALL_FILE) => bytesOf(await file(name, limit)),
    open: async (name, limit) => {
      const blob = await file(name, limit);
      const hash = await hasher();
      for await (const piece of blob.stream() as unknown as AsyncIterable<Uint8Array>) hash.update(piece);
      return {
        bytes: blob.size,
        sha256: hash.digest(),
        range: (from, to) => bytesOf(blob.slice(from, to)),
        close: async () => {},
      };
    },
  };
}

export const markerOf = (drive: Drive): Promise<Marker | null> => readJson(markerSchema, drive, MARKER);
const isStaging = (e: Entry): boolean => e.isFolder && STAGING.test(e.name);

/** The first file or folder that is none of `owned`, or null. */
async function stranger(
  drive: WritableDrive,
  owned: ReadonlySet<string>,
  below = "",
): Promise<string | null> {
  for (const e of await drive.list(below)) {
    const name = join(below, e.name);
    if (SYSTEM.test(e.name) || (!e.isFolder && (owned.has(name) || name === MARKER))) continue;
    if (!below && isStaging(e)) continue;
    if (!e.isFolder || ![...owned].some((o) => o.startsWith(`${name}/`))) return name;
    const inner = await stranger(drive, owned, name);
    if (inner) return inner;
  }
  return null;
}
/**
 * Run `work` as the only writer of a flat folder of `kind`, once what a dead one left is finished, or swept.
 */
async function flatly(
  drive: WritableDrive,
  kind: FolderKind,
  work: (old: Marker | null) => Promise<void>,
): Promise<void> {
  await drive.alone("", async () => {
    const marker = await markerOf(drive);
    const { files = {}, writing } = marker ?? {};
    const other = await stranger(drive, new Set(Object.keys({ ...files, ...writing })));
    if (other) throw refused(drive.where, STRANGER, other);
    if (marker) checkKind(drive.where, marker, kind);
    // A file that somebody edited is theirs. On its way to another version a folder has files of both.
    for (const name of Object.keys({ ...files, ...writing })) {
      const sums = [files[name], writing?.[name]].filter((s) => s !== undefined);
      const data = await readWhole(drive, name, Number.POSITIVE_INFINITY);
      if (!data) continue;
      const { sha256 } = await sumOf(data);
      if (!sums.some((s) => s.sha256 === sha256)) throw refused(`${drive.where}/${name}`, ...EDITED);
    }
    if (marker && writing) await finish(drive, { ...marker, writing });
    for (const e of await drive.list("")) if (isStaging(e)) await drive.remove(e.name);
    await work(marker && writing ? await markerOf(drive) : marker);
  });
}
/** From a marker with `writing` to one without. */
async function finish(
  drive: WritableDrive,
  m: Marker & { readonly writing: Marker["files"] },
): Promise<void> {
  const staging = stagingOf(m);
  for (const [name, sum] of Object.entries(m.writing)) {
    const data = await readWhole(drive, `${staging}/${name}`, sum.bytes);
    if (data) {
      await drive.put(name, data);
      await drive.remove(`${staging}/${name}`);
      continue;
    }
    const found = await drive.get(name, Number.POSITIVE_INFINITY);
    if (found?.size !== sum.bytes)
      throw new WeftError({
        code: "WEFT_IO",
        where: `${drive.where}/${name}`,
        expected: `the file of ${sum.bytes} bytes that was being written`,
        found: "another, or none",
      });
  }
  for (const name of Object.keys(m.files)) {
    if (name in m.writing) continue;
    await drive.remove(name);
    // Folders that nothing is in any more.
    for (let at = name.lastIndexOf("/"); at > 0; at = name.lastIndexOf("/", at - 1))
      if (!(await drive.list(name.slice(0, at))).length) await drive.remove(name.slice(0, at));
  }
  const { format, kind, id, writing } = m;
  await drive.put(MARKER, print({ format, kind, id, files: writing }));
  await drive.remove(staging);
}
async function writeFlat(drive: WritableDrive, kind: FolderKind, files: Files): Promise<void> {
  await flatly(drive, kind, async (old) => {
    const id = randomName();
    const staging = stagingOf({ id });
    const writing: Record<string, FileSum> = {};
    const marker = { format: "weft-folder", kind, id } as const;
    const next = { ...marker, files: old?.files ?? {}, writing };
    try {
      for await (const [name, content] of files) {
        const data = await whole(content);
        await drive.put(`${staging}/${name}`, data);
        writing[name] = await sumOf(data);
      }
      // From here on the folder is the new one.
      await drive.put(MARKER, print(next));
    } catch (e) {
      // What cannot be removed either is swept by the next writer; what went wrong first is told.
      await drive.remove(staging).catch(() => {});
      throw e;
    }
    await finish(drive, next);
  });
}

const TRIES = 100;
async function readFlat(
  drive: Drive,
  names: readonly string[],
  limit: number,
  code: ErrorCode = "WEFT_IO",
): Promise<ReadonlyMap<string, Uint8Array>> {
  for (let i = 0; i < TRIES; i++) {
    const before = await markerOf(drive);
    const staged = before?.writing ? `${stagingOf(before)}/` : null;
    const out = new Map<string, Uint8Array>();
    for (const name of names) {
      const data =
        (staged && (await readWhole(drive, staged + name, limit))) ||
        (await readOr(drive, name, limit, code));
      if (data) out.set(name, data);
    }
    if ((await markerOf(drive))?.id === before?.id) return out;
  }
  throw replaced(drive.where);
}
async function readOr(
  drive: Drive,
  name: string,
  limit: number,
  code: ErrorCode,
): Promise<Uint8Array | null> {
  try {
    return await readWhole(drive, name, limit);
  } catch (e) {
    if (!(e instanceof WeftError)) throw e;
    const { where, expected, found, hint, retryable } = e;
    throw new WeftError({
      ...{ code, where, expected, found, retryable, cause: e.cause.cause },
      ...(hint && { hint }),
    });
  }
}

export const currentOf = (drive: Drive): Promise<Current | null> => readJson(currentSchema, drive, CURRENT);
/** Throws WEFT_IO that names what is neither a version of such files nor left by a writer of them. */
async function inspectVersions(drive: WritableDrive, names: readonly string[]): Promise<Current | null> {
  const current = await currentOf(drive);
  const owned = new Set([...names, ...Object.keys(current?.files ?? {})]);
  for (const e of await drive.list("")) {
    if (SYSTEM.test(e.name) || (!e.isFolder && e.name === CURRENT)) continue;
    if (!e.isFolder || !VERSION.test(e.name)) throw refusedVersions(drive.where, e.name);
    for (const i of await drive.list(e.name))
      if (!SYSTEM.test(i.name) && (i.isFolder || !owned.has(i.name)))
        throw refusedVersions(drive.where, `${e.name}/${i.name}`);
  }
  return current;
}
async function writeVersionOn(drive: WritableDrive, step: number, files: Files): Promise<void> {
  const list: [string, Uint8Array][] = [];
  for await (const [name, content] of files) list.push([name, await whole(content)]);
  await drive.alone("", async () => {
    const old = await inspectVersions(
      drive,
      list.map(([name]) => name),
    );
    const version = `v-${step}-${randomName()}`;
    const sums: Record<string, FileSum> = {};
    try {
      for (const [name, data] of list) {
        await drive.put(`${version}/${name}`, data);
        sums[name] = await sumOf(data);
      }
      await drive.put(CURRENT, print({ format: "weft-versions", version, files: sums }));
    } catch (e) {
      await drive.remove(version).catch(() => {});
      throw e;
    }
    for (const { name } of await drive.list(""))
      if (VERSION.test(name) && name !== version && name !== old?.version) await drive.remove(name);
  });
}
async function readVersionOf(drive: Drive): Promise<ReadonlyMap<string, Uint8Array>> {
  for (let tried: string | undefined; ; ) {
    const current = await currentOf(drive);
    if (!current) throw noVersion(`${drive.where}/${CURRENT}`);
    const out = new Map<string, Uint8Array>();
    for (const [name, sum] of Object.entries(current.files)) {
      const path = `${current.version}/${name}`;
      const data = await readWhole(drive, path, sum.bytes);
      if (!data) break;
      const found = await sumOf(data);
      if (found.sha256 !== sum.sha256) throw changedSince(`${drive.where}/${path}`, sum, found);
      out.set(name, data);
    }
    if (out.size === Object.keys(current.files).length) return out;
    // Two writers later the version is swept: there is a newer one to read.
    if (current.version === tried)
      throw new WeftError({
        code: "WEFT_IO",
        where: `${drive.where}/${current.version}`,
        expected: Object.keys(current.files).join(", "),
        found: [...out.keys()].join(", ") || "nothing",
        hint: "a file of the checkpoint is missing",
      });
    tried = current.version;
  }
}
