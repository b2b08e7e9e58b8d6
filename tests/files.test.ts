/**
 * Files survive: writers that are killed, that race, that run out of disk; readers meanwhile; what is not
 * weft's.
 */
import { spawn } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import * as assert from "uvu/assert";
import { compileTo } from "../compiler/compile.ts";
import { type RegularFile, readRange, readRegular } from "../runtime/disk.ts";
import { claimFolder, readFolder, writeFolder } from "../runtime/folder.ts";
import { withLock } from "../runtime/lock.ts";
import { openReader } from "../runtime/reader.ts";
import { claimVersions, readVersion, writeVersion } from "../runtime/versions.ts";
import { load, WeftError } from "../sdk/index.ts";
import { type Change, kept, record, replay } from "./support/crash.ts";
import { batchOf, bundle, configs, engineOf, small } from "./support/engines.ts";
import { NAMES, payload, type Write, writeOf } from "./support/payload.ts";
import { generator } from "./support/random.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("files");
const LIMIT = 2 ** 20;
const refused = async (code: string, says: RegExp, f: () => Promise<unknown>): Promise<void> => {
  try {
    await f();
  } catch (e) {
    assert.instance(e, WeftError, String((e as Error).stack));
    assert.is((e as WeftError).code, code, (e as Error).message);
    assert.match((e as Error).message, says);
    return;
  }
  assert.unreachable(`expected ${code}`);
};
/** Every file, link and folder below, byte for byte. */
const tree = (dir: string): Record<string, string> => {
  const out: Record<string, string> = {};
  const walk = (at: string): void => {
    for (const e of readdirSync(join(dir, at), { withFileTypes: true })) {
      const name = join(at, e.name);
      if (e.isDirectory()) walk(name);
      const path = join(dir, name);
      out[name] = e.isFile()
        ? readFileSync(path, "base64")
        : e.isSymbolicLink()
          ? `→ ${readlinkSync(path)}`
          : "folder";
    }
  };
  walk("");
  return out;
};

/** The two kinds of places, to the tests that hold for both. */
const places = {
  folder: {
    write: (dir: string, w: Write) => writeFolder(dir, "adapter", payload(w)),
    read: async (dir: string) => writeOf(await readFolder(dir, NAMES, LIMIT)),
    claim: (dir: string) => claimFolder(dir, "adapter"),
    /** What lies there when all is well. */
    tidy: (dir: string) => assert.equal(readdirSync(dir).sort(), [".weft.json", ...NAMES].sort()),
  },
  versions: {
    write: (dir: string, w: Write) => writeVersion(dir, w.n, payload(w)),
    read: async (dir: string) => writeOf(await readVersion(dir)),
    claim: (dir: string) => claimVersions(dir, NAMES),
    tidy: (dir: string) => {
      const [current, ...versions] = readdirSync(dir).sort();
      assert.is(current, "CURRENT");
      assert.ok(versions.length <= 2 && versions.every((v) => /^v-\d+-/.test(v)), versions.join());
      for (const v of versions) assert.equal(readdirSync(join(dir, v)).sort(), [...NAMES].sort());
    },
  },
} as const;
type Place = keyof typeof places;

