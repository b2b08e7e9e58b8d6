/**
 * Bundles that were loaded from addresses, kept: in a page's own storage, in Node in the user's cache. A file
 * lies under its hash, in pieces, so that what breaks off goes on where it stopped, bundles share what is the
 * same, and a new version of one fetches only what is new.
 *
 *   entries/<hash of the name>   which bundle it is: address, ETag, its manifest, and the one before that
 *   files/<sha-256>/<n>          pieces of a file; only the last may be shorter
 *   files/<sha-256>/sum          written last: the whole was as its hash says; hashes of the pieces
 *
 * A file is hashed while it comes, and each piece again whenever it is read: what was spoilt is fetched
 * again. One file, as keeping, reading and clearing share this layout and its locks.
 */
import * as v from "valibot";
import { WeftError } from "../errors.ts";
import { hasher, sha256 } from "../hash.ts";
import { isNode } from "../node.ts";
import type { BundleReader, RangeFile } from "../reader.ts";
import {
  ask,
  bodyOf,
  fileUrl,
  folderUrl,
  type Heard,
  type Remote,
  readBody,
  readUrl,
  shown,
  statusOf,
} from "../remote.ts";
import { bytes, exactly, foreign, record, SMALL_FILE, sha256Hex, text } from "../schema.ts";
import { showBytes } from "../units.ts";
import { isFull, readWhole, type WritableDrive } from "./drive.ts";
import { readJson } from "./folder.ts";
import { keepOwn, ownDrive } from "./own.ts";

/** Bytes of a piece: what is lost at most of a download whose tab is killed. */
export const PIECE = 4 * 2 ** 20;

const sumSchema = foreign({ bytes, pieces: v.array(sha256Hex) });
type Sum = v.InferOutput<typeof sumSchema>;
const entrySchema = foreign({
  format: exactly("weft-cached-bundle"),
  name: text,
  /** Without its query, which may be a secret. */
  url: text,
  etag: v.nullable(text),
  manifest: text,
  /** The manifest that was here before, until all of this one is. */
  before: v.nullable(text),
});
type Entry = v.InferOutput<typeof entrySchema>;
const filesSchema = foreign({ files: record(foreign({ bytes, sha256: sha256Hex })) });
type FileSums = Readonly<Record<string, { readonly bytes: number; readonly sha256: string }>>;
/** The files that a manifest names; null for what is none. */
function filesOf(manifest: string): FileSums | null {
  try {
    const parsed = v.safeParse(filesSchema, JSON.parse(manifest));
    return parsed.success ? (parsed.output.files as FileSums) : null;
  } catch {
    return null;
  }
}
/** The files without which nothing is played; of the others a device needs its own. */
const weightsOf = (files: FileSums): (readonly [string, FileSums[string]])[] =>
  Object.entries(files).filter(([name]) => name.startsWith("weights/"));

export interface CachedBundle {
  readonly name: string;
  /** Where it is from, without the query. */
  readonly url: string;
  /** Of its weights: bytes of files that are here, of how many. */
  readonly bytes: number;
  readonly total: number;
  /** Are all weights here? */
  readonly complete: boolean;
}
const entryPath = async (name: string): Promise<string> => `entries/${(await sha256(name)).slice(0, 32)}`;
const filePath = (sha: string): string => `files/${sha}`;
const readEntry = async (drive: WritableDrive, name: string): Promise<Entry | null> =>
  readJson(entrySchema, drive, await entryPath(name));
const sumOf = (drive: WritableDrive, sha: string): Promise<Sum | null> =>
  readJson(sumSchema, drive, `${filePath(sha)}/sum`);
/** The name of a bundle that nobody named. */
export const nameOf = (location: string | URL): string => shown(folderUrl(location)).replace(/\/$/, "");

async function entries(drive: WritableDrive): Promise<Entry[]> {
  const all = await Promise.all(
    (await drive.list("entries")).map(({ name }) => readJson(entrySchema, drive, `entries/${name}`)),
  );
  return all.filter((e) => e !== null);
}
/** Remove files that no bundle has. */
async function sweep(drive: WritableDrive): Promise<void> {
  const used = new Set(
    (await entries(drive)).flatMap((e) =>
      [e.manifest, e.before].flatMap((m) => Object.values(filesOf(m ?? "") ?? {}).map((f) => f.sha256)),
    ),
  );
  for (const { name } of await drive.list("files")) if (!used.has(name)) await drive.remove(filePath(name));
}

