/**
 * A page in a real browser keeps what it loads and makes: bundles, adapters, checkpoints, on its own storage;
 * and says what it can.
 */
import { statSync } from "node:fs";
import { join } from "node:path";
import { unzipSync } from "fflate";
import * as assert from "uvu/assert";
import { load } from "../sdk/index.ts";
import { bundle, configs } from "./support/engines.ts";
import { laws } from "./support/folders.ts";
import { job, prompt, rows, Site, shard } from "./support/site.ts";
import { suite } from "./support/suite.ts";

const test = suite("page");
interface Said {
  readonly code: string;
  readonly message: string;
  readonly retryable: boolean;
}
let expected: Promise<number[]> | undefined;
/** What Node answers. */
const here = (): Promise<number[]> =>
  (expected ??= (async () => {
    await using engine = await load(await bundle(configs.even), { device: "wasm", threads: 1 });
    return (await engine.complete({ prompt, maxTokens: 5 })).ids;
  })());
const shardBytes = async (): Promise<number> => statSync(join(await bundle(configs.even), shard)).size;
/** Without files that can be written in OPFS, as over plain http and in older browsers. */
const noFiles = "delete FileSystemFileHandle.prototype.createWritable;";

test("what holds of folders on a disk holds on a page's storage, in its database, and behind a handle", () =>
  Site.run(async (site) => {
    const names = [...Object.keys(laws), "a writer killed at any change leaves one whole version"];
    for (const [before, place] of [
      ["", "storage of the page"],
      [noFiles, "storage of the page"],
      ["", "directory handle"],
    ])
      assert.equal(await site.visit(`${before} return support.tryLaws(${JSON.stringify(place)});`), names);
  }));

for (const [what, before] of [
  ["its storage", ""],
  ["its database", noFiles],
] as const)
  test(`a second visit plays from ${what} with the network off; what is spoilt there is fetched again`, () =>
    Site.run(async (site) => {
      // The rest of the shard is sent when the page has told of a part.
      site.pause = true;
      const first = await site.visit<{
        ids: number[];
        fetched: number[][];
        list: { complete: boolean }[];
      }>(`${before}
        const fetched = [];
        const onProgress = (p) => p.phase === "fetch" && fetched.push([p.done, p.total]);
        const engine = await openInPart({ onProgress });
        return { ids: await answer(engine), fetched, list: await weft.cache.list() };`);
      const bytes = await shardBytes();
      assert.equal(first.ids, await here());
      assert.equal(first.fetched.at(-1), [bytes, bytes]);
      assert.is(first.list[0]?.complete, true);
      site.reset();
      site.down = true;
      assert.equal(await site.visit(`${before} return answer(await open());`), first.ids);
      assert.equal(site.asked, []);
      site.down = false;
      const spoil = before
        ? `const db = await new Promise((r) => { const q = indexedDB.open("weft"); q.onsuccess = () => r(q.result); });
           const store = db.transaction("files", "readwrite").objectStore("files");
           const keys = await new Promise((r) => { const q = store.getAllKeys(); q.onsuccess = () => r(q.result); });
           let most = 0, at;
           for (const key of keys) {
             const value = await new Promise((r) => { const q = store.get(key); q.onsuccess = () => r(q.result); });
             if (value.byteLength > most) [most, at] = [value.byteLength, key];
           }
           const data = await new Promise((r) => { const q = store.get(at); q.onsuccess = () => r(q.result); });
           new Uint8Array(data)[1000] ^= 1;
           await new Promise((r) => { store.put(data, at).onsuccess = r; });`
        : `const root = await navigator.storage.getDirectory();
           const files = await (await (await root.getDirectoryHandle("weft")).getDirectoryHandle("bundles")).getDirectoryHandle("files");
           let most = 0, at;
           for await (const folder of files.values()) {
             const piece = await folder.getFileHandle("0");
             const { size } = await piece.getFile();
             if (size > most) [most, at] = [size, piece];
           }
           const data = new Uint8Array(await (await at.getFile()).arrayBuffer());
           data[1000] ^= 1;
           const to = await at.createWritable();
           await to.write(data);
           await to.close();`;
      assert.equal(await site.visit(`${before} ${spoil} return answer(await open());`), first.ids);
      assert.equal(
        site.asked.map((a) => a.path),
        ["manifest.json", shard],
      );
      assert.equal(
        await site.visit(`${before} const [{ name }] = await weft.cache.list();
          return [await weft.cache.delete(name), await weft.cache.list()];`),
        [true, []],
      );
      site.down = true;
      const gone = await site.visit<Said>(`${before} return said(open);`);
      assert.equal([gone.code, gone.retryable], ["WEFT_IO", true]);
    }));

