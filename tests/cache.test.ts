/** Kernels that were compiled before come from the user's cache, and only from one that is theirs alone. */
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { cached } from "../compiler/cache.ts";
import { compile } from "../compiler/compile.ts";
import { configs, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("cache");
const bytes = Uint8Array.of(1, 2, 3, 4, 5);
/** Run `f` with the cache at `folder`. */
async function at<T>(folder: string, f: () => Promise<T>): Promise<T> {
  const before = process.env.WEFT_CACHE;
  process.env.WEFT_CACHE = folder;
  try {
    return await f();
  } finally {
    if (before === undefined) delete process.env.WEFT_CACHE;
    else process.env.WEFT_CACHE = before;
  }
}
/** How often two calls for one key make something. */
async function makes(folder: string, between = (): void => {}): Promise<number> {
  let n = 0;
  const make = async (): Promise<Uint8Array> => {
    n++;
    return bytes;
  };
  await at(folder, async () => {
    assert.equal(await cached("key", make), bytes);
    between();
    assert.equal(await cached("key", make), bytes);
  });
  return n;
}

test("made once; made again where the file is not what was written, or the cache is off", async () => {
  const folder = join(scratch(), "cache");
  assert.is(await makes(folder), 1);
  const kernels = join(folder, "kernels");
  const [file] = readdirSync(kernels);
  for (const spoil of [
    (b: Buffer) => b.subarray(0, b.length - 1),
    (b: Buffer) => b.subarray(0, 10),
    (b: Buffer) => Buffer.from(b.map((x, i) => (i === b.length - 1 ? x ^ 1 : x))),
  ])
    assert.is(
      await makes(folder, () => {
        const path = join(kernels, file!);
        writeFileSync(path, spoil(readFileSync(path)));
      }),
      1,
      "the spoilt file is replaced",
    );
  assert.is(await makes("off"), 2);
});

test("a folder that others may write to, a link, or a file in its place is not used", async () => {
  const open = join(scratch(), "open");
  mkdirSync(open, { mode: 0o777 });
  chmodSync(open, 0o777);
  assert.is(await makes(open), 2);
  const dir = scratch();
  mkdirSync(join(dir, "real"), { mode: 0o700 });
  symlinkSync(join(dir, "real"), join(dir, "link"));
  assert.is(await makes(join(dir, "link")), 2);
  writeFileSync(join(dir, "file"), "");
  assert.is(await makes(join(dir, "file")), 2);
});

test("of a full cache only what weft wrote goes: the folder may be somebody's", async () => {
  const folder = join(scratch(), "cache");
  const kernels = join(folder, "kernels");
  mkdirSync(kernels, { recursive: true, mode: 0o700 });
  const [theirs, ours] = [
    (i: number) => join(kernels, `gemm-${i}.cu`),
    (i: number) => join(kernels, `${String(i).padStart(64, "0")}.wasm`),
  ];
  for (let i = 0; i < 520; i++) {
    writeFileSync(theirs(i), "theirs");
    utimesSync(theirs(i), 1, 1);
  }
  for (let i = 0; i < 515; i++) {
    writeFileSync(ours(i), "old");
    utimesSync(ours(i), 1000 + i, 1000 + i);
  }
  await at(folder, () => cached("key", async () => bytes));
  const left = readdirSync(kernels);
  assert.is(left.filter((name) => name.endsWith(".cu")).length, 520);
  assert.is(left.filter((name) => name.endsWith(".wasm")).length, 512);
  assert.not(
    left.some((name) => join(kernels, name) === ours(3)),
    "the least recently used went",
  );
});

test("a second compile takes its kernels from the cache, and they are the same", async () => {
  const folder = join(scratch(), "cache");
  const model = writeModel(configs.even);
  const options = { targets: ["wasm"], capacities: small, relaxed: true, quick: true } as const;
  const [one, two, fresh] = await at(folder, async () => [
    await compile(model, options),
    await compile(model, options),
    await compile(model, { ...options, cache: false }),
  ]);
  assert.is(readdirSync(join(folder, "kernels")).length, 3, "kernels, relaxed kernels, host");
  for (const other of [two!, fresh!])
    for (const [name, content] of one!.files)
      assert.ok(Buffer.compare(content, other.files.get(name)!) === 0, name);
});
test.run();