/** Bytes of files that are here already, whole. */
export async function storedOf(drive: WritableDrive, files: FileSums): Promise<number> {
  let stored = 0;
  for (const { sha256, bytes } of Object.values(files)) if (await sumOf(drive, sha256)) stored += bytes;
  return stored;
}

export async function listCached(): Promise<CachedBundle[]> {
  const drive = await ownDrive("bundles");
  if (!drive) return [];
  return Promise.all(
    (await entries(drive)).map(async ({ name, url, manifest }) => {
      const weights = weightsOf(filesOf(manifest) ?? {});
      const bytes = await storedOf(drive, Object.fromEntries(weights));
      const total = weights.reduce((n, [, f]) => n + f.bytes, 0);
      return { name, url, bytes, total, complete: bytes === total };
    }),
  );
}
export async function deleteCached(name: string): Promise<boolean> {
  const drive = await ownDrive("bundles");
  if (!drive) return false;
  return drive.alone("entries", async () => {
    const path = await entryPath(name);
    if (!(await drive.get(path, SMALL_FILE))) return false;
    await drive.remove(path);
    await sweep(drive);
    return true;
  });
}

/**
 * A reader of the bundle at `location` that keeps what it reads, as `name`, and reads it from there the next
 * time; null where nothing can be kept. With no network, or a server that fails, it plays what is here.
 */
export async function cachedReader(
  location: string | URL,
  name: string | undefined,
  o: Remote,
): Promise<BundleReader | null> {
  const drive = await ownDrive("bundles");
  return drive && new Cached(drive, folderUrl(location), name ?? nameOf(location), o).reader;
}
/**
 * What is here of the bundle at `location`, and what the server has; null where nothing can be kept. Keeps
 * nothing itself.
 */
export async function lookAt(
  location: string | URL,
  name: string | undefined,
  o: Remote,
): Promise<{ reader: BundleReader; room: (files: FileSums) => Promise<Omit<Storage, "download">> } | null> {
  const drive = await ownDrive("bundles");
  if (!drive) return null;
  const { reader } = new Cached(drive, folderUrl(location), name ?? nameOf(location), o, false);
  return {
    reader,
    room: async (files) => ({ stored: await storedOf(drive, files), free: await drive.room() }),
  };
}
/** Of the files that a load needs, bytes: to be fetched, here already, and that there is room for. */
export interface Storage {
  readonly download: number;
  readonly stored: number;
  /** Null where nobody says. */
  readonly free: number | null;
}
/** One file of a bundle. */
interface Wanted {
  readonly url: URL;
  readonly bytes: number;
  readonly sha256: string;
}
class Cached {
  /** Of the manifest that was read. */
  private files: FileSums = {};
  private checkedRoom = false;
  constructor(
    private readonly drive: WritableDrive,
    private readonly base: URL,
    private readonly name: string,
    private o: Remote,
    /** Else the manifest is looked at, and not kept. */
    private readonly keeps = true,
  ) {}
  get reader(): BundleReader {
    return {
      where: shown(this.base).replace(/\/$/, ""),
      read: async (name, limit = SMALL_FILE, heard) => {
        if (name === "manifest.json") return new TextEncoder().encode(await this.manifest());
        const file = this.wanted(name);
        if (!file) return readUrl(fileUrl(this.base, name), limit, this.o, heard);
        const opened = await this.open(file, heard);
        return opened.range(0, opened.bytes);
      },
      open: async (name, limit, heard) => {
        const file = this.wanted(name);
        if (file) return this.open(file, heard);
        const bytes = await readUrl(fileUrl(this.base, name), limit, this.o, heard);
        const hash = await sha256(bytes);
        return {
          ...{ bytes: bytes.length, sha256: hash, close: async () => {} },
          range: async (from, to) => bytes.subarray(from, to),
        };
      },
      loaded: () => this.settle(),
    };
  }
  private wanted(name: string): Wanted | null {
    const file = Object.hasOwn(this.files, name) ? this.files[name]! : null;
    return file && { url: fileUrl(this.base, name), bytes: file.bytes, sha256: file.sha256 };
  }

