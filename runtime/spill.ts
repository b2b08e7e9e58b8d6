/**
 * A folder of the system's for temporary files, for what there is no room for in memory. It is removed when
 * it is closed; one that a killed process left is removed by the next that opens one. Node alone.
 */
import { onDisk, randomName, systemCode, unless } from "./disk.ts";
import { WeftError } from "./errors.ts";
import { isDead, whoAmI } from "./lock.ts";
import { node } from "./node.ts";
import type { Spill } from "./resident.ts";

const PREFIX = "weft-adapters-";
/** Who has the folder. */
const OWNER = "owner.json";
/** Milliseconds after which a folder without a word of whose it is, is nobody's. */
const UNSAID = 3_600_000;

export async function openSpill(): Promise<Spill> {
  const { os, path, sync } = await node();
  const all = os.tmpdir();
  await sweep(all);
  const dir = path.join(all, `${PREFIX}${await randomName()}`);
  const owner = await whoAmI();
  await onDisk(dir, "a folder that can be written", async () => {
    sync.mkdirSync(dir, { mode: 0o700 });
    sync.writeFileSync(path.join(dir, OWNER), owner);
  });
  const at = (id: number): string => path.join(dir, String(id));
  const tell = <T>(file: string, expected: string, f: () => T): T => {
    try {
      return f();
    } catch (cause) {
      const found = systemCode(cause) ?? String(cause);
      throw new WeftError({ code: "WEFT_IO", where: file, expected, found, cause });
    }
  };
  return {
    write: (id, bytes) =>
      tell(at(id), "room for an adapter on disk", () => sync.writeFileSync(at(id), bytes, { mode: 0o600 })),
    read: (id) => {
      const file = tell(at(id), "an adapter that was put there", () => sync.readFileSync(at(id)));
      // Of its own buffer from the start: its numbers are aligned.
      return new Uint8Array(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
    },
    remove: (id) => sync.rmSync(at(id), { force: true }),
    close: () => sync.rmSync(dir, { recursive: true, force: true }),
  };
}
/** Remove what processes left that are no more. */
async function sweep(all: string): Promise<void> {
  const { fs, path } = await node();
  for (const name of await unless(["ENOENT"], () => fs.readdir(all), [])) {
    if (!name.startsWith(PREFIX)) continue;
    const dir = path.join(all, name);
    const gone = ["ENOENT", "EACCES", "EPERM", "ENOTDIR"];
    const owner = await unless(gone, () => fs.readFile(path.join(dir, OWNER), "utf8"), null);
    const made = await unless(gone, async () => (await fs.stat(dir)).mtimeMs, Date.now());
    const left = owner === null ? Date.now() - made > UNSAID : await isDead(owner);
    if (left) await unless(gone, () => fs.rm(dir, { recursive: true, force: true }), undefined);
  }
}
