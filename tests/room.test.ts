/** One bundle for much memory and little: what a load has room for, and that it changes no bit. */
import * as assert from "uvu/assert";
import { compileTo } from "../compiler/compile.ts";
import {
  bytesOf,
  type Manifest,
  planOf,
  type Sizes,
  sizeNames,
  sizesFor,
  type WeftError,
} from "../runtime/bundle.ts";
import { measureWasm, wasmLimits } from "../runtime/wasm.ts";
import { measureWebGpu, webGpuLimits } from "../runtime/webgpu.ts";
import { type Engine, load } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, contentBits, idsOf, small } from "./support/engines.ts";
import { uniform } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("room");
const targets = ["wasm", "webgpu"] as const;
const dir = `${scratch()}/room.weft`;
const train = ["lora", "dora", "prefix"];
const options = { quick: true, capacities: small };
const compiled = compileTo(writeModel(configs.odd), dir, { ...options, targets, train });
const measures = { wasm: measureWasm(2, 2, 2), webgpu: measureWebGpu(2) };
const limits = { wasm: wasmLimits, webgpu: webGpuLimits };
const sizesOf = (
  m: Manifest,
  target: "wasm" | "webgpu",
  o: { memory?: number; capacities?: Partial<Sizes> },
) => sizesFor(m, target, o, limits[target], measures[target]);
const errorOf = async (work: () => unknown): Promise<WeftError> => {
  try {
    await work();
  } catch (e) {
    return e as WeftError;
  }
  return assert.unreachable("this throws") as never;
};

test("more memory never gives less room, what is chosen fits, as meant by default", async () => {
  const m = await compiled;
  for (const target of targets) {
    const total = (s: Sizes): number => measures[target](planOf(m, target, s)).total;
    const wanted = Object.fromEntries(sizeNames.map((n) => [n, m.capacities[n]]));
    assert.equal(sizesOf(m, target, {}), wanted);
    const most = total(wanted as unknown as Sizes);
    const { found } = await errorOf(() => sizesOf(m, target, { memory: 1 }));
    assert.is(found, "1 bytes");
    let last: Sizes | null = null;
    const draws = [...uniform(`memory ${target}`, 200)]
      .map((u) => Math.floor(((u + 1) / 2) * 6 * most))
      .sort((a, b) => a - b);
    for (const memory of draws) {
      let sizes: Sizes;
      try {
        sizes = sizesOf(m, target, { memory });
      } catch (e) {
        assert.is((e as WeftError).code, "WEFT_CAPACITY");
        assert.is(last, null, "what fits less fits more");
        continue;
      }
      assert.ok(total(sizes) <= memory, `${total(sizes)} of ${memory} bytes`);
      for (const n of sizeNames) assert.ok(sizes[n] >= (last?.[n] ?? 1), n);
      last = sizes;
    }
    assert.ok(last && last.blocks > m.capacities.blocks && last.savedRows === m.capacities.savedRows);
    // A size that is asked for is taken, and the others make room for it.
    const asked = sizesOf(m, target, { memory: most, capacities: { slots: 9 } });
    assert.ok(asked.slots === 9 && asked.blocks < m.capacities.blocks);
  }
});