  /** What the server has now, else what is here. */
  private async manifest(): Promise<string> {
    const { drive, name, base, o } = this;
    const entry = await readEntry(drive, name);
    const url = fileUrl(base, "manifest.json");
    let text = entry?.manifest ?? "";
    const asked = isNode && entry?.etag ? { "if-none-match": entry.etag } : {};
    try {
      // The browser's own cache knows the tag, and asks without what another origin would have to allow.
      const answer = await ask(
        url,
        o,
        { headers: asked, cache: "no-cache" },
        (status) => status === 200 || (status === 304 && entry !== null),
      );
      if (answer.status === 200) {
        text = new TextDecoder().decode(await readBody(answer, url, SMALL_FILE, o));
        if (this.keeps && text !== entry?.manifest && filesOf(text)) {
          if (!entry) keepOwn();
          await this.enter(entry, text, answer.headers.get("etag"));
        }
      }
    } catch (e) {
      const unreachable = e instanceof WeftError && (statusOf(e) === undefined || statusOf(e)! >= 500);
      if (!entry || !unreachable || isFull(e)) throw e;
      text = await this.playable(entry);
    }
    this.files = filesOf(text) ?? {};
    return text;
  }
  /** Of what is here without a network: the newest version that is whole, as far as anybody knows. */
  private async playable({ manifest, before }: Entry): Promise<string> {
    for (const text of [manifest, before])
      if (text) {
        const sums = weightsOf(filesOf(text) ?? {}).map(([, f]) => sumOf(this.drive, f.sha256));
        if ((await Promise.all(sums)).every((s) => s !== null)) return text;
      }
    return manifest;
  }
  private async enter(old: Entry | null, manifest: string, etag: string | null): Promise<void> {
    const { drive, name, base } = this;
    const entry: Entry = {
      ...{ format: "weft-cached-bundle", name, url: shown(base).replace(/\/$/, ""), etag, manifest },
      before: old?.manifest ?? null,
    };
    await drive.alone("entries", async () =>
      drive.put(await entryPath(name), new TextEncoder().encode(JSON.stringify(entry))),
    );
  }
  /** All of it was read: what only the version before it had may go. */
  private async settle(): Promise<void> {
    const { drive, name } = this;
    // What is read again later is not the load's to abort.
    this.o = { ...this.o, signal: undefined };
    await drive.alone("entries", async () => {
      const entry = await readEntry(drive, name);
      if (!entry?.before) return;
      const next: Entry = { ...entry, before: null };
      await drive.put(await entryPath(name), new TextEncoder().encode(JSON.stringify(next)));
      await sweep(drive);
    });
  }

  /** A file that is here, whole: fetched where it is not. */
  private async open(file: Wanted, heard?: Heard): Promise<RangeFile> {
    let sum = await this.fetched(file, heard);
    let last: { readonly n: number; readonly data: Uint8Array } | null = null;
    const piece = async (n: number): Promise<Uint8Array> => {
      if (last?.n === n) return last.data;
      for (let again = false; ; again = true) {
        const data = await readWhole(this.drive, `${filePath(file.sha256)}/${n}`, PIECE);
        if (data && (await sha256(data)) === sum.pieces[n]) {
          last = { n, data };
          return data;
        }
        if (again)
          throw new WeftError({
            code: "WEFT_IO",
            where: `${this.drive.where}/${filePath(file.sha256)}/${n}`,
            expected: "what was written there",
            found: data ? "something else" : "nothing",
          });
        // Spoilt, or deleted by another tab: everything up to here that is right stays.
        await this.drive.remove(`${filePath(file.sha256)}/sum`);
        await this.drive.remove(`${filePath(file.sha256)}/${n}`);
        sum = await this.fetched(file);
      }
    };
    return {
      bytes: file.bytes,
      sha256: file.sha256,
      range: async (from, to) => {
        const first = await piece(Math.floor(from / PIECE));
        const start = from - (from % PIECE);
        if (to <= start + first.length) return first.subarray(from - start, to - start);
        const out = new Uint8Array(to - from);
        out.set(first.subarray(from - start));
        for (let at = start + PIECE; at < to; at += PIECE)
          out.set((await piece(at / PIECE)).subarray(0, to - at), at - from);
        return out;
      },
      close: async () => {
        last = null;
      },
    };
  }
  private async fetched(file: Wanted, heard?: Heard): Promise<Sum> {
    const { drive, o } = this;
    const path = filePath(file.sha256);
    const known = await sumOf(drive, file.sha256);
    if (known) {
      heard?.(file.bytes);
      return known;
    }
    await this.checkRoom();
    return drive.alone(
      path,
      async () => {
        // Another tab may have been faster.
        const theirs = await sumOf(drive, file.sha256);
        if (theirs) {
          heard?.(file.bytes);
          return theirs;
        }
        const fetching = async (): Promise<Sum | null> => {
          const sum = await new Fetching(drive, path, file, o, heard).run();
          if (!sum) for (const { name } of await drive.list(path)) await drive.remove(`${path}/${name}`);
          return sum;
        };
        // What was here before may have been spoilt: once more from the start.
        const resumed = (await drive.list(path)).length > 0;
        const sum = (await fetching()) ?? (resumed ? await fetching() : null);
        if (sum) return sum;
        throw new WeftError({
          code: "WEFT_BUNDLE",
          where: shown(file.url),
          expected: `${file.bytes} bytes of sha-256 ${file.sha256}`,
          found: "others",
          hint: "the file was changed after it was compiled, or cut off on its way",
        });
      },
      o.signal,
    );
  }
  /** Once a load, before the first byte: all weights have to find room. Throws WEFT_IO. */
  private async checkRoom(): Promise<void> {
    if (this.checkedRoom) return;
    this.checkedRoom = true;
    const weights = Object.fromEntries(weightsOf(this.files));
    const total = Object.values(weights).reduce((n, f) => n + f.bytes, 0);
    const missing = total - (await storedOf(this.drive, weights));
    const room = await this.drive.room();
    if (room !== null && missing > room) throw noRoom(this.drive.where, missing, room);
  }
}
export const noRoom = (where: string, needed: number, room: number | null): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where,
    expected: `${showBytes(needed, Math.ceil)} of storage`,
    found:
      room === null
        ? "less"
        : `${showBytes(room, Math.floor)}, ${showBytes(Math.max(0, needed - room), Math.ceil)} too few`,
    hint: "delete what is not used with cache.delete(name), or load with { cache: false }",
  });

