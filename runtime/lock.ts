/**
 * A lock on a folder, for one writer at a time in any number of processes and machines that share it.
 *
 * `DIR/.weft.lock/` is a folder with one file, named by the holder's random id, that tells who the holder is.
 * It is made beside itself and renamed into place, which fails while another is there: so a lock is never
 * seen half-made. Whoever finds a dead holder removes the file of that id, and no other; the empty folder
 * that is left is free to be renamed over. So a dead holder's lock can be taken by one alone, however many
 * try.
 *
 * A holder on this machine is dead when its process is (pid and start time: pids come back). A process
 * elsewhere (another machine, another container) cannot be asked: it touches its file as long as it lives,
 * and is dead when the file has not moved for a lease.
 */
import { WeftError } from "./bundle.ts";
import { makeFolder, onDisk, randomName, unless } from "./disk.ts";
import { node } from "./node.ts";

export const LOCK = ".weft.lock";

interface Owner {
  readonly pid: number;
  /** Host, boot and process namespace, where pids mean the same. */
  readonly space: string;
  /** When the process began, in the system's own unit; null where only the pid is known. */
  readonly started: string | null;
}
export interface LockOptions {
  /** Milliseconds to wait for another writer. */
  readonly patience?: number;
  /** Milliseconds without a sign of life after which a holder elsewhere is dead. */
  readonly lease?: number;
}
export interface Lock {
  /** Throws WEFT_CONFLICT if the lock was taken away: this process slept through its lease. */
  readonly check: () => Promise<void>;
}

/**
 * State and start of a process on Linux, or null for one that is not there; undefined where there is no
 * /proc.
 */
async function startOf(pid: number): Promise<string | null | undefined> {
  if (process.platform !== "linux") return undefined;
  const { fs } = await node();
  const stat = await unless(["ENOENT", "ESRCH"], () => fs.readFile(`/proc/${pid}/stat`, "utf8"), null);
  // After the name, which may hold anything: state first, start time twentieth. A zombie is dead.
  const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
  return !fields || "ZX".includes(fields[0]!) ? null : fields[19]!;
}
async function isAlive({ pid, started }: Owner): Promise<boolean> {
  const now = await startOf(pid);
  if (now !== undefined) return now !== null && now === started;
  try {
    process.kill(pid, 0);
    return true;
  } catch (e) {
    return (e as NodeJS.ErrnoException).code === "EPERM";
  }
}
async function describe(): Promise<Owner> {
  const { fs, os } = await node();
  const known = (what: Promise<string>): Promise<string> => what.then((s) => s.trim()).catch(() => "");
  const linux = process.platform === "linux";
  const boot = linux ? await known(fs.readFile("/proc/sys/kernel/random/boot_id", "utf8")) : "";
  const pids = linux ? await known(fs.readlink("/proc/self/ns/pid")) : "";
  return {
    pid: process.pid,
    space: `${os.hostname()} ${boot} ${pids}`,
    started: (await startOf(process.pid)) ?? null,
  };
}
let described: Promise<Owner> | undefined;
const self = (): Promise<Owner> => (described ??= describe());
/** This process, for who asks later whether it lives. */
export const whoAmI = async (): Promise<string> => JSON.stringify(await self());
/** Is a process that said who it is known to be gone? One of another machine or container never is. */
export async function isDead(said: string): Promise<boolean> {
  let owner: Owner;
  try {
    owner = JSON.parse(said) as Owner;
  } catch {
    return false;
  }
  return owner.space === (await self()).space && !(await isAlive(owner));
}

interface Holder {
  readonly id: string;
  /** Null where the machine stopped before the file's contents reached the disk. */
  readonly owner: Owner | null;
  readonly touched: number;
}
async function holderOf(path: string): Promise<Holder | null> {
  const { fs, path: p } = await node();
  const [id] = await unless(["ENOENT"], () => fs.readdir(path), []);
  if (id === undefined) return null;
  const file = p.join(path, id);
  const read = async (): Promise<readonly [string, number]> => [
    await fs.readFile(file, "utf8"),
    (await fs.stat(file)).mtimeMs,
  ];
  const [text, touched] = await unless(["ENOENT"], read, [null, 0] as const);
  if (text === null) return null;
  try {
    return { id, owner: JSON.parse(text) as Owner, touched };
  } catch {
    return { id, owner: null, touched };
  }
}

/** Writers of this process, by folder: each waits for the one before it. */
const queues = new Map<string, Promise<unknown>>();

/**
 * Run `work` as the only writer of `dir`, which is made if it is missing, and removed again if nothing is in
 * it then. Throws WEFT_CONFLICT (retryable) when another writer does not end in time, WEFT_IO when the folder
 * cannot be made or written.
 */
