/** What a compile made, kept by the content it was made from: a second one takes it from the user's cache. */
import { createHash, randomUUID } from "node:crypto";
import { readdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { cacheFolder } from "../runtime/cache.ts";

/** Files kept; the least recently used go first. */
const KEPT = 512;
/** What is written here; a folder that the user named may hold other files, which are theirs. */
const OURS = /^[0-9a-f]{64}\.wasm(\.[0-9a-f-]{36})?$/;
const DIGEST = 32;
const digest = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest();

/**
 * `make()`, or what it made from the same `key` before. A file that is not what was written is made again.
 */
export async function cached(key: string, make: () => Promise<Uint8Array>): Promise<Uint8Array> {
  const folder = await cacheFolder("kernels");
  if (!folder) return make();
  const path = join(folder, `${digest(Buffer.from(key)).toString("hex")}.wasm`);
  const file = await readFile(path).catch(() => null);
  if (file && file.length > DIGEST && digest(file.subarray(DIGEST)).equals(file.subarray(0, DIGEST))) {
    const now = new Date();
    await utimes(path, now, now).catch(() => {});
    return new Uint8Array(file.subarray(DIGEST));
  }
  const made = await make();
  await keep(folder, path, made);
  return made;
}
/**
 * Written aside and renamed, so that nobody reads half a file. A cache that cannot be written is no reason to
 * fail.
 */
async function keep(folder: string, path: string, made: Uint8Array): Promise<void> {
  const aside = `${path}.${randomUUID()}`;
  try {
    await writeFile(aside, Buffer.concat([digest(made), made]), { mode: 0o600 });
    await rename(aside, path);
    const names = (await readdir(folder)).filter((name) => OURS.test(name));
    if (names.length <= KEPT) return;
    const used = await Promise.all(
      names.map(async (name) => ({
        name,
        at: (await stat(join(folder, name)).catch(() => null))?.mtimeMs ?? 0,
      })),
    );
    used.sort((a, b) => a.at - b.at);
    for (const { name } of used.slice(0, names.length - KEPT)) await rm(join(folder, name), { force: true });
  } catch {
    await rm(aside, { force: true }).catch(() => {});
  }
}