test("a download that broke off goes on by range in the next tab; two tabs at once fetch it once", () =>
  Site.run(async (site) => {
    const bytes = await shardBytes();
    site.cut = Math.floor(bytes / 2);
    const broken = await site.visit<Said>("return said(openInPart);");
    assert.equal([broken.code, broken.retryable], ["WEFT_IO", true]);
    site.reset();
    const told = await site.visit<number[]>(`const told = [];
      const engine = await open({ onProgress: (p) => p.phase === "fetch" && told.push(p.done) });
      await answer(engine);
      return told;`);
    const asked = site.asked.filter((a) => a.path === shard);
    const from = Number(/^bytes=(\d+)-$/.exec(asked[0]?.headers.range ?? "")?.[1]);
    assert.is(asked.length, 1);
    assert.ok(from > 0 && from <= bytes / 2, `from ${from} of ${bytes}`);
    assert.is(told.at(-1), bytes);
    assert.ok(site.sent < bytes / 2 + 600_000, `${site.sent} bytes for the rest of ${bytes}`);
    // What another tab has begun to write is empty, and not there yet.
    await site.visit(`const weft = await (await navigator.storage.getDirectory()).getDirectoryHandle("weft");
      const entries = await (await weft.getDirectoryHandle("bundles")).getDirectoryHandle("entries");
      for await (const file of entries.values()) await (await file.createWritable()).close();`);
    assert.equal(await site.visit("return answer(await open());"), await here());
    await site.visit("return weft.cache.delete((await weft.cache.list())[0].name);");
    site.reset();
    const both = [1, 2].map(() => site.visit<number[]>("return answer(await open());"));
    for (const ids of await Promise.all(both)) assert.equal(ids, await here());
    assert.is(site.asked.filter((a) => a.path === shard).length, 1);
  }));