/** tests/support/writer.ts, as one file that starts at once. */
const writerFile = (async () => {
  const outfile = join(scratch(), "writer.mjs");
  await build({
    entryPoints: [fileURLToPath(new URL("./support/writer.ts", import.meta.url))],
    bundle: true,
    platform: "node",
    format: "esm",
    outfile,
    logLevel: "error",
  });
  return outfile;
})();
interface Writer {
  readonly acknowledged: () => number;
  /** The next line it writes. */
  readonly next: () => Promise<void>;
  readonly kill: () => void;
  /** Its exit code, and its last line. */
  readonly ended: Promise<{ code: number | null; last: string }>;
}
async function startWriter(
  how: Place,
  dir: string,
  writer: string,
  times: number,
  o: { bytes?: number; shell?: string; cwd?: string; uid?: number } = {},
): Promise<Writer> {
  const args = [await writerFile, how, dir, writer, String(times), String(o.bytes ?? 20_000)];
  const child = o.shell
    ? spawn("sh", ["-c", `${o.shell}; exec "$0" "$@"`, process.execPath, ...args], { cwd: o.cwd })
    : spawn(process.execPath, args, { cwd: o.cwd, ...(o.uid !== undefined && { uid: o.uid, gid: o.uid }) });
  let out = "";
  let wake: (() => void)[] = [];
  const tell = (): void => {
    const waiting = wake;
    wake = [];
    for (const f of waiting) f();
  };
  child.stdout.on("data", (d) => {
    out += d;
    tell();
  });
  child.stderr.on("data", (d) => (out += d));
  const lines = (): string[] => out.split("\n").filter(Boolean);
  return {
    acknowledged: () => lines().filter((l) => /^\d+$/.test(l)).length,
    next: () => new Promise((r) => wake.push(r)),
    kill: () => child.kill("SIGKILL"),
    ended: new Promise((r) =>
      child.on("close", (code) => {
        tell();
        r({ code, last: lines().at(-1) ?? "" });
      }),
    ),
  };
}

