/**
 * What holds of both kinds of places: writers that are killed, that race, that run out of disk; readers
 * meanwhile; what is not weft's.
 */
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import * as assert from "uvu/assert";
import { WeftError } from "../sdk/index.ts";
import { type Change, kept, record, replay } from "./support/crash.ts";
import { NAMES } from "./support/payload.ts";
import { type Place, places, refused, startWriter, tree, writerFile } from "./support/places.ts";
import { generator } from "./support/random.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("places");
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
test.run();
