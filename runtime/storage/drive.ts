/**
 * Where files may lie that is no folder of the disk: a directory handle, a page's database, blobs in memory,
 * an address. Names are paths below it. What a drive has to give is little, so that the laws of folders,
 * versions and the cache of bundles are written once above it.
 */
import { WeftError } from "../errors.ts";

export interface Drive {
  /** What errors call it. */
  readonly where: string;
  /** A file, or null where there is none. Throws WEFT_IO, and for more than `limit` bytes. */
  readonly get: (path: string, limit: number) => Promise<Blob | null>;
}
export interface Entry {
  readonly name: string;
  readonly isFolder: boolean;
}
export interface WritableDrive extends Drive {
  /** Replace a file, whole or not at all; folders on the way are made. Throws WEFT_IO. */
  readonly put: (path: string, data: Uint8Array) => Promise<void>;
  /** Remove a file, or a folder with all that is in it; none is as good as gone. */
  readonly remove: (path: string) => Promise<void>;
  /** What is in a folder, by name; nothing where there is none. */
  readonly list: (path: string) => Promise<readonly Entry[]>;
  /** Run `work` while nobody else, in any tab or process, runs any under this path. */
  readonly alone: <T>(path: string, work: () => Promise<T>, signal?: AbortSignal) => Promise<T>;
  /** Bytes that are left to be written; null where nobody says. */
  readonly room: () => Promise<number | null>;
}
export const isWritable = (drive: Drive): drive is WritableDrive => "put" in drive;

export const join = (...parts: readonly string[]): string => parts.filter((p) => p !== "").join("/");
export const bytesOf = async (blob: Blob): Promise<Uint8Array> => new Uint8Array(await blob.arrayBuffer());
/** Replaced, or removed, after it was found: such a blob cannot be read any more. */
const isGone = (e: unknown): boolean =>
  ["NotReadableError", "NotFoundError"].includes((e as { name?: string } | null)?.name ?? "");
const TRIES = 100;
/** A whole file of at most `limit` bytes as it is at one moment; null where there is none. */
export async function readWhole(drive: Drive, path: string, limit: number): Promise<Uint8Array | null> {
  for (let i = 0; ; i++)
    try {
      const blob = await drive.get(path, limit);
      return blob && (await bytesOf(blob));
    } catch (e) {
      if (!isGone(e) || i === TRIES) throw e;
    }
}
export const byName = (a: { readonly name: string }, b: { readonly name: string }): number =>
  a.name < b.name ? -1 : 1;
/** The file, if it has at most `limit` bytes. Throws WEFT_IO. */
export function limited(blob: Blob, limit: number, where: string): Blob {
  if (blob.size <= limit) return blob;
  const expected = `at most ${limit} bytes`;
  throw new WeftError({ code: "WEFT_IO", where, expected, found: `${blob.size} bytes` });
}
/** What a page's storage says becomes WEFT_IO at `where`. */
export async function onDrive<T>(where: string, expected: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof WeftError || !(cause instanceof Error)) throw cause;
    throw new WeftError({
      code: "WEFT_IO",
      where,
      expected,
      found: isFull(cause) ? "no room" : cause.message,
      cause,
    });
  }
}
/** Does an error say that there is no room for more? */
export function isFull(e: unknown): boolean {
  if (e instanceof WeftError) return isFull(e.cause.cause);
  const { name, code } = (e ?? {}) as { name?: unknown; code?: unknown };
  return name === "QuotaExceededError" || code === "ENOSPC" || code === "EDQUOT";
}

/** Who waits for whom, by name, where there are no locks between tabs. */
const queues = new Map<string, Promise<unknown>>();
/**
 * One at a time by name: in all tabs of an origin where the browser has locks (pages over plain http have
 * none), else in this one.
 */
export async function inTurn<T>(name: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
  const { locks } = (globalThis.navigator ?? {}) as Partial<Navigator>;
  if (locks) {
    const granted = locks.request(name, { ...(signal && { signal }) }, work);
    return granted as Promise<T>;
  }
  const before = queues.get(name) ?? Promise.resolve();
  const run = before.then(work);
  const settled = run.catch(() => {});
  queues.set(name, settled);
  try {
    return await run;
  } finally {
    if (queues.get(name) === settled) queues.delete(name);
  }
}