for (const how of Object.keys(places) as Place[]) {
  const { write, read, claim, tidy } = places[how];

  test(`${how}: a writer that stops at any change leaves one whole version; the next tidies up`, async () => {
    const base = join(scratch(), "base");
    await write(base, { writer: "a", n: 1 });
    await write(base, { writer: "a", n: 2 });
    const before = join(scratch(), "copy");
    cpSync(base, before, { recursive: true, preserveTimestamps: true });
    const changes = await record(base, () => write(base, { writer: "a", n: 3 }));
    const states: { entries: number; lost?: { until: number }; by: number }[] = [];
    for (let n = 0; n <= changes.length; n++) {
      // The process stops: all that it did is there. The machine stops: some of it is.
      states.push({ entries: n, by: n });
      for (let entries = kept(changes, n); entries <= n; entries++)
        states.push({ entries, lost: { until: n }, by: n });
    }
    const { path: owner } = changes.find(
      (c): c is Change & { path: string } => c.op === "write" && /lock/.test(c.path),
    )!;
    for (const s of states) {
      const dir = join(scratch(), "state");
      cpSync(before, dir, { recursive: true, preserveTimestamps: true });
      replay(dir, changes, s.entries, s.lost);
      const lock = join(dir, ".weft.lock", owner.slice(owner.lastIndexOf("/") + 1));
      // The one who made these changes is no more.
      if (existsSync(lock) && readFileSync(lock, "utf8"))
        writeFileSync(lock, readFileSync(lock, "utf8").replace(/"started":"\d+"/, '"started":"1"'));
      const what = `${s.by} of ${changes.length} changes, ${s.entries} entries${s.lost ? ", machine" : ""}`;
      const found = await read(dir).catch((e: Error) => assert.unreachable(`${what}: ${e.message}`));
      assert.ok(found && (found.n === 2 || found.n === 3), `${what}: ${JSON.stringify(found)}`);
      // Acknowledged is durable.
      if (s.by === changes.length) assert.is(found.n, 3, what);
      await write(dir, { writer: "b", n: 4 });
      assert.equal(await read(dir), { writer: "b", n: 4 }, what);
      tidy(dir);
      rmSync(dirname(dir), { recursive: true });
    }
    assert.ok(states.length > 60, `${states.length} states`);
  });

  test(`${how}: every folder whose entries change is synced after the last change`, async () => {
    const root = scratch();
    // Also the folders above that have to be made.
    const changes = await record(root, () => write(join(root, "new/deep/place"), { writer: "a", n: 1 }));
    const open = new Map<string, string>();
    const temporary = /(^|\/)\.weft[.-](lock|[0-9a-f]{16})/;
    const changed = (path: string): void => {
      if (!temporary.test(path)) open.set(dirname(path), path);
    };
    for (const c of changes)
      if (c.op === "sync") open.delete(c.path || ".");
      // A name that is still there where a file was moved away does no harm.
      else if (c.op === "rename") changed(c.to);
      else if (c.op !== "write") changed(c.path);
    assert.equal([...open], []);
  });

  test(`${how}: killed at any time, nothing is torn and nothing acknowledged is lost`, async () => {
    const dir = join(scratch(), "dir");
    const next = generator(`kills ${how}`);
    const random = (): number => next() / 2 ** 32;
    const times = rounds(4, 120);
    for (let i = 0; i < times; i++) {
      const writer = await startWriter(how, dir, `w${i}`, 10_000);
      for (let lines = 1 + Math.floor(4 * random()); lines > 0; lines--) await writer.next();
      // Anywhere in the write that is going on: a moment, not a wait.
      await new Promise((r) => setTimeout(r, 6 * random()));
      writer.kill();
      await writer.ended;
      const found = await read(dir);
      assert.is(found.writer, `w${i}`);
      const known = writer.acknowledged();
      assert.ok(known > 0 && (found.n === known || found.n === known + 1), `${found.n}, told ${known}`);
    }
    await write(dir, { writer: "last", n: 1 });
    tidy(dir);
  });

  for (const processes of [1, 2])
    test(`${how}: two writers in ${processes === 1 ? "one process" : "two"} and a reader`, async () => {
      const dir = join(scratch(), "dir");
      const times = rounds(25, 500);
      const told = { a: 0, b: 0 } as Record<string, number>;
      await write(dir, { writer: "a", n: 0 });
      let writing = true;
      const children =
        processes === 2
          ? [await startWriter(how, dir, "a", times), await startWriter(how, dir, "b", times)]
          : [];
      const local = async (writer: string): Promise<void> => {
        for (let n = 1; n <= times; n++) {
          await write(dir, { writer, n });
          told[writer] = n;
        }
      };
      const done = (
        processes === 2 ? Promise.all(children.map((c) => c.ended)) : Promise.all([local("a"), local("b")])
      ).finally(() => (writing = false));
      let reads = 0;
      while (writing) {
        children.forEach((c, i) => (told["ab"[i]!] = c.acknowledged()));
        const known = { ...told };
        const found = await read(dir).catch((e) => {
          // Writers that never pause may keep a reader out; then it is told so.
          if (e instanceof WeftError && e.code === "WEFT_CONFLICT" && e.retryable) return null;
          throw e;
        });
        if (found)
          assert.ok(
            found.n >= known[found.writer]!,
            `${JSON.stringify(found)} after ${JSON.stringify(known)}`,
          );
        reads += found ? 1 : 0;
      }
      const ends = await done;
      for (const e of ends) if (e) assert.is(e.code, 0, e.last);
      assert.ok(reads > 0);
      assert.is((await read(dir)).n, times, "the last write of one of them");
      await write(dir, { writer: "last", n: 1 });
      tidy(dir);
    });

  test(`${how}: a full disk is told, and the version before stays`, async () => {
    const dir = join(scratch(), "dir");
    await write(dir, { writer: "a", n: 1 });
    const before = tree(dir);
    // A process that may write files of 64 blocks at most.
    const writer = await startWriter(how, dir, "b", 1, { bytes: 2 ** 20, shell: "ulimit -f 64" });
    const { code, last } = await writer.ended;
    assert.is(code, 1);
    assert.match(last, /^WEFT_IO at .*EFBIG/);
    assert.equal(tree(dir), before);
  });

  test(`${how}: what is not weft's is refused by name, and stays`, async () => {
    const dir = scratch();
    const at = (name: string): string => join(dir, name);
    mkdirSync(at("precious/src"), { recursive: true });
    writeFileSync(at("precious/notes.txt"), "mine");
    writeFileSync(at("precious/src/index.ts"), "mine");
    writeFileSync(at("file"), "mine");
    mkdirSync(at("peft"));
    for (const name of NAMES) writeFileSync(at(`peft/${name}`), "made by peft");
    for (const d of ["beside", "inside", "lock"]) await write(at(d), { writer: "a", n: 1 });
    writeFileSync(at("beside/README.md"), "mine");
    const inner = how === "folder" ? at("inside/sub") : at(`inside/${readdirSync(at("inside"))[1]}/sub`);
    mkdirSync(inner);
    writeFileSync(join(inner, "x"), "mine");
    writeFileSync(at("lock/.weft.lock"), "mine");
    const before = tree(dir);
    for (const f of [claim, (d: string) => write(d, { writer: "b", n: 1 })]) {
      await refused("WEFT_IO", /precious.*found notes\.txt/, () => f(at("precious")));
      await refused("WEFT_IO", /file: expected a folder, or nothing, found a file/, () => f(at("file")));
      await refused("WEFT_IO", /file\/below/, () => f(at("file/below")));
      await refused("WEFT_IO", /peft.*found adapter_config\.json/, () => f(at("peft")));
      await refused("WEFT_IO", /beside.*found README\.md/, () => f(at("beside")));
      await refused("WEFT_IO", /inside.*found .*sub/, () => f(at("inside")));
      await refused("WEFT_IO", /lock.*found \.weft\.lock/, () => f(at("lock")));
    }
    assert.equal(tree(dir), before);
  });

  test(`${how}: any path that names a folder will do; a claim leaves nothing`, async () => {
    const dir = scratch();
    const at = (name: string): string => join(dir, name);
    await claim(at("new/deep/"));
    assert.equal(tree(dir), {});
    mkdirSync(at("real"));
    symlinkSync("real", at("link"));
    const written: string[] = [];
    for (const path of [at("slash/"), at("link"), at("empty"), at("new/deep/place")]) {
      if (path === at("empty")) mkdirSync(path);
      await claim(path);
      await write(path, { writer: "a", n: 1 });
      await write(path, { writer: "a", n: 2 });
      assert.equal(await read(path), { writer: "a", n: 2 });
      tidy(path);
      written.push(path);
    }
    assert.ok(lstatSync(at("link")).isSymbolicLink());
    assert.equal(await read(at("real")), { writer: "a", n: 2 });
    mkdirSync(at("here"));
    const here = await startWriter(how, ".", "c", 2, { cwd: at("here") });
    assert.is((await here.ended).code, 0, (await here.ended).last);
    tidy(at("here"));
  });

  test(`${how}: a parent without write permission will do; a folder without it is refused`, async () => {
    const dir = scratch();
    for (const name of ["open", "shut"]) mkdirSync(join(dir, name));
    chmodSync(join(dir, "open"), 0o777);
    chmodSync(join(dir, "shut"), 0o555);
    chmodSync(dir, 0o555);
    chmodSync(dirname(await writerFile), 0o755);
    // Root may write anywhere; nobody may not.
    const o = process.getuid?.() === 0 ? { uid: 65534 } : {};
    const open = await (await startWriter(how, join(dir, "open"), "a", 2, o)).ended;
    assert.is(open.code, 0, open.last);
    const shut = await (await startWriter(how, join(dir, "shut"), "a", 1, o)).ended;
    assert.match(shut.last, /^WEFT_IO at .*shut.*EACCES/);
    chmodSync(dir, 0o755);
  });
}