export async function withLock<T>(
  dir: string,
  work: (lock: Lock) => Promise<T>,
  options: LockOptions = {},
): Promise<T> {
  const { fs, path } = await node();
  const made = await onDisk(dir, "a folder that can be made", () => makeFolder(dir));
  try {
    // One name for it, whatever links lead there; gone only while another claims it.
    const key = await onDisk(dir, "a folder", () => unless(["ENOENT"], () => fs.realpath(dir), dir));
    const before = queues.get(key);
    const run = (before ?? Promise.resolve()).then(() => locked(dir, work, options));
    const settled = run.catch(() => {});
    queues.set(key, settled);
    try {
      return await run;
    } finally {
      if (queues.get(key) === settled) queues.delete(key);
    }
  } finally {
    // Only empty folders go.
    for (let at = dir; made !== null; at = path.dirname(at)) {
      const gone = await unless(
        ["ENOTEMPTY", "EEXIST", "ENOENT", "EBUSY", "EPERM", "EACCES"],
        () => fs.rmdir(at).then(() => true),
        false,
      );
      if (!gone || at === made) break;
    }
  }
}
async function locked<T>(dir: string, work: (lock: Lock) => Promise<T>, o: LockOptions): Promise<T> {
  const { fs, path } = await node();
  const lease = o.lease ?? 20_000;
  const id = await randomName();
  const lock = path.join(dir, LOCK);
  await onDisk(dir, "a folder that can be written", () => acquire(dir, id, o.patience ?? 60_000, lease));
  const file = path.join(lock, id);
  const beat = setInterval(() => {
    const now = new Date();
    // What cannot be touched any more is found by `check`.
    fs.utimes(file, now, now).catch(() => {});
  }, lease / 5);
  beat.unref();
  try {
    return await work({
      check: async () => {
        if ((await unless(["ENOENT"], () => fs.stat(file), null)) === null)
          throw conflict(dir, "the lock of this writer", "one that was taken over");
      },
    });
  } finally {
    clearInterval(beat);
    await unless(["ENOENT"], () => fs.unlink(file), undefined);
    await unless(["ENOENT", "ENOTEMPTY", "EEXIST"], () => fs.rmdir(lock), undefined);
  }
}
const conflict = (dir: string, expected: string, found: string, hint?: string): WeftError =>
  new WeftError({
    code: "WEFT_CONFLICT",
    where: dir,
    expected,
    found,
    ...(hint && { hint }),
    retryable: true,
  });

async function acquire(dir: string, id: string, patience: number, lease: number): Promise<void> {
  const { fs, path } = await node();
  const lock = path.join(dir, LOCK);
  const made = path.join(dir, `${LOCK}-${id}`);
  const me = await self();
  const until = performance.now() + patience;
  let seen = { id: "", touched: 0, at: 0 };
  for (;;) {
    const holder = await holderOf(lock);
    const now = performance.now();
    if (holder && (holder.id !== seen.id || holder.touched !== seen.touched))
      seen = { id: holder.id, touched: holder.touched, at: now };
    const dead =
      holder &&
      (!holder.owner ||
        (holder.owner.space === me.space ? !(await isAlive(holder.owner)) : now - seen.at >= lease));
    if (holder && dead) await unless(["ENOENT"], () => fs.unlink(path.join(lock, holder.id)), undefined);
    if (!holder || dead) {
      // Where a folder cannot be renamed over an empty one; fails while someone is in it.
      await unless(["ENOENT", "ENOTEMPTY", "EEXIST"], () => fs.rmdir(lock), undefined);
      const attempt = async (): Promise<boolean> => {
        await makeFolder(dir);
        await fs.mkdir(made);
        await fs.writeFile(path.join(made, id), JSON.stringify(me));
        await fs.rename(made, lock);
        return true;
      };
      // Another was faster, or swept what was being made.
      const lost = ["ENOENT", "ENOTEMPTY", "EEXIST", ...(process.platform === "win32" ? ["EPERM"] : [])];
      try {
        if (await unless(lost, attempt, false)) return;
      } finally {
        await fs.rm(made, { recursive: true, force: true });
      }
    }
    if (now >= until)
      throw conflict(
        dir,
        "a folder that nobody else writes",
        holder?.owner
          ? `process ${holder.owner.pid} on ${holder.owner.space.split(" ")[0]}`
          : "others in turn",
        "try again when it has ended",
      );
    await new Promise((r) => setTimeout(r, 2 + 10 * Math.random()));
  }
}
