/**
 * Adapters on the host: in as few bits as lose nothing, and on disk past a budget; always the bits that
 * were kept.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import type { Manifest, WeftError } from "../runtime/bundle.ts";
import type { AdapterContent } from "../runtime/content.ts";
import { Contents } from "../runtime/kept.ts";
import { Resident, type Spill } from "../runtime/resident.ts";
import { openSpill } from "../runtime/spill.ts";
import { batchOf, bits, collect, configs, contentBits, engineOf, idsOf } from "./support/engines.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("kept");
const folder = `${scratch()}/tmp`;
mkdirSync(folder);
process.env.TMPDIR = folder;
const spilled = (): string[] => readdirSync(folder).filter((f) => f.startsWith("weft-adapters-"));
const errorOf = (f: () => unknown): WeftError => {
  try {
    f();
  } catch (e) {
    return e as WeftError;
  }
  return assert.unreachable("this throws") as never;
};
/** A bundle of one branch with one tensor of so many columns. */
const manifestOf = (cols: number): Manifest =>
  ({
    sites: [{}],
    branches: [{ index: 0, site: 0, tensors: [{ name: "a", rows: "one", cols }] }],
  }) as unknown as Manifest;
const contentOf = (layers: readonly Float32Array[]): AdapterContent =>
  ({
    branches: layers.map(() => [{ rank: 1, alpha: 1, scale: 1 }]),
    tensors: layers,
  }) as unknown as AdapterContent;
const inMemory = (): Spill & { readonly all: Map<number, Uint8Array> } => {
  const all = new Map<number, Uint8Array>();
  return {
    all,
    write: (id, bytes) => void all.set(id, bytes.slice()),
    read: (id) => all.get(id)!.slice(),
    remove: (id) => void all.delete(id),
    close: () => all.clear(),
  };
};

test("what is kept has its bits, in 16 where that loses nothing: halves, upper halves", () => {
  const next = generator("kept");
  const floats = (of: (i: number) => number): Float32Array =>
    new Float32Array(Uint32Array.from({ length: 999 }, (_, i) => of(i)).buffer);
  // Every half, widened: all exponents, subnormals, both zeros, infinities.
  const halves = Array.from({ length: 2 ** 16 }, (_, h) => h).filter(
    (h) => (h & 0x7c00) !== 0x7c00 || !(h & 1023),
  );
  const half = (h: number): number => {
    const [e, m] = [(h >> 10) & 31, h & 1023];
    const x = e === 31 ? Infinity : e ? (1 + m / 1024) * 2 ** (e - 15) : m * 2 ** -24;
    return h & 0x8000 ? -x : x;
  };
  const cases: [string, Float32Array, number][] = [
    ["halves", Float32Array.from({ length: 999 }, () => half(halves[next() % halves.length]!)), 2],
    ["bf16", floats(() => (next() & 0xffff) << 16), 2],
    ["f32", floats(() => next()), 4],
    ["zeros", new Float32Array(999), 2],
    [
      "a half too fine",
      Float32Array.from({ length: 999 }, (_, i) => (i === 500 ? 2 ** -24 + 2 ** -40 : 0.5)),
      4,
    ],
    [
      "a half too large",
      Float32Array.from({ length: 999 }, (_, i) => (i === 5 ? 65536 * 1.0009765625 : 1.0009765625)),
      4,
    ],
    ["a NaN of its own", floats((i) => (i === 7 ? 0x7fc01234 : 0x3f800000)), 4],
  ];
  const contents = new Contents(manifestOf(999));
  for (const h of [halves.slice(0, 30_000), halves.slice(30_000)])
    for (let i = 0; i < h.length; i += 999) {
      const values = Float32Array.from({ length: 999 }, (_, k) => half(h[i + k] ?? 0));
      const before = contents.bytes;
      const kept = contents.keep(contentOf([values]));
      assert.is(contents.bytes - before, 2000);
      assert.is(bits(kept.read().tensors[0]!), bits(values));
      kept.drop();
    }
  for (const [name, values, bytes] of cases) {
    const before = contents.bytes;
    const kept = contents.keep(contentOf([values, new Float32Array(999), values]));
    assert.is(contents.bytes - before, bytes === 2 ? 6000 : 2 * 3996 + 2000, name);
    const read = kept.read().tensors;
    assert.equal(read.map(bits), [values, new Float32Array(999), values].map(bits), name);
    kept.drop();
  }
  assert.is(contents.bytes, 0);
});