test("a folder on its way in is read through; the next writer finishes it first", async () => {
  const base = join(scratch(), "base");
  const all = (w: Write): [string, string][] => [["sub/part", "x"], ...payload(w)];
  await writeFolder(base, "adapter", all({ writer: "a", n: 1 }));
  const before = join(scratch(), "copy");
  cpSync(base, before, { recursive: true, preserveTimestamps: true });
  const changes = await record(base, () => writeFolder(base, "adapter", payload({ writer: "a", n: 2 })));
  // The first file has moved, the config has not.
  const moved = changes.findIndex((c) => c.op === "rename" && c.to === NAMES[0]);
  replay(before, changes, moved + 1);
  const [id] = readdirSync(join(before, ".weft.lock"));
  writeFileSync(join(before, ".weft.lock", id!), "");
  const state = tree(before);
  assert.equal(writeOf(await readFolder(before, NAMES, LIMIT)), { writer: "a", n: 2 });
  assert.equal(tree(before), state, "readers write nothing");
  // What somebody made of a file meanwhile is theirs, of the version that goes and of the one that comes.
  for (const name of ["sub/part", ...NAMES]) {
    const its = readFileSync(join(before, name));
    for (const text of ["theirs", Buffer.alloc(its.length, "theirs")]) {
      writeFileSync(join(before, name), text);
      await refused("WEFT_IO", new RegExp(`${name}: expected the file that weft wrote`), () =>
        claimFolder(before, "adapter"),
      );
      assert.is(String(readFileSync(join(before, name))), String(text));
    }
    writeFileSync(join(before, name), its);
  }
  await claimFolder(before, "adapter");
  assert.equal(readdirSync(before).sort(), [".weft.json", ...NAMES].sort(), "finished: the old part is gone");
  assert.equal(writeOf(await readFolder(before, NAMES, LIMIT)), { writer: "a", n: 2 });
});

