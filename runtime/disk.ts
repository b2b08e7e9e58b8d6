/**
 * The disk, as folders, versions and readers use it: what is written is durable when its promise resolves,
 * what is read is a regular file of bounded size, and what the system says becomes a WeftError that names the
 * path. Node alone.
 */
import type { GenericSchema, InferOutput } from "valibot";
import { type ErrorCode, WeftError } from "./bundle.ts";
import { type Dirent, type FileHandle, node, type Stats } from "./node.ts";
import type { Content, FileSum } from "./records.ts";
import { check, SMALL_FILE } from "./schema.ts";

/** An entry of a folder. */
export type Entry = Dirent;

/** Names that nobody can guess or meet twice. */
export const randomName = async (): Promise<string> => (await node()).crypto.randomBytes(8).toString("hex");
export const sumOf = async (data: Uint8Array): Promise<FileSum> => ({
  bytes: data.length,
  sha256: (await node()).crypto.createHash("sha256").update(data).digest("hex"),
});

export const systemCode = (e: unknown): string | undefined => (e as NodeJS.ErrnoException | null)?.code;
/** What `f` gives, or `otherwise` where it fails with one of these system codes. */
export async function unless<T, U>(
  codes: readonly string[],
  f: () => Promise<T>,
  otherwise: U,
): Promise<T | U> {
  try {
    return await f();
  } catch (e) {
    if (!codes.includes(systemCode(e) ?? "")) throw e;
    return otherwise;
  }
}
/** Errors of the system inside `f` become WEFT_IO at `where`. */
export async function onDisk<T>(where: string, expected: string, f: () => Promise<T>): Promise<T> {
  try {
    return await f();
  } catch (cause) {
    if (cause instanceof WeftError || systemCode(cause) === undefined) throw cause;
    throw new WeftError({ code: "WEFT_IO", where, expected, found: (cause as Error).message, cause });
  }
}

/**
 * Make what was done to a folder's entries durable. Windows, and file systems that cannot, have no such call.
 */