test("past a budget the least recently used are elsewhere, and come back; or refused", () => {
  const next = generator("budget");
  const values = (): Float32Array => new Float32Array(Uint32Array.from({ length: 100 }, () => next()).buffer);
  const spill = inMemory();
  const contents = new Contents(manifestOf(100), new Resident(1000, spill));
  const all = new Map<ReturnType<Contents["keep"]>, string>();
  for (let i = 0; i < 2000; i++) {
    const list = [...all.keys()];
    const pick = list[next() % Math.max(1, list.length)];
    if (next() % 3 === 0 || !pick) {
      const own = values();
      all.set(contents.keep(contentOf([own])), bits(own));
    } else if (next() % 4 === 0) {
      pick.drop();
      all.delete(pick);
    } else assert.is(bits(pick.read().tensors[0]!), all.get(pick));
    assert.ok(contents.bytes <= 1000);
  }
  assert.ok(all.size > 20 && spill.all.size >= all.size - 2, "most are elsewhere");
  for (const kept of all.keys()) kept.drop();
  assert.equal([contents.bytes, spill.all.size], [0, 0]);
  const bounded = new Contents(manifestOf(100), new Resident(1000, null));
  const first = bounded.keep(contentOf([values()]));
  bounded.keep(contentOf([values()]));
  const e = errorOf(() => bounded.keep(contentOf([values()])));
  assert.equal([e.code, e.where, e.found], ["WEFT_CAPACITY", "adapters.memory", "1.2 kB"]);
  first.drop();
  bounded.keep(contentOf([values()]));
  assert.match(
    errorOf(() => contents.keep(contentOf([values(), values(), values()]))).found,
    /one of 1\.2 kB/,
  );
});

test("room for two adapters answers by eight as room for all; nothing is left of it", async () => {
  const vocab = 128;
  const prompt = idsOf("kept", 20, vocab);
  const seen: unknown[] = [];
  for (const memory of ["4GB", 140_000]) {
    await using engine = await engineOf(configs.even, {
      capacities: { slots: 3 },
      load: { adapters: { memory } },
    });
    const job = { data: batchOf(vocab), batchSize: 2, steps: 1, learningRate: 0.05 };
    for (let i = 0; i < 8; i++)
      await (await engine.finetune({ ...job, name: `a${i}`, rank: 8, seed: i })).done;
    if (typeof memory === "number") {
      assert.ok(engine.core.adapters.bytes <= memory);
      assert.is(spilled().length, 1);
    }
    const names = Array.from({ length: 8 }, (_, i) => `a${i}`);
    seen.push([
      await Promise.all(names.map((adapter) => collect(engine, { prompt, maxTokens: 6, adapter }))),
      names.map((name) => contentBits(engine, name)),
    ]);
    if (typeof memory !== "number") continue;
    // Whoever takes the files away takes the adapters that are there alone.
    const dir = join(folder, spilled()[0]!);
    for (const f of readdirSync(dir)) rmSync(join(dir, f));
    const ends = await Promise.all(
      names.map((adapter) =>
        collect(engine, { prompt, maxTokens: 2, adapter }).then(
          () => "answered",
          (e: WeftError) => e.code,
        ),
      ),
    );
    assert.ok(ends.includes("WEFT_IO") && ends.includes("answered"), ends.join());
    assert.is((await collect(engine, { prompt, maxTokens: 2 })).ids.length, 2);
  }
  assert.equal(seen[1], seen[0]);
  assert.equal(spilled(), []);
});

test("what a killed process left is removed by the next; what one that lives has is left alone", async () => {
  const own = await openSpill();
  own.write(1, Uint8Array.of(1, 2, 3));
  const spill = new URL("../runtime/spill.ts", import.meta.url).href;
  const code = `import { openSpill } from ${JSON.stringify(spill)};
    (await openSpill()).write(7, new Uint8Array(5)); console.log("ready"); setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], {
    env: { ...process.env, TMPDIR: folder },
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise((resolve) => child.stdout.once("data", resolve));
  const [mine, other] = [spilled(), 1];
  assert.is(mine.length, 2);
  const gone = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await gone;
  const next = await openSpill();
  assert.is(spilled().length, 1 + other, "its own, and the next one's");
  assert.equal([...own.read(1)], [1, 2, 3]);
  own.close();
  next.close();
  assert.equal(spilled(), []);
  assert.ok(existsSync(folder));
});
test.run();