test("a lock: one alone follows a dead owner, or a silent one elsewhere; live ones are awaited", async () => {
  const dir = scratch();
  const lock = join(dir, ".weft.lock");
  const leave = (owner: object | null): void => {
    mkdirSync(lock);
    writeFileSync(join(lock, "0123456789abcdef"), owner ? JSON.stringify(owner) : "");
  };
  const mine = await withLock(dir, async () =>
    JSON.parse(readFileSync(join(lock, readdirSync(lock)[0]!), "utf8")),
  );
  assert.not(existsSync(lock));
  let inside = 0;
  let most = 0;
  const work = async (): Promise<void> => {
    most = Math.max(most, ++inside);
    await new Promise((r) => setImmediate(r));
    inside--;
  };
  // A pid that came back, a dead one, a file that was cut off, and a process elsewhere that is silent.
  const dead = [
    { ...mine, started: "1" },
    { ...mine, pid: 2 ** 22 + 1 },
    null,
    { ...mine, space: "elsewhere" },
  ];
  for (const owner of dead) {
    leave(owner);
    // Links to the folder have a queue of their own in this process: only the lock itself is between them.
    await Promise.all([1, 2, 3].map(() => withLock(dir, work, { lease: 50 })));
    assert.not(existsSync(lock));
  }
  assert.is(most, 1);
  leave(mine);
  await refused("WEFT_CONFLICT", new RegExp(`process ${process.pid}`), () =>
    withLock(dir, work, { patience: 0 }),
  );
  writeFileSync(join(lock, "0123456789abcdef"), JSON.stringify({ ...mine, space: "elsewhere x" }));
  await refused("WEFT_CONFLICT", /on elsewhere/, () => withLock(dir, work, { patience: 0 }));
  // One that slept through its lease is told before it changes anything.
  rmSync(lock, { recursive: true });
  await refused("WEFT_CONFLICT", /taken over/, () =>
    withLock(dir, async ({ check }) => {
      rmSync(join(lock, readdirSync(lock)[0]!));
      await check();
    }),
  );
});

