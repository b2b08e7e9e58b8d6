/** Folders wherever they lie, by one table; and bundles from addresses, which are kept for the next time. */
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { compileTo } from "../compiler/compile.ts";
import { type Folder, folderAt } from "../runtime/folders.ts";
import { blobDrive } from "../runtime/storage/blobs.ts";
import { diskDrive } from "../runtime/storage/disk.ts";
import { driveFolder } from "../runtime/storage/folder.ts";
import {
  type Availability,
  availability,
  cache,
  type Engine,
  type LoadOptions,
  type LoadProgress,
  load,
  WeftError,
} from "../sdk/index.ts";
import { batchOf, bundle, configs, contentBits, idsOf, small } from "./support/engines.ts";
import { killed, type Laid, laws, NAMES, refused } from "./support/folders.ts";
import { Server, served } from "./support/server.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("storage");
const places: Readonly<Record<string, () => Promise<Laid>>> = {
  disk: async () => {
    const dir = scratch();
    return { folder: await folderAt(dir), raw: diskDrive(dir) };
  },
  "drive of a disk": async () => {
    const raw = diskDrive(scratch());
    return { folder: driveFolder(raw), raw };
  },
  blobs: async () => {
    const blobs = new Map<string, Blob>();
    return { folder: await folderAt(blobs), raw: blobDrive(blobs) };
  },
};
for (const [name, fresh] of Object.entries(places))
  for (const [law, holds] of Object.entries(laws)) test(`${name}, ${law}`, () => holds(fresh));
for (const name of ["drive of a disk", "blobs"])
  test(`${name}: a writer killed at any change leaves one whole version; the next tidies up`, () =>
    killed(places[name]!));

const prompt = idsOf("storage", 8, 128);
const ids = async (engine: Engine): Promise<number[]> =>
  (await engine.complete({ prompt, maxTokens: 5 })).ids;
async function answers(where: string, o: LoadOptions = {}): Promise<number[]> {
  await using engine = await load(where, { device: "wasm", threads: 1, ...o });
  return await ids(engine);
}
/** As `answers`, from a server that breaks off behind the bytes it sends, when they were heard of. */
const CUT = 10_000;
const broken = (server: Server): Promise<number[]> => {
  server.cut = CUT;
  const onProgress = (p: LoadProgress): void => {
    if (p.phase === "fetch" && p.done >= CUT) server.breakOff();
  };
  return answers(server.url, { onProgress });
};
const shard = "weights/model-00000.safetensors";
const shardBytes = async (): Promise<number> => statSync(join(await bundle(configs.even), shard)).size;

test("read only: an address and files give what was saved, and refuse to be written", async () => {
  const dir = scratch();
  const files = NAMES.map((name, i) => [name, `${name} ${i}`] as const);
  await (await folderAt(dir)).write("adapter", files);
  const server = await Server.of(dir);
  try {
    const chosen = NAMES.map((name) => new File([readFileSync(join(dir, name))], name));
    for (const folder of [await folderAt(server.url), await folderAt(chosen)] as Folder[]) {
      const found = await folder.read([...NAMES, "not there"], 1000);
      assert.equal(
        [...found].map(([name, data]) => [name, Buffer.from(data).toString()]),
        files.map((f) => [...f]),
      );
      await refused("WEFT_IO", /one that can only be read/, () => folder.claim("adapter"));
      await refused("WEFT_IO", /CURRENT: expected the name of a version/, () => folder.readVersion());
    }
    await refused("WEFT_ADAPTER", /at most 3 bytes/, async () =>
      (await folderAt(chosen)).read(NAMES, 3, "WEFT_ADAPTER"),
    );
  } finally {
    server.close();
  }
  await refused("WEFT_OPTION", /expected a path, an address/, () => folderAt(7 as never));
});

