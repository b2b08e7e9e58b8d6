/** Slots by rank, and weighted sums of adapters that requests ask for. */
import * as assert from "uvu/assert";
import type { AdapterRef } from "../runtime/adapters.ts";
import type { Manifest, WeftError } from "../runtime/bundle.ts";
import { combine } from "../runtime/combine.ts";
import { absent } from "../runtime/content.ts";
import { type Engine, load } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, contentBits, engineOf, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("sums");
const vocab = 128;
const prompt = idsOf("sums", 25, vocab);
const logits = async (engine: Engine, adapter?: AdapterRef): Promise<number[]> =>
  (await engine.score(prompt, { logits: true, ...(adapter && { adapter }) })).logits!.flatMap((r) => [...r]);
const job = { data: batchOf(vocab), batchSize: 2, steps: 2, learningRate: 0.05, method: "lora" } as const;
const codeOf = (p: Promise<unknown>): Promise<string> =>
  p.then(
    () => "none",
    (e: WeftError) => e.code,
  );

for (const target of ["wasm", "webgpu"] as const)
  test(`${target}: a weighted sum reads its parts' rows: as combined, in a batch as alone`, async () => {
    await using engine = await engineOf(configs.even, {
      targets: [target],
      capacities: { slots: 8, rank: 24 },
    });
    const train = async (name: string, o: object): Promise<void> =>
      void (await (
        await engine.finetune({ ...job, name, ...o })
      ).done);
    await train("blue", { rank: 5, seed: 1, alpha: 3 });
    await train("green", { rank: 8, seed: 2 });
    await train("red", { rank: 16, seed: 3, targetModules: ["q_proj", "down_proj"], rslora: true });
    await train("wide", { rank: 24, seed: 4, targetModules: ["gate_proj", "q_proj"] });
    const sums = [
      { blue: 0.5, green: -0.25 },
      // Whole quads of both: 5 rows and 8, and 16 at two sites.
      { blue: 1.5, red: 1 },
      { blue: 1 },
    ];
    const alone: number[][] = [];
    for (const [i, sum] of sums.entries()) {
      await engine.core.adapters.needs(sum);
      const { parts } = engine.core.adapters.find(sum);
      assert.is(parts.length, Object.keys(sum).length, "a slot stands for it");
      alone.push(await logits(engine, sum));
      await engine.adapters.combine(`sum${i}`, sum);
      const combined = await logits(engine, `sum${i}`);
      const max = Math.max(...combined.map(Math.abs));
      const worst = alone[i]!.reduce((m, x, k) => Math.max(m, Math.abs(x - combined[k]!)), 0);
      assert.ok(worst <= 1e-5 * max, `${JSON.stringify(sum)}: off by ${worst} of ${max}`);
    }
    assert.equal(alone[2], await logits(engine, "blue"), "one of weight 1 is the adapter");
    const single = await logits(engine, "green");
    const all = await Promise.all([
      ...sums.map((sum) => logits(engine, sum)),
      logits(engine, "green"),
      train("beside", { rank: 4, seed: 5 }),
    ]);
    assert.equal(all.slice(0, 4), [...alone, single]);
    assert.equal([engine.memory().slots.used, engine.memory().pages.used], [0, 0]);
    // A sum of too many rows is refused, built or not; a part in use is not removed.
    assert.is(await codeOf(logits(engine, { wide: 0.5, green: 0.5 })), "WEFT_ADAPTER");
    assert.is(await codeOf(logits(engine, { blue: Number.NaN, green: 1 })), "WEFT_OPTION");
    const stream = engine.core.generate({ prompt, maxTokens: 30, adapter: sums[0]! });
    await stream.next();
    // What stands for a sum has no pages of its own: two quads of blue are two, and two of green.
    assert.equal([engine.memory().slots.used, engine.memory().pages.used], [3, 4]);
    assert.throws(
      () => engine.adapters.remove("blue"),
      (e: WeftError) => e.code === "WEFT_CONFLICT",
    );
    await stream.return();
    engine.adapters.remove("blue");
    assert.is(await codeOf(logits(engine, sums[0]!)), "WEFT_NOT_FOUND");
  });

test("an adapter takes as many pages as its rank; its bits are those of a bundle of that rank", async () => {
  const folder = `${scratch()}/eight`;
  const seen: unknown[] = [];
  for (const rank of [8, 24]) {
    await using engine = await load(await bundle(configs.odd, { capacities: { rank } }), {
      device: "wasm",
      threads: 1,
      capacities: { slots: 6, pages: 6 },
    });
    const data = batchOf(259);
    const own = await (await engine.finetune({ ...job, data, name: "own", rank: 8, seed: 7 })).done;
    if (rank === 8) await engine.adapters.get("own").save(folder);
    await engine.adapters.load("read", folder);
    const said = await collect(engine, { prompt, maxTokens: 8, adapter: "read" });
    seen.push([own.losses, contentBits(engine, "own"), contentBits(engine, "read"), said]);
    // Six pages: three adapters of rank 8 stay, and a fourth takes the place of the first.
    const { total } = engine.memory().pages;
    for (const [i, left] of [2, 0, 0].entries()) {
      await engine.adapters.load(`more${i}`, folder);
      await collect(engine, { prompt, maxTokens: 2, adapter: `more${i}` });
      assert.is(engine.core.host.exports.freePages(), left, `${i} more of ${total} pages`);
    }
  }
  assert.equal(seen[1], seen[0]);
});

test("a sum is of the method that trains both factors, wherever that comes", async () => {
  await using engine = await engineOf(configs.even, { targets: ["wasm"] });
  for (const [name, seed] of [
    ["blue", 1],
    ["green", 2],
  ] as const)
    await (await engine.finetune({ ...job, name, seed, rank: 3, steps: 1 })).done;
  const { methods, branches, ...rest } = engine.manifest;
  const half = branches.map((b, i) => ({
    ...b,
    index: branches.length + i,
    method: "half",
    tensors: b.tensors.map((t) => ({ ...t, trained: t.name !== "a" })),
  }));
  const manifest: Manifest = {
    ...rest,
    methods: { half: { ...methods.lora!, name: "half" }, ...methods },
    branches: [...branches, ...half],
  };
  const parts = ["blue", "green"].map((name) => {
    const { content } = engine.core.adapters.find(name);
    const states = content.branches.map((layer) => [...layer, ...half.map(() => absent)]);
    return { content: { ...content, branches: states }, weight: 0.5 };
  });
  assert.is(combine(manifest, parts).config.method, "lora");
});
test.run();