test("kinds do not replace one another, and what was edited is its editor's", async () => {
  const dir = join(scratch(), "dir");
  await writeFolder(dir, "adapter", payload({ writer: "a", n: 1 }));
  await refused("WEFT_IO", /expected a model to replace, found an adapter/, () => claimFolder(dir, "model"));
  await refused("WEFT_IO", /a bundle to replace/, () =>
    writeFolder(dir, "bundle", payload({ writer: "b", n: 1 })),
  );
  // A copy is as good as the folder itself, whatever its times.
  const copy = join(scratch(), "copy");
  cpSync(dir, copy, { recursive: true });
  await claimFolder(copy, "adapter");
  for (const text of ['{"writer":"a","n":7,"bytes":20000}', "{}"]) {
    writeFileSync(join(copy, NAMES[1]), text);
    const before = tree(copy);
    await refused("WEFT_IO", /adapter_config\.json: expected the file that weft wrote/, () =>
      writeFolder(copy, "adapter", payload({ writer: "b", n: 1 })),
    );
    assert.equal(tree(copy), before);
  }
  // What the system leaves anywhere is nobody's.
  writeFileSync(join(dir, ".DS_Store"), "finder");
  mkdirSync(join(dir, "lost+found"));
  await writeFolder(dir, "adapter", payload({ writer: "a", n: 2 }));
  assert.ok(existsSync(join(dir, ".DS_Store")) && existsSync(join(dir, "lost+found")));
});

test("only regular files of the size that is declared are read, and no link leads out", async () => {
  const dir = scratch();
  const at = (name: string): string => join(dir, name);
  await new Promise((r) => spawn("mkfifo", [at("pipe")]).on("close", r));
  writeFileSync(at("secret"), "secret");
  mkdirSync(at("folder"));
  symlinkSync("../secret", at("folder/out"));
  symlinkSync(dir, at("folder/sub"));
  writeFileSync(at("folder/in"), "12345");
  symlinkSync("in", at("folder/link"));
  await refused("WEFT_IO", /pipe: expected a regular file, found a pipe/, () => readRegular(at("pipe"), 9));
  await refused("WEFT_IO", /found a device/, () => readRegular("/dev/zero", 9));
  await refused("WEFT_IO", /found a folder/, () => readRegular(at("folder"), 9));
  await refused("WEFT_IO", /at most 4 bytes, found 5 bytes/, () => readRegular(at("folder/in"), 4));
  const inside = { inside: at("folder") };
  await refused("WEFT_IO", /a link to .*secret/, () => readRegular(at("folder/out"), 9, inside));
  await refused("WEFT_IO", /a link to .*secret/, () => readRegular(at("folder/sub/secret"), 9, inside));
  for (const name of ["in", "link"])
    assert.is((await readRegular(at(`folder/${name}`), 5, inside)).length, 5);
  // A Hugging Face cache: files are links to blobs beside the snapshots.
  for (const d of ["hub/blobs", "hub/snapshots/rev"]) mkdirSync(at(d), { recursive: true });
  writeFileSync(at("hub/blobs/abc"), "blob");
  symlinkSync("../../blobs/abc", at("hub/snapshots/rev/config.json"));
  symlinkSync("../../../secret", at("hub/snapshots/rev/out"));
  const rev = { inside: at("hub/snapshots/rev") };
  assert.is((await readRegular(at("hub/snapshots/rev/config.json"), 9, rev)).length, 4);
  await refused("WEFT_IO", /a link to/, () => readRegular(at("hub/snapshots/rev/out"), 9, rev));
});

