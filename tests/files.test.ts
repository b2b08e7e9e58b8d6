/** Files survive: locks, links, bundles and checkpoints that change meanwhile; what is spoilt is told. */
import { spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { basename, dirname, join } from "node:path";
import * as assert from "uvu/assert";
import { compileTo } from "../compiler/compile.ts";
import { type RegularFile, readRange, readRegular } from "../runtime/disk.ts";
import { claimFolder, readFolder, writeFolder } from "../runtime/folder.ts";
import { withLock } from "../runtime/lock.ts";
import { openReader } from "../runtime/reader.ts";
import { claimVersions, readVersion, writeVersion } from "../runtime/versions.ts";
import { load, WeftError } from "../sdk/index.ts";
import { record, replay } from "./support/crash.ts";
import { batchOf, bundle, configs, engineOf, small } from "./support/engines.ts";
import { NAMES, payload, type Write, writeOf } from "./support/payload.ts";
import { LIMIT, refused, tree } from "./support/places.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("files");

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
  await refused("WEFT_IO", /adapter_model\.safetensors.*expected a readable file, found none/, () =>
    readVersion(dir),
  );
  writeFileSync(join(dir, "CURRENT"), "{");
  await refused("WEFT_IO", /CURRENT: expected JSON/, () => readVersion(dir));
  await refused("WEFT_IO", /CURRENT: expected the name of a version.*is the path right/, () =>
    readVersion(scratch()),
  );
});
test.run();