test("no room is told before anything is fetched, with how much was missing; a bundle missing or changed too", () =>
  Site.run(async (site) => {
    const { origin, send } = site.browser;
    const quota = (quotaSize?: number): Promise<unknown> =>
      send("Storage.overrideQuotaForOrigin", { origin, ...(quotaSize !== undefined && { quotaSize }) });
    await quota(100_000);
    const full = await site.visit<Said>("return said(open);");
    assert.is(full.code, "WEFT_IO", full.message);
    assert.match(
      full.message,
      /expected [\d.]+ [kM]B of storage, found [\d.]+ (bytes|[kM]B), [\d.]+ [kM]B too few \(delete/,
    );
    assert.is(site.asked.filter((a) => a.path === shard).length, 0);
    const poor = await site.visit<[boolean, string[], { download: number; free: number }]>(`
      const a = await weft.availability("model.weft");
      return [a.ok, a.problems.map((p) => p.message), a.storage];`);
    assert.is(poor[0], false);
    assert.match(poor[1].join(), /^WEFT_IO at storage.*expected [\d.]+ [kM]B of storage/);
    assert.ok(poor[2].download > poor[2].free);
    assert.equal(await site.visit("return answer(await open({ cache: false }));"), await here());
    await quota();
    site.spoilt = shard;
    const changed = await site.visit<Said>("return said(open);");
    assert.is(changed.code, "WEFT_BUNDLE", changed.message);
    assert.match(changed.message, /model-00000.*sha-256/);
    site.spoilt = null;
    assert.equal(await site.visit("return answer(await open());"), await here());
    const missing = await site.visit<Said>('return said(() => weft.load("nothing.weft"));');
    assert.match(missing.message, /WEFT_IO.*nothing\.weft\/manifest\.json: expected 200, found 404/);
  }));

test("a phone's memory is respected: what is chosen fits what the device is said to have, and is told before", () =>
  Site.run(async (site) => {
    type Chosen = {
      target: string;
      total: number;
      said: Record<string, number>;
      meant: Record<string, number>;
    };
    const on = (device: string, options = "{}"): Promise<Chosen & { loaded: Record<string, number> }> =>
      site.visit(`
        const is = (name, value) => Object.defineProperty(Navigator.prototype, name, { get: () => value, configurable: true });
        ${device}
        const a = await weft.availability("model.weft", ${options});
        if (!a.ok) throw a.problems[0];
        const { capacities } = (await weft.load("model.weft", ${options})).manifest;
        const loaded = Object.fromEntries(Object.keys(a.capacities).map((name) => [name, capacities[name]]));
        return { target: a.target, total: a.memory.total, said: a.capacities, meant: a.meant, loaded };`);
    const desktop = await on('is("deviceMemory", 8);');
    assert.equal(desktop.said, desktop.meant);
    assert.is(desktop.target, "wasm");
    const memory = Math.floor(desktop.total * 0.8);
    // Half of what the device has.
    const small = await on(`is("deviceMemory", ${(2 * memory) / 2 ** 30});`);
    assert.ok(small.total <= memory && small.said.blocks! < small.meant.blocks!);
    assert.equal(small.loaded, small.said);
    // Who knows better says so.
    const told = await on('is("deviceMemory", 1e-6);', `{ memory: ${desktop.total} }`);
    assert.ok(told.loaded.blocks! >= told.meant.blocks!);
    const tight = await site.visit<Said>(`
      Object.defineProperty(Navigator.prototype, "deviceMemory", { get: () => 1e-6 });
      return said(() => weft.load("model.weft"));`);
    assert.match(tight.message, /WEFT_CAPACITY.*a guess: load\(\{ memory \}\) says better/);
    // Browsers that do not tell: a phone has a gigabyte, and a desktop what there is.
    for (const agent of ["iPhone Mobile Safari", "X11; Linux"])
      await on(`is("deviceMemory", undefined); is("userAgent", ${JSON.stringify(agent)});`);
  }));

test("an adapter goes out as blobs, a zip and folders, and comes in again; a checkpoint outlives its tab", () =>
  Site.run(async (site) => {
    const out = await site.visit<{ same: boolean[]; zip: number[]; name: string; ids: number[] }>(`
      const engine = await open();
      await (await engine.finetune({ ...job, data: rows, steps: 2, checkpoint: { dir: "storage:jobs/j", every: 0 } })).done;
      const a = engine.adapters.get("j");
      const blobs = await a.toBlobs();
      await a.save("storage:adapters/j");
      const root = await navigator.storage.getDirectory();
      const picked = await root.getDirectoryHandle("picked", { create: true });
      await a.save(picked);
      await engine.adapters.load("b", blobs);
      await engine.adapters.load("c", "storage:adapters/j");
      await engine.adapters.load("d", picked);
      await engine.adapters.load("e", [...blobs].map(([name, blob]) => new File([blob], name)));
      const same = [];
      for (const name of "bcde") same.push((await bits(await engine.adapters.get(name).toBlobs())) === (await bits(blobs)));
      let link;
      HTMLAnchorElement.prototype.click = function () { link = this; };
      await a.download();
      const zip = [...new Uint8Array(await (await fetch(link.href)).arrayBuffer())];
      const ids = (await engine.complete({ prompt, maxTokens: 5, adapter: "b" })).ids;
      return { same, zip, name: link.download, ids };`);
    assert.equal(out.same, [true, true, true, true]);
    assert.is(out.name, "j.zip");
    const unzipped = unzipSync(Uint8Array.from(out.zip));
    assert.equal(Object.keys(unzipped).sort(), ["adapter_config.json", "adapter_model.safetensors"]);
    const resumed = await site.visit<string>(`
      const engine = await open();
      await (await engine.finetune({ ...job, data: rows, steps: 4, resume: "storage:jobs/j" })).done;
      return bits(await engine.adapters.get("j").toBlobs());`);
    // As Node makes them in one go: Wasm is the same bits everywhere.
    await using engine = await load(site.folder, { device: "wasm", threads: 1 });
    await (await engine.finetune({ ...job, data: rows, steps: 2 })).done;
    const of = async (): Promise<Map<string, Uint8Array>> => {
      const blobs = await engine.adapters.get("j").toBlobs();
      return new Map(
        await Promise.all(
          [...blobs].map(async ([name, b]) => [name, new Uint8Array(await b.arrayBuffer())] as const),
        ),
      );
    };
    for (const [name, data] of await of()) assert.equal([...unzipped[name]!], [...data], name);
    assert.equal(out.ids, (await engine.complete({ prompt, maxTokens: 5, adapter: "j" })).ids);
    await (await engine.finetune({ ...job, data: rows, steps: 4 })).done;
    assert.is(resumed, [...(await of())].map(([name, data]) => name + [...data].join()).join(""));
    // What lies there is listed, and goes one by one.
    const kept = await site.visit<[string, string, number][][]>(`
      const list = async () => (await weft.storage.list()).map((f) => [f.name, f.kind, f.bytes]);
      const all = await list();
      const engine = await open();
      await engine.adapters.load("a", "storage:adapters/j");
      await engine.adapters.get("a").save("storage:jobs/j/inner");
      const gone = [await weft.storage.delete("storage:jobs/j"), await weft.storage.delete("storage:jobs")];
      const left = await list();
      await engine.adapters.load("b", "storage:jobs/j/inner");
      await weft.storage.delete("storage:jobs/j/inner");
      return [all, gone, left, await list()];`);
    const adapter = [...(await of()).values()].reduce((n, data) => n + data.length, 0);
    assert.equal(kept, [
      [
        ["storage:adapters/j", "adapter", adapter],
        ["storage:jobs/j", "checkpoint", kept[0]![1]![2]],
      ],
      [true, false] as never,
      [
        ["storage:adapters/j", "adapter", adapter],
        ["storage:jobs/j/inner", "adapter", adapter],
      ],
      [["storage:adapters/j", "adapter", adapter]],
    ]);
    assert.ok(kept[0]![1]![2]! > adapter);
    const refused = await site.visit<Said[]>(`
      const engine = await open();
      await (await engine.finetune({ ...job, data: rows, steps: 1 })).done;
      const root = await navigator.storage.getDirectory();
      const theirs = await root.getDirectoryHandle("theirs", { create: true });
      const to = await (await theirs.getFileHandle("notes.txt", { create: true })).createWritable();
      await to.write("mine");
      await to.close();
      return [
        await said(() => engine.adapters.get("j").save(theirs)),
        await said(() => engine.adapters.get("j").save("adapters/j")),
        await said(() => engine.adapters.load("x", "storage:nothing")),
        await said(() => engine.finetune({ ...job, data: rows, checkpoint: { dir: "storage:adapters/j" } })),
      ];`);
    for (const [i, says] of [
      /WEFT_IO.*theirs.*found notes\.txt/,
      /WEFT_IO.*expected a folder that can be written/,
      /WEFT_ADAPTER.*adapter_config\.json/,
      /WEFT_IO.*nothing but checkpoints/,
    ].entries())
      assert.match(refused[i]!.message ?? String(refused[i]), says);
  }));

test("a token goes with every file; headers and a fetch of one's own; addresses relative to the page", () =>
  Site.run(async (site) => {
    const ids = await site.visit(
      `let n = 0;
      const own = (url, init) => { n++; return fetch(url, init); };
      const engine = await weft.load("../../model.weft?token=s3cret", { device: "wasm", fetch: own, headers: { "x-who": "me" } });
      return [await answer(engine), n > 3];`,
      "/page/below/",
    );
    assert.equal(ids, [await here(), true]);
    for (const a of site.asked) assert.equal([a.query, a.headers["x-who"]], ["?token=s3cret", "me"]);
  }));

test("over plain http, where a page has no WebCrypto and no file system, all of it works too", () =>
  Site.run(
    async (site) => {
      const made = await site.visit<unknown>(`
        if (globalThis.isSecureContext || crypto.subtle || navigator.storage) throw new Error("this page is secure");
        const engine = await open();
        const ids = await answer(engine);
        await (await engine.finetune({ ...job, data: rows, steps: 1, checkpoint: { dir: "storage:j", every: 0 } })).done;
        await engine.adapters.get("j").save("storage:adapters/j");
        return ids;`);
      assert.equal(made, await here());
      site.down = true;
      const again = await site.visit(`
        const engine = await open();
        await engine.adapters.load("k", "storage:adapters/j");
        await (await engine.finetune({ ...job, name: "l", data: rows, steps: 1, resume: undefined })).done;
        return [await answer(engine), (await bits(await engine.adapters.get("k").toBlobs())) === (await bits(await engine.adapters.get("l").toBlobs()))];`);
      assert.equal(again, [made, true]);
    },
    { host: "weft.test" },
  ));
test.run();