test("pipes, devices, links out and files over their size, wherever a folder is opened", async () => {
  await using engine = await engineOf(configs.even);
  const good = await bundle(configs.even);
  await (await engine.finetune({ name: "a", data: batchOf(128), steps: 1 })).done;
  const replace = async (
    from: string,
    name: string,
    what: "pipe" | "device" | "out" | "large",
  ): Promise<string> => {
    const dir = join(scratch(), "copy");
    cpSync(from, dir, { recursive: true });
    const path = join(dir, name);
    if (what === "large") writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(9)]));
    else rmSync(path);
    if (what === "pipe") await new Promise((r) => spawn("mkfifo", [path]).on("close", r));
    if (what === "device") symlinkSync("/dev/zero", path);
    if (what === "out") symlinkSync(join(from, name), path);
    return dir;
  };
  const adapter = join(scratch(), "adapter");
  await engine.adapters.get("a").save(adapter);
  const shard = "weights/model-00000.safetensors";
  const model = writeModel(configs.even);
  for (const what of ["pipe", "device", "out"] as const) {
    for (const name of [shard, "host.wasm", "manifest.json"]) {
      const dir = await replace(good, name, what);
      await refused("WEFT_BUNDLE", /regular file|a link to/, () => load(dir, { device: "wasm" }));
    }
    for (const name of NAMES) {
      const dir = await replace(adapter, name, what);
      await refused("WEFT_ADAPTER", /regular file|a link to/, () => engine.adapters.load("b", dir));
    }
    // A model that the user names may be links to files, as the caches of Hugging Face are.
    for (const name of ["model.safetensors", "config.json"]) {
      const out = join(scratch(), "out");
      const made = compileTo(await replace(model, name, what), out, {
        targets: ["wasm"],
        quick: true,
        capacities: small,
      });
      if (what === "out") await made;
      else await refused("WEFT_IO", /a regular file/, () => made);
    }
    const rows = join(await replace(model, "config.json", what), "config.json");
    if (what !== "out")
      await refused("WEFT_DATA", /a regular file/, () => engine.finetune({ name: "c", data: rows }));
  }
  const large = await replace(good, shard, "large");
  await refused("WEFT_BUNDLE", /at most \d+ bytes, found \d+ bytes/, () => load(large, { device: "wasm" }));
});

test("a bundle that is replaced while it is open is told as such, and never mixed", async () => {
  const out = join(scratch(), "m.weft");
  const model = writeModel(configs.even);
  const compile = (o: object = {}) =>
    compileTo(model, out, { targets: ["wasm"], quick: true, capacities: small, ...o });
  await compile();
  const reader = await openReader(out);
  await reader.read("manifest.json");
  await compile({ fuse: false });
  for (const f of [
    () => reader.read("kernels.wasm"),
    () => reader.open!("weights/model-00000.safetensors", 2 ** 30),
  ]) {
    await refused("WEFT_CONFLICT", /another than a moment ago/, f);
    assert.ok(await f().catch((e: WeftError) => e.retryable));
  }
  // Files that the new bundle does not have are told in the same way.
  await refused("WEFT_CONFLICT", /load it again/, () => reader.read("kernels.relaxed.wasm"));
  await (await load(out, { device: "wasm" })).dispose();
});

test("save, compress, saveModel, compile and checkpoint refuse first, then work", async () => {
  const dir = scratch();
  const at = (name: string): string => join(dir, name);
  mkdirSync(at("proj/src"), { recursive: true });
  writeFileSync(at("proj/src/index.ts"), "mine");
  writeFileSync(at("file"), "mine");
  await using engine = await engineOf(configs.even);
  await (await engine.finetune({ name: "a", data: batchOf(128), steps: 1 })).done;
  const job = await engine.finetune({ name: "b", data: batchOf(128), steps: 100_000 });
  const handle = engine.adapters.get("a");
  const before = tree(dir);
  for (const target of ["proj", "file"]) {
    const says = target === "proj" ? /found src/ : /found a file/;
    await refused("WEFT_IO", says, () => handle.save(at(target)));
    await refused("WEFT_IO", says, () => handle.compress(at(target)));
    await refused("WEFT_IO", says, () => engine.saveModel(at(target)));
    await refused("WEFT_IO", says, () => job.checkpoint(at(target)));
    const phases: string[] = [];
    await refused("WEFT_IO", says, () =>
      compileTo("/nowhere", at(target), { targets: ["wasm"], onProgress: (p) => phases.push(p.phase) }),
    );
    assert.equal(phases, []);
  }
  assert.equal(tree(dir), before);
  job.cancel();
  await job.done.catch(() => {});
});

test("what the system puts into a folder stands in no checkpoint's way, and stays", async () => {
  const dir = join(scratch(), "state");
  mkdirSync(join(dir, "lost+found"), { recursive: true });
  for (let step = 1; step <= 3; step++) {
    await claimVersions(dir, NAMES);
    await writeVersion(dir, step, payload({ writer: "a", n: step }));
    writeFileSync(join(dir, ".DS_Store"), "theirs");
    for (const name of readdirSync(dir))
      if (name.startsWith("v-")) writeFileSync(join(dir, name, ".DS_Store"), "theirs");
  }
  assert.is(writeOf(await readVersion(dir)).n, 3);
  assert.ok(existsSync(join(dir, "lost+found")) && existsSync(join(dir, ".DS_Store")));
});

