/**
 * What holds of any folder that weft writes, wherever it lies: checked in Node on disks and in memory, in a
 * page on its own storage. Neither Node nor a page is needed here.
 */
import * as assert from "uvu/assert";
import { WeftError } from "../../runtime/errors.ts";
import type { WritableDrive } from "../../runtime/storage/drive.ts";
import type { Folder } from "../../runtime/storage/folder.ts";
import { driveFolder } from "../../runtime/storage/folder.ts";

export interface Laid {
  readonly folder: Folder;
  /** The same place, file by file. */
  readonly raw: WritableDrive;
}
export const NAMES = ["adapter_model.safetensors", "adapter_config.json"] as const;
const LIMIT = 2 ** 20;
const text = (s: string): Uint8Array => new TextEncoder().encode(s);
/** Two files that tell which write they are of. */
const filesOf = (n: number): [string, Uint8Array][] => [
  [NAMES[0], Uint8Array.from({ length: 10_000 }, (_, i) => (i * 7 + n * 31) & 255)],
  [NAMES[1], text(JSON.stringify({ n }))],
];
/** The write that files are of. Throws for torn ones. */
function writeOf(files: ReadonlyMap<string, Uint8Array>): number {
  const { n } = JSON.parse(new TextDecoder().decode(files.get(NAMES[1]))) as { n: number };
  for (const [name, data] of filesOf(n)) assert.equal([...files.get(name)!], [...data], `${name} of ${n}`);
  return n;
}
export const refused = async (code: string, says: RegExp, f: () => Promise<unknown>): Promise<void> => {
  const e = await f().then(
    () => null,
    (e: unknown) => e,
  );
  assert.instance(e, WeftError, String((e as Error | null)?.stack ?? "nothing was refused"));
  assert.is((e as WeftError).code, code, (e as Error).message);
  assert.match((e as Error).message, says);
};
/** Every file below, by path. */
async function tree(raw: WritableDrive, at = ""): Promise<Record<string, string>> {
  const out: Record<string, string> = {};
  for (const e of await raw.list(at)) {
    const path = at ? `${at}/${e.name}` : e.name;
    if (e.isFolder) Object.assign(out, await tree(raw, path));
    else out[path] = [...new Uint8Array(await (await raw.get(path, LIMIT))!.arrayBuffer())].join();
  }
  return out;
}
/** The two ways to write a folder, to the laws that hold for both. */
const ways = {
  flat: {
    write: (f: Folder, n: number) => f.write("adapter", filesOf(n)),
    read: async (f: Folder) => writeOf(await f.read(NAMES, LIMIT)),
    claim: (f: Folder) => f.claim("adapter"),
    tidy: async (raw: WritableDrive) =>
      assert.equal(
        (await raw.list("")).map((e) => e.name),
        [".weft.json", ...NAMES].sort(),
      ),
  },
  versions: {
    write: (f: Folder, n: number) => f.writeVersion(n, filesOf(n)),
    read: async (f: Folder) => writeOf(await f.readVersion()),
    claim: (f: Folder) => f.claimVersions(NAMES),
    tidy: async (raw: WritableDrive) => {
      const names = (await raw.list("")).map((e) => e.name);
      assert.is(names[0], "CURRENT");
      assert.ok(names.length <= 3 && names.slice(1).every((v) => /^v-\d+-/.test(v)), names.join());
    },
  },
} as const;

/** A drive whose owner is killed at its nth change: that one, and what would follow, never happens. */
function killedAt(raw: WritableDrive, n: number): { drive: WritableDrive; changes: () => number } {
  let changes = 0;
  const change = async (f: () => Promise<void>): Promise<void> => {
    if (changes++ >= n) throw new Error("killed");
    await f();
  };
  return {
    changes: () => changes,
    drive: {
      ...raw,
      put: (path, data) => change(() => raw.put(path, data)),
      remove: (path) => change(() => raw.remove(path)),
    },
  };
}