export async function syncFolder(path: string): Promise<void> {
  const { fs } = await node();
  const cannot =
    process.platform === "win32" ? ["EPERM", "EISDIR", "EACCES", "EINVAL"] : ["EINVAL", "ENOTSUP"];
  const folder = await unless(cannot, () => fs.open(path, "r"), null);
  try {
    if (folder) await unless(cannot, () => folder.sync(), undefined);
  } finally {
    await folder?.close();
  }
}
/** A folder and what it takes to reach it, durable. Resolves with the topmost one that was made, or null. */
export async function makeFolder(dir: string): Promise<string | null> {
  const { fs, path } = await node();
  const first = await fs.mkdir(dir, { recursive: true });
  if (first === undefined) return null;
  for (let at = dir; ; at = path.dirname(at)) {
    await syncFolder(path.dirname(at));
    if (at === first) return first;
  }
}
/** A new file in an existing folder, durable but for its entry there (`syncFolder`). */
export async function writeFile(path: string, content: Content): Promise<FileSum> {
  const { fs, crypto } = await node();
  const whole = typeof content === "string" ? new TextEncoder().encode(content) : content;
  const hash = crypto.createHash("sha256");
  let bytes = 0;
  const file = await fs.open(path, "wx");
  try {
    for await (const piece of whole instanceof Uint8Array ? [whole] : whole) {
      await file.writeFile(piece);
      hash.update(piece);
      bytes += piece.length;
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return { bytes, sha256: hash.digest("hex") };
}

/** Is what a file has to be replaced? */
export type Ours = (file: string) => Promise<boolean>;
/**
 * Is there a file of that name, which is `ours`? Throws WEFT_IO where there is anything else, or no folder to
 * put it in.
 */
export async function claimFile(file: string, ours: Ours): Promise<boolean> {
  const { fs, path } = await node();
  return onDisk(file, "a file that can be written", async () => {
    await fs.access(path.dirname(path.resolve(file)), fs.constants.W_OK);
    const there = await unless(["ENOENT"], () => fs.lstat(file), null);
    if (there && !(there.isFile() && (await ours(file)))) throw taken(file);
    return there !== null;
  });
}
const taken = (file: string): WeftError =>
  new WeftError({
    code: "WEFT_IO",
    where: file,
    expected: "a name that is free",
    found: "a file, or a folder",
    hint: "weft only replaces what it wrote itself: choose another name, or move this away",
  });
/**
 * A file, whole or not at all, and durable when it resolves; it may replace one that is `ours`. Throws as
 * `claimFile`.
 */
export async function writeOwnFile(file: string, content: Content, ours: Ours): Promise<FileSum> {
  const { fs, path } = await node();
  await claimFile(file, ours);
  const folder = path.dirname(path.resolve(file));
  return onDisk(file, "a file that can be written", async () => {
    const aside = path.join(folder, `.${path.basename(file)}.weft-${await randomName()}`);
    try {
      const sum = await writeFile(aside, content);
      // A link never replaces. Where there is one of ours, or a file system has no links, what the name had a
      // moment ago is replaced.
      const linked = await unless(
        ["EEXIST", "EPERM", "ENOTSUP", "ENOSYS", "EMLINK"],
        () => fs.link(aside, file).then(() => true),
        false,
      );
      if (!linked) {
        await claimFile(file, ours);
        await fs.rename(aside, file);
      }
      return sum;
    } finally {
      await fs.rm(aside, { force: true });
      await syncFolder(folder);
    }
  });
}

export interface RegularFile {
  readonly bytes: number;
  readonly handle: FileHandle;
}
/**
 * Open a file to read: a regular one of at most `limit` bytes, at once (opening a FIFO waits for its writer).
 * With `inside`, no link may lead out of that folder; in a Hugging Face cache (`MODEL/snapshots/REVISION`),
 * whose files are links to `MODEL/blobs`, those are inside. Throws `code` (default WEFT_IO); its cause tells
 * a file that is missing.
 */
export async function openRegular(
  path: string,
  limit: number,
  o: { readonly inside?: string; readonly code?: ErrorCode } = {},
): Promise<RegularFile> {
  const { fs, path: p } = await node();
  const refuse = (expected: string, found: string, cause?: unknown): never => {
    throw new WeftError({
      code: o.code ?? "WEFT_IO",
      where: path,
      expected,
      found,
      ...(cause ? { cause } : {}),
    });
  };
  try {
    const real = await fs.realpath(path);
    if (o.inside !== undefined) {
      const folder = await fs.realpath(o.inside);
      const roots = [folder];
      if (p.basename(p.dirname(folder)) === "snapshots") roots.push(p.join(folder, "../../blobs"));
      if (!roots.some((root) => real.startsWith(root.endsWith(p.sep) ? root : root + p.sep)))
        refuse("a file inside its folder", `a link to ${real}`);
    }
    const { O_RDONLY, O_NONBLOCK = 0, O_NOFOLLOW = 0 } = fs.constants;
    const handle = await fs.open(real, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
    try {
      const stat = await handle.stat();
      if (!stat.isFile()) refuse("a regular file", kindOf(stat));
      if (stat.size > limit) refuse(`at most ${limit} bytes`, `${stat.size} bytes`);
      return { bytes: stat.size, handle };
    } catch (e) {
      await handle.close();
      throw e;
    }
  } catch (cause) {
    if (cause instanceof WeftError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    return refuse("a readable file", code === "ENOENT" ? "none" : message, cause);
  }
}
function kindOf(stat: Stats): string {
  if (stat.isDirectory()) return "a folder";
  if (stat.isFIFO()) return "a pipe";
  if (stat.isSocket()) return "a socket";
  return "a device";
}
/** Does an error of `openRegular` say that there is no such file? */
export const isMissing = (e: unknown): boolean =>
  ["ENOENT", "ENOTDIR"].includes(systemCode(e instanceof WeftError ? e.cause.cause : e) ?? "");

/** Most bytes of one call: Node aborts the process at 2 GiB. */
export const ONE_READ = 2 ** 30;
/** Bytes `from` to `to` of an open file. Throws if it ends before. */
export async function readRange(
  { handle }: RegularFile,
  from: number,
  to: number,
  into = new Uint8Array(to - from),
): Promise<Uint8Array> {
  let at = 0;
  while (at < to - from) {
    const { bytesRead } = await handle.read(into, at, Math.min(to - from - at, ONE_READ), from + at);
    if (!bytesRead) throw new Error(`the file ends at byte ${from + at}`);
    at += bytesRead;
  }
  return into.subarray(0, to - from);
}
/** All of an open file, which is closed then. */
export async function readAndClose(file: RegularFile): Promise<Uint8Array> {
  try {
    return await readRange(file, 0, file.bytes);
  } finally {
    await file.handle.close();
  }
}
/** A whole file, as `openRegular` opens it. */
export async function readRegular(
  path: string,
  limit: number,
  o: { readonly inside?: string; readonly code?: ErrorCode } = {},
): Promise<Uint8Array> {
  const file = await openRegular(path, limit, o);
  return onDisk(path, "a readable file", () => readAndClose(file));
}
/** A JSON file of `schema`, or null where there is none. Throws WEFT_IO for anything else. */
export async function readRecord<const S extends GenericSchema>(
  schema: S,
  where: string,
  inside: string,
): Promise<InferOutput<S> | null> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(await readRegular(where, SMALL_FILE, { inside })));
  } catch (cause) {
    if (isMissing(cause)) return null;
    if (cause instanceof WeftError) throw cause;
    throw new WeftError({ code: "WEFT_IO", where, expected: "JSON", found: (cause as Error).message, cause });
  }
  return check(schema, value, { code: "WEFT_IO", where });
}