test("an adapter goes out as blobs and comes in again, a checkpoint too, bit for bit", async () => {
  await using engine = await load(await bundle(configs.even), { device: "wasm", threads: 1 });
  const o = { name: "a", data: batchOf(128), batchSize: 5, rank: 4, steps: 2 } as const;
  await (await engine.finetune(o)).done;
  const blobs = await engine.adapters.get("a").toBlobs();
  assert.equal([...blobs.keys()].sort(), ["adapter_config.json", "adapter_model.safetensors"]);
  await engine.adapters.load("b", blobs);
  assert.is(contentBits(engine, "b"), contentBits(engine, "a"));
  const chosen = [...blobs].map(([name, blob]) => new File([blob], name));
  await engine.adapters.load("c", chosen);
  assert.is(contentBits(engine, "c"), contentBits(engine, "a"));
  const map = new Map<string, Blob>();
  await engine.adapters.get("a").save(map);
  await engine.adapters.load("d", map);
  assert.is(contentBits(engine, "d"), contentBits(engine, "a"));
  // A job that went on from blobs ends as one that was never interrupted.
  const kept = new Map<string, Blob>();
  await (
    await engine.finetune({ ...o, name: "e", steps: 4, publishEvery: 9, checkpoint: { dir: kept, every: 0 } })
  ).done;
  const half = new Map<string, Blob>();
  await (await engine.finetune({ ...o, name: "f", checkpoint: { dir: half, every: 0 } })).done;
  await (await engine.finetune({ ...o, name: "f", steps: 4, resume: half })).done;
  assert.is(contentBits(engine, "f"), contentBits(engine, "e"));
  await refused("WEFT_OPTION", /download: expected a page/, () => engine.adapters.get("a").download());
  // Rows may be a file that the user dropped.
  const rows = new Blob([
    batchOf(128)
      .map((r) => JSON.stringify(r))
      .join("\n"),
  ]);
  await (await engine.finetune({ ...o, name: "g", data: rows })).done;
  assert.is(contentBits(engine, "g"), contentBits(engine, "a"));
});

test("a bundle of an address is kept: the second load asks for its manifest alone, or for nothing", () =>
  served(async (server) => {
    const here = await answers(await bundle(configs.even));
    const bytes = await shardBytes();
    const told: LoadProgress[] = [];
    assert.equal(await answers(server.url, { onProgress: (p) => told.push(p) }), here);
    const fetched = told.filter((p) => p.phase === "fetch" && p.total > 0);
    assert.ok(fetched.length > 1, "within a shard");
    assert.equal([fetched.at(-1)!.done, fetched.at(-1)!.total], [bytes, bytes]);
    assert.equal(await cache.list().then((l) => l.map((b) => [b.name, b.url, b.complete])), [
      [server.url, server.url, true],
    ]);
    server.reset();
    assert.equal(await answers(server.url), here);
    assert.equal(
      server.asked.map((a) => a.path),
      ["/model.weft/manifest.json"],
    );
    assert.is(server.sent, 0, "the manifest was not sent again either");
    server.down = true;
    assert.equal(await answers(server.url), here, "without a network");
    const e = await answers(server.url, { cache: false }).catch((e: WeftError) => e);
    assert.equal(e instanceof WeftError && [e.code, e.retryable], ["WEFT_IO", true]);
    assert.is(await cache.delete(server.url), true);
    assert.is(await cache.delete(server.url), false);
    assert.equal(await cache.list(), []);
    await refused("WEFT_IO", /expected a response/, () => answers(server.url));
  }));

test("a download that breaks off, or is given up, goes on where it stopped", () =>
  served(async (server) => {
    const bytes = await shardBytes();
    const e = await broken(server).then(
      () => null,
      (e: WeftError) => e,
    );
    assert.equal([e?.code, e?.retryable], ["WEFT_IO", true]);
    const c = new AbortController();
    const onProgress = (p: LoadProgress): void => {
      if (p.phase === "fetch" && p.done > 40_000) c.abort(new Error("enough"));
    };
    server.reset();
    const said = await load(server.url, { device: "wasm", threads: 1, signal: c.signal, onProgress }).then(
      () => null,
      (e: Error) => e.message,
    );
    assert.is(said, "enough");
    const [first] = server.asked.filter((a) => a.path.endsWith(shard));
    assert.is(first?.range, `bytes=${CUT}-`);
    server.reset();
    const told: number[] = [];
    await answers(server.url, { onProgress: (p) => p.phase === "fetch" && told.push(p.done) });
    const again = server.asked.filter((a) => a.path.endsWith(shard));
    assert.is(again.length, 1);
    const from = Number(/bytes=(\d+)-/.exec(again[0]!.range ?? "")?.[1]);
    assert.ok(from > 40_000, `from byte ${from}`);
    assert.is(told.at(-1), bytes, "what was there counts as done");
    // A server without ranges sends all of it again.
    await cache.delete(server.url);
    server.ranges = false;
    await refused("WEFT_IO", /weights/, () => broken(server));
    await answers(server.url, { onProgress: (p) => p.phase === "fetch" && told.push(p.done) });
    assert.is(told.at(-1), bytes);
  }));