/** A file on its way, from the first piece that is missing. */
class Fetching {
  private n = 0;
  /** Of piece `n`. */
  private filled = 0;
  private readonly piece = new Uint8Array(PIECE);
  private readonly sums: string[] = [];
  constructor(
    private readonly drive: WritableDrive,
    private readonly path: string,
    private readonly file: Wanted,
    private readonly o: Remote,
    private readonly heard: Heard | undefined,
  ) {}
  private get at(): number {
    return this.n * PIECE + this.filled;
  }
  /** Null for a file that is not what its hash says. */
  async run(): Promise<Sum | null> {
    const { file, drive, path } = this;
    let hash = await hasher();
    while (this.at < file.bytes) {
      const data = await readWhole(drive, `${path}/${this.n}`, PIECE);
      if (!data?.length || this.at + data.length > file.bytes) break;
      hash.update(data);
      this.piece.set(data);
      this.filled = data.length;
      this.heard?.(data.length);
      if (data.length < PIECE) break;
      await this.next();
    }
    if (this.at < file.bytes) {
      const from = this.at;
      const headers = from ? { range: `bytes=${from}-` } : {};
      const answer = await ask(
        file.url,
        this.o,
        { headers },
        (status) => status === 200 || (from > 0 && (status === 206 || status === 416)),
      );
      if (from && answer.status === 200) {
        // A server without ranges: all of it comes again.
        hash = await hasher();
        this.heard?.(-from);
        [this.n, this.filled, this.sums.length] = [0, 0, 0];
      } else if (from && !answer.headers.get("content-range")?.startsWith(`bytes ${from}-`)) {
        await answer.body?.cancel();
        return null;
      }
      try {
        for await (const data of bodyOf(answer, file.url, this.o)) {
          if (this.at + data.length > file.bytes) return null;
          hash.update(data);
          this.heard?.(data.length);
          for (let taken = 0; taken < data.length; ) {
            const some = data.subarray(taken, taken + PIECE - this.filled);
            this.piece.set(some, this.filled);
            this.filled += some.length;
            taken += some.length;
            if (this.filled === PIECE) {
              await this.put();
              await this.next();
            }
          }
        }
      } catch (e) {
        // What came is kept for the next attempt, if it can be.
        if (this.filled && !isFull(e)) await this.put().catch(() => {});
        throw e;
      }
    }
    if (this.at !== file.bytes || hash.digest() !== file.sha256) return null;
    if (this.filled) {
      await this.put();
      await this.next();
    }
    const sum: Sum = { bytes: file.bytes, pieces: this.sums };
    await drive.put(`${path}/sum`, new TextEncoder().encode(JSON.stringify(sum)));
    return sum;
  }
  private async put(): Promise<void> {
    const { drive, path, file } = this;
    try {
      await drive.put(`${path}/${this.n}`, this.piece.subarray(0, this.filled));
    } catch (e) {
      if (!isFull(e)) throw e;
      throw noRoom(drive.where, file.bytes - this.n * PIECE, await drive.room());
    }
  }
  private async next(): Promise<void> {
    this.sums.push(await sha256(this.piece.subarray(0, this.filled)));
    this.n++;
    this.filled = 0;
  }
}