test("memory below the smallest is refused with what that takes; unknown sizes too", async () => {
  const m = await compiled;
  const least = await errorOf(() => load(dir, { device: "wasm", threads: 1, memory: "1MB" }));
  assert.is(least.code, "WEFT_CAPACITY");
  // What it says is enough; it says it as people do.
  const said = /at least ([\d.]+ MB) \(.*weights [\d.]+ [kM]B/.exec(least.expected)![1]!;
  const need = bytesOf(said);
  assert.is(least.found, "1.0 MB");
  assert.match(least.hint!, /^allow it more, or compile/);
  await using engine = await load(dir, { device: "wasm", threads: 1, memory: said });
  const { bytes, capacities } = engine.memory();
  assert.ok(Object.values(bytes).reduce((a, b) => a + b, 0) <= need);
  assert.equal([capacities.slots, capacities.jobs], [1, 1]);
  for (const [o, code, says] of [
    [{ memory: "many" }, "WEFT_OPTION", /memory/],
    [{ memory: -1 }, "WEFT_OPTION", /memory/],
    [{ capacities: { slot: 1 } }, "WEFT_OPTION", /slots/],
    [{ capacities: { slots: 0 } }, "WEFT_OPTION", /slots/],
    [{ capacities: { blocks: 1 } }, "WEFT_CAPACITY", /capacities\.blocks/],
    [{ capacities: { jobs: 99 } }, "WEFT_CAPACITY", /capacities\.jobs.*at most 16/],
  ] as const) {
    const e = await errorOf(() => load(dir, { device: "wasm", ...(o as object) }));
    assert.is(e.code, code, JSON.stringify(o));
    assert.match(String(e), says);
  }
  assert.is(m.capacities.slots, small.slots);
});

/** What requests and jobs of an engine say, and what is left of the jobs. */
async function bitsOf(engine: Engine, methods: readonly string[]): Promise<unknown> {
  const data = batchOf(engine.manifest.model.vocab).slice(0, 2);
  const jobs = [];
  for (const method of methods)
    jobs.push(
      (await (await engine.finetune({ name: method, method, data, steps: 2, batchSize: 2 })).done).losses,
    );
  const asks = Array.from({ length: 6 }, (_, i) => ({
    prompt: idsOf(`room ${i}`, 5 + 9 * i, engine.manifest.model.vocab),
    maxTokens: 6,
    ...(i % 2 && { adapter: methods[(i >> 1) % methods.length]! }),
  }));
  return {
    jobs,
    said: await Promise.all(asks.map((o) => collect(engine, o))),
    adapters: methods.map((name) => contentBits(engine, name)),
  };
}
for (const target of targets)
  test(`${target}: the same bits at its smallest, as meant, and with room for more requests`, async () => {
    // A software GPU compiles kernels for long: there the jobs are of one method, and so is the bundle.
    const methods = target === "wasm" ? train : ["lora"];
    const path = target === "wasm" ? dir : `${scratch()}/lora.weft`;
    const m = await (target === "wasm"
      ? compiled
      : compileTo(writeModel(configs.odd), path, { ...options, targets: [target], train: methods }));
    const device = target === "wasm" ? "wasm" : "software";
    const meant = measures[target](planOf(m, target, m.capacities)).total;
    const seen: unknown[] = [];
    const concurrency: number[] = [];
    // As little as a row of the data and its backward need.
    const least = { savedRows: 80, keptRows: 32, slots: 1, jobs: 1, sequences: 4, blocks: 4 };
    for (const o of [{ capacities: least }, {}, { memory: 3 * meant }]) {
      await using engine = await load(path, { device, ...(target === "wasm" && { threads: 2 }), ...o });
      assert.is(engine.core.invariance, "verified");
      seen.push(await bitsOf(engine, methods));
      const { blocks, slots, bytes } = engine.memory();
      assert.is(blocks.free, blocks.total);
      concurrency.push(blocks.total + slots.total);
      const planned = measures[target](planOf(m, target, engine.core.device.sizes));
      if (target === "webgpu") assert.equal(bytes, planned.bytes);
    }
    assert.equal(seen[1], seen[0]);
    assert.equal(seen[2], seen[0]);
    assert.ok(concurrency[0]! < concurrency[1]! && concurrency[1]! < concurrency[2]!, String(concurrency));
  });

test("jobs of two methods keep their rows side by side in words that either may have alone", async () => {
  const path = await bundle(configs.even, { train: ["lora", "dora"] });
  const data = batchOf(128).slice(0, 3);
  const options = { data, steps: 3, batchSize: 2, shuffle: false } as const;
  const both = async (keptRows: number, together: boolean): Promise<string[]> => {
    await using engine = await load(path, { device: "wasm", threads: 1, capacities: { keptRows } });
    const jobs = [];
    for (const method of ["lora", "dora"]) {
      const job = await engine.finetune({ ...options, name: method, method });
      if (!together) await job.done;
      jobs.push(job);
    }
    await Promise.all(jobs.map((j) => j.done));
    return ["lora", "dora"].map((name) => contentBits(engine, name));
  };
  const alone = await both(320, false);
  for (const rows of [40, 100, 150, 320]) assert.equal(await both(rows, true), alone, `${rows} rows`);
});
test.run();