test("what is spoilt in the cache is noticed and fetched again; a wrong file of the server is refused", () =>
  served(async (server, kept) => {
    const here = await answers(server.url);
    const files = join(kept, "bundles/files");
    const pieces = readdirSync(files).map((sha) => join(files, sha, "0"));
    const largest = pieces.sort((a, b) => statSync(b).size - statSync(a).size)[0]!;
    for (const spoil of [
      (b: Buffer) => Buffer.from(b.map((x, i) => (i === 1000 ? x ^ 1 : x))),
      (b: Buffer) => b.subarray(0, 5000),
      () => Buffer.alloc(0),
    ]) {
      writeFileSync(largest, spoil(readFileSync(largest)));
      server.reset();
      assert.equal(await answers(server.url), here);
      assert.equal(
        server.asked.map((a) => a.path.replace("/model.weft/", "")),
        ["manifest.json", shard],
      );
      server.down = true;
      assert.equal(await answers(server.url), here, "it is whole again");
      writeFileSync(largest, spoil(readFileSync(largest)));
      await refused("WEFT_IO", /expected a response/, () => answers(server.url));
      server.down = false;
      await answers(server.url);
    }
    // A partial download whose beginning is spoilt starts afresh.
    await cache.delete(server.url);
    await refused("WEFT_IO", /weights/, () => broken(server));
    writeFileSync(largest, Buffer.alloc(CUT, 1));
    assert.equal(await answers(server.url), here);
    // The manifest of one bundle over the weights of another.
    const other = scratch();
    await compileTo(writeModel(configs.even, 1), join(other, "b"), {
      ...{ targets: ["wasm"], quick: true, capacities: small },
    });
    await cache.delete(server.url);
    const wrong = await Server.of(join(other, "b"));
    const mixed: typeof fetch = (url, init) =>
      fetch(String(url).includes("weights") ? String(url).replace(server.url, wrong.url) : url, init);
    await refused("WEFT_BUNDLE", /sha-256/, () => answers(server.url, { fetch: mixed }));
    wrong.close();
    assert.equal(await answers(server.url), here);
  }));

test("a bundle that was compiled again is noticed; until all of it is here the old one plays offline", () =>
  served(async (server, kept) => {
    const old = await answers(server.url);
    const before = readdirSync(join(kept, "bundles/files")).length;
    const next = join(scratch(), "b");
    const o = { targets: ["wasm"], quick: true, capacities: small, train: ["lora"] } as const;
    await compileTo(writeModel(configs.even, 1), next, o);
    server.folder = next;
    await refused("WEFT_IO", /weights/, () => broken(server));
    server.down = true;
    assert.equal(await answers(server.url), old);
    server.down = false;
    const fresh = await answers(server.url);
    assert.equal(fresh, await answers(next));
    assert.not.equal(fresh, old);
    server.down = true;
    assert.equal(await answers(server.url), fresh);
    assert.is(readdirSync(join(kept, "bundles/files")).length, before, "the old files are gone");
  }));

test("a token goes with every file and is kept nowhere; headers and a fetch of one's own too", () =>
  served(async (server, kept) => {
    const asked: string[] = [];
    const own: typeof fetch = (url, init) => {
      asked.push(new URL(String(url)).pathname);
      return fetch(url, init);
    };
    await answers(`${server.url}?token=s3cret`, { fetch: own, headers: { authorization: "Bearer s3cret" } });
    assert.ok(asked.length > 3);
    assert.equal(
      asked,
      server.asked.map((a) => a.path),
    );
    for (const a of server.asked)
      assert.equal([a.query, a.headers.authorization], ["?token=s3cret", "Bearer s3cret"]);
    const everything = (dir: string): string =>
      readdirSync(dir, { withFileTypes: true })
        .map((e) =>
          e.isDirectory() ? everything(join(dir, e.name)) : readFileSync(join(dir, e.name), "latin1"),
        )
        .join("");
    assert.not.match(everything(kept), /s3cret/);
    // Under another token it is the same bundle; under a name of its own it is the caller's to say.
    server.reset();
    await answers(`${server.url}?token=other`);
    assert.is(server.asked.length, 1);
    await answers(server.url, { cache: "mine" });
    assert.equal((await cache.list()).map((b) => b.name).sort(), [server.url, "mine"].sort());
    await cache.delete(server.url);
    server.down = true;
    await answers("http://localhost:1/elsewhere", { cache: "mine" });
  }));