type Law = (fresh: () => Promise<Laid>) => Promise<void>;
/** `fresh` makes an empty folder. */
export const laws: Readonly<Record<string, Law>> = {
  ...Object.fromEntries(
    Object.entries(ways).flatMap(([how, { write, read, claim, tidy }]): [string, Law][] => [
      [
        `${how}: saved is loaded, bit for bit; written again it is the new one alone`,
        async (fresh) => {
          const { folder, raw } = await fresh();
          await claim(folder);
          assert.equal(await tree(raw), {}, "a claim leaves nothing");
          for (const n of [1, 2, 3]) {
            await write(folder, n);
            assert.is(await read(folder), n);
            await tidy(raw);
          }
        },
      ],
      [
        `${how}: what is not weft's is refused by name, and stays`,
        async (fresh) => {
          for (const stranger of ["notes.txt", "src/index.ts", NAMES[1]]) {
            const { folder, raw } = await fresh();
            if (stranger !== NAMES[1]) await write(folder, 1);
            await raw.put(stranger, text("theirs"));
            const before = await tree(raw);
            const says = new RegExp(`found ${stranger.split("/")[0]}`);
            for (const f of [() => claim(folder), () => write(folder, 2)]) await refused("WEFT_IO", says, f);
            assert.equal(await tree(raw), before);
          }
        },
      ],
      [
        `${how}: writers at once take turns; a reader meanwhile gets one whole version`,
        async (fresh) => {
          const { folder, raw } = await fresh();
          await write(folder, 0);
          let writing = true;
          const one = async (from: number): Promise<void> => {
            for (let i = 0; i < 6; i++) await write(folder, from + i);
          };
          const done = Promise.all([one(10), one(20)]).finally(() => (writing = false));
          while (writing)
            await read(folder).catch((e: unknown) => {
              if (!(e instanceof WeftError && e.retryable)) throw e;
            });
          await done;
          assert.ok([15, 25].includes(await read(folder)));
          await tidy(raw);
        },
      ],
    ]),
  ),
  "flat: another kind, and a file that was edited, are refused": async (fresh) => {
    const { folder, raw } = await fresh();
    await folder.write("adapter", filesOf(1));
    await refused("WEFT_IO", /expected a model to replace, found an adapter/, () => folder.claim("model"));
    await raw.put(NAMES[1], text('{"n":9}'));
    await refused("WEFT_IO", /adapter_config\.json: expected the file that weft wrote/, () =>
      folder.write("adapter", filesOf(2)),
    );
    assert.is(await (await raw.get(NAMES[1], LIMIT))!.text(), '{"n":9}');
  },
  "flat: files in folders come and go with what is written": async (fresh) => {
    const { folder, raw } = await fresh();
    await folder.write("bundle", [
      ["a/b/c", "x"],
      ["manifest.json", "{}"],
    ]);
    await folder.write("bundle", [
      ["a/d", "y"],
      ["manifest.json", "{}"],
    ]);
    assert.equal(Object.keys(await tree(raw)).sort(), [".weft.json", "a/d", "manifest.json"]);
  },
  "versions: what was changed, or is missing, is refused with its name and hashes": async (fresh) => {
    const { folder, raw } = await fresh();
    await folder.writeVersion(3, filesOf(3));
    const version = (await raw.list("")).find((e) => e.name.startsWith("v-3-"))!.name;
    const data = filesOf(3)[0]![1].slice();
    data[100]! ^= 1;
    await raw.put(`${version}/${NAMES[0]}`, data);
    await refused(
      "WEFT_IO",
      /safetensors: expected .*sha-256 [0-9a-f]{64}, found .*sha-256 [0-9a-f]{64}/,
      () => folder.readVersion(),
    );
    await raw.remove(`${version}/${NAMES[0]}`);
    await refused("WEFT_IO", /safetensors/, () => folder.readVersion());
    await raw.put("CURRENT", text("{"));
    await refused("WEFT_IO", /CURRENT: expected JSON/, () => folder.readVersion());
    await raw.remove("CURRENT");
    await refused("WEFT_IO", /CURRENT: expected the name of a version/, () => folder.readVersion());
  },
};
/** Of drives: a disk's own are in files.test.ts, with what the system may have lost. */
export const killed: Law = async (fresh) => {
  for (const { write, read, tidy } of Object.values(ways))
    for (let n = 0; ; n++) {
      const { raw } = await fresh();
      await write(driveFolder(raw), 1);
      await write(driveFolder(raw), 2);
      const { drive, changes } = killedAt(raw, n);
      const died = await write(driveFolder(drive), 3).then(
        () => false,
        () => true,
      );
      const found = await read(driveFolder(raw));
      assert.ok(found === 3 || (died && found === 2), `killed at change ${n}: ${found}`);
      await write(driveFolder(raw), 4);
      assert.is(await read(driveFolder(raw)), 4, `after one that was killed at change ${n}`);
      await tidy(raw);
      if (!died) {
        assert.ok(changes() > 3);
        break;
      }
    }
};