test("a bundle of a relative path is merged where the process stands in another folder", async () => {
  const path = await bundle(configs.even);
  const before = process.cwd();
  process.chdir(dirname(path));
  try {
    await using engine = await load(basename(path), { device: "wasm", threads: 1 });
    await (await engine.finetune({ name: "a", data: [{ input_ids: [1, 2, 3] }], steps: 1 })).done;
    process.chdir(scratch());
    await engine.merge("a");
    await engine.merge(null);
    assert.is((await engine.complete({ prompt: [1, 2], maxTokens: 2 })).ids.length, 2);
  } finally {
    process.chdir(before);
  }
});

test("no read asks for as much at once as ends the process", async () => {
  const asked: number[] = [];
  const read = async (_: Uint8Array, at: number, length: number, from: number) => {
    assert.is(from, 5 + at);
    asked.push(length);
    return { bytesRead: length };
  };
  const bytes = 2 ** 31 + 7;
  const file = { bytes: bytes + 5, handle: { read } } as unknown as RegularFile;
  assert.is((await readRange(file, 5, bytes + 5)).length, bytes);
  assert.equal(asked, [2 ** 30, 2 ** 30, 7]);
});

test("a server that breaks off, or sends more than is declared, is one error", async () => {
  const server = createServer((request, response) => {
    if (request.url!.endsWith("cut")) {
      response.writeHead(200, { "content-length": "1000" });
      response.write("abc", () => response.destroy());
    } else if (request.url!.endsWith("whole")) response.end("abc");
    else {
      const more = (): unknown => response.destroyed || response.write(Buffer.alloc(2 ** 16), more);
      more();
    }
  });
  await new Promise<void>((go) => server.listen(0, go));
  try {
    const reader = await openReader(`http://localhost:${(server.address() as AddressInfo).port}/b`);
    const says = (name: string): Promise<WeftError> =>
      reader.read(name, 100).then(
        () => assert.unreachable(name) as never,
        (e: WeftError) => e,
      );
    assert.is(Buffer.from(await reader.read("whole", 3)).toString(), "abc");
    const cut = await says("cut");
    assert.instance(cut, WeftError);
    assert.equal([cut.code, cut.retryable], ["WEFT_IO", true]);
    const endless = await says("endless");
    assert.instance(endless, WeftError);
    assert.match(endless.message, /WEFT_BUNDLE.*endless.*at most 100 bytes/);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test("a corrupt checkpoint is refused with its file and both hashes", async () => {
  const dir = join(scratch(), "checkpoint");
  await writeVersion(dir, 3, payload({ writer: "a", n: 3 }));
  const version = readdirSync(dir).find((n) => n.startsWith("v-3-"))!;
  const file = join(dir, version, NAMES[0]);
  const bytes = readFileSync(file);
  bytes[100]! ^= 1;
  writeFileSync(file, bytes);
  await refused(
    "WEFT_IO",
    /adapter_model\.safetensors: expected .*sha-256 [0-9a-f]{64}, found .*sha-256 [0-9a-f]{64}/,
    () => readVersion(dir),
  );
  writeFileSync(file, bytes.subarray(0, 50));
  await refused("WEFT_IO", /found 50 bytes of sha-256/, () => readVersion(dir));
  renameSync(file, `${file}.gone`);
  await refused("WEFT_IO", /adapter_model\.safetensors.*ENOENT/, () => readVersion(dir));
  writeFileSync(join(dir, "CURRENT"), "{");
  await refused("WEFT_IO", /CURRENT: expected JSON/, () => readVersion(dir));
  await refused("WEFT_IO", /CURRENT: expected the name of a version/, () => readVersion(scratch()));
});
test.run();