test("what is refused: no bundle there, and a cache where none can be kept", () =>
  served(async (server) => {
    server.folder = scratch();
    await refused("WEFT_IO", /expected 200, found 404/, () => answers(server.url));
    assert.equal(await cache.list(), []);
    server.folder = await bundle(configs.even);
    process.env.WEFT_CACHE = "off";
    await answers(server.url);
    await refused("WEFT_IO", /a place where bundles can be kept/, () => answers(server.url, { cache: true }));
    await refused("WEFT_OPTION", /cache.*yes, no, or a name/, () =>
      answers(server.url, { cache: 7 as never }),
    );
  }));

test("availability says what load does: target, memory, sizes, storage, and what would not fit", () =>
  served(async (server) => {
    const dir = await bundle(configs.even);
    const o = { device: "wasm", threads: 1 } as const;
    /** What a load takes and chooses, or throws. */
    const done = async (where: string, options: LoadOptions) => {
      let bytes: LoadProgress["bytes"];
      const onProgress = (p: LoadProgress): void => {
        bytes = p.bytes ?? bytes;
      };
      await using engine = await load(where, { ...options, onProgress });
      const { capacities } = engine.manifest;
      return { bytes, capacities };
    };
    const agree = async (options: LoadOptions): Promise<Availability> => {
      const said = await availability(dir, options);
      const { bytes, capacities } = await done(dir, options);
      assert.is(said.ok, true);
      assert.equal(said.memory?.bytes, bytes);
      for (const [name, size] of Object.entries(said.capacities!))
        assert.is(size, capacities[name as keyof typeof capacities], name);
      return said;
    };
    const all = await agree(o);
    assert.equal(all.capacities, all.meant);
    assert.equal([all.target, all.why, all.storage], ["wasm", "it was asked for", null]);
    const half = await agree({ ...o, memory: Math.floor(all.memory!.total * 0.8) });
    assert.ok(half.capacities!.blocks < half.meant.blocks);
    assert.is((await availability(dir, { threads: 1 })).why, "the bundle has no other target");
    const refusals = [
      { ...o, memory: 100_000 },
      { ...o, memory: all.memory!.total, capacities: { blocks: 100_000 } },
      { ...o, device: "webgpu" },
    ] as const;
    for (const options of refusals) {
      const said = await availability(dir, options);
      assert.equal([said.ok, said.memory], [false, null]);
      const e = await load(dir, options).then(
        () => null,
        (e: WeftError) => e,
      );
      assert.equal(
        said.problems.map((p) => p.message),
        [e?.message],
      );
      if (!("capacities" in options)) assert.is(said.capacities, null);
      else await done(dir, { ...o, memory: options.memory, capacities: said.capacities! });
    }
    // At an address: what would be fetched, before it is.
    const before = await availability(server.url, o);
    assert.equal(
      server.asked.map((a) => a.path),
      ["/model.weft/manifest.json"],
    );
    assert.equal(await cache.list(), [], "nothing is kept yet");
    assert.ok(before.storage!.download > (await shardBytes()) && before.storage!.stored === 0);
    assert.ok(before.storage!.free! > before.storage!.download);
    await answers(server.url);
    server.down = true;
    const after = await availability(server.url, o);
    assert.equal([after.storage!.stored, after.storage!.download], [before.storage!.download, 0]);
    assert.is((await availability(dir, { ...o, cache: false })).storage, null);
    await refused("WEFT_IO", /expected a response/, () => availability(`${server.url}/other`, o));
    await refused("WEFT_OPTION", /memory/, () => availability(dir, { memory: "much" }));
  }));
test.run();
