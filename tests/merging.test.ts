/** Weighted sums of adapters, and adapters merged into the base. */
import * as assert from "uvu/assert";
import type { AdapterRef } from "../runtime/adapters.ts";
import { asLowRank } from "../runtime/branch.ts";
import { chosenIn, placedBy, placedIn } from "../runtime/content.ts";
import { addDeltas } from "../runtime/lowrank.ts";
import type { WeftError } from "../sdk/index.ts";
import {
  batchOf,
  checkLogits,
  collect,
  configs,
  engineOf,
  fixtures,
  idsOf,
  s2ftOdd,
} from "./support/engines.ts";
import { all, jobOf, vocab } from "./support/methods.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("merging");

test("a weighted sum is the sum of the deltas; combined, merged and exported it is the same", async () => {
  await using engine = await engineOf(configs.even, {
    ...all("wasm"),
    train: ["lora", "s2ft", "ia3", "sparse", "s2ft_permuted"],
    capacities: {
      ...all("wasm").capacities,
      rank: 24,
      s2ft: { sites: ["down_proj", "up_proj"], parameters: 2 * 32 * 64 },
    },
  });
  for (const [name, method, seed] of [
    ["blue", "lora", 1],
    ["green", "lora", 2],
    ["wave", "s2ft", 3],
    ["tide", "s2ft", 4],
    ["gain", "ia3", 5],
  ] as const)
    await (await engine.finetune({ ...jobOf(method), name, seed, rank: method === "ia3" ? 1 : 12 - seed }))
      .done;
  const prompt = idsOf("sums", 25, vocab);
  const logits = async (adapter?: AdapterRef): Promise<number[]> =>
    (await engine.score(prompt, { logits: true, ...(adapter && { adapter }) })).logits!.flatMap((r) => [
      ...r,
    ]);
  const near = (a: readonly number[], b: readonly number[], tolerance: number, where: string): void => {
    const max = Math.max(...b.map(Math.abs));
    const worst = a.reduce((m, x, i) => Math.max(m, Math.abs(x - b[i]!)), 0);
    assert.ok(worst <= tolerance * max, `${where}: off by ${worst} of ${max}`);
  };
  for (const weights of [
    { blue: 0.5, green: 0.5 },
    { wave: 0.75, tide: -0.5 },
  ]) {
    // The combination's matrices are the weighted sum, entry by entry.
    await engine.core.adapters.needs(weights);
    const sum = engine.core.adapters.find(weights).content;
    let compared = 0;
    for (const [l, layer] of sum.branches.entries())
      for (const [i, state] of layer.entries()) {
        if (!state.rank) continue;
        compared++;
        const site = engine.manifest.sites[engine.manifest.branches[i]!.site]!;
        const want = new Float32Array(site.inFeatures * site.outFeatures);
        for (const [name, w] of Object.entries(weights)) {
          const part = asLowRank(engine.manifest, engine.core.adapters.find(name).content, l, i);
          addDeltas(want, [{ ...part, b: part.b.map((x) => x * w) }]);
        }
        const got = new Float32Array(want.length);
        addDeltas(got, [asLowRank(engine.manifest, sum, l, i)]);
        near([...got], [...want], 1e-6, `${JSON.stringify(weights)}, ${site.module}`);
      }
    assert.ok(compared > 0, "matrices were compared");
    const said = await logits(weights);
    await engine.adapters.combine("both", weights);
    // Summed rows by rows in its parts' slots, or once for all.
    near(await logits("both"), said, 1e-5, "adapters.combine");
    const { ms } = await engine.merge(weights);
    assert.ok(ms > 0);
    near(await logits(), said, 1e-5, "merged");
    assert.is(
      (await engine.score(prompt, { adapter: "blue" }).catch((e: WeftError) => e.code)) as unknown,
      "WEFT_CONFLICT",
    );
    await engine.merge(null);
  }
  for (const [name, seed] of [
    ["dust", 6],
    ["sand", 7],
  ] as const)
    await (await engine.finetune({ ...jobOf("sparse"), name, seed, rank: 4, learningRate: 0.1 })).done;
  const both = { dust: 0.5, sand: -0.25 };
  const entries = (ref: AdapterRef): Map<string, number> => {
    const { content } = engine.core.adapters.find(ref);
    const out = new Map<string, number>();
    content.branches.forEach((layer, l) => {
      layer.forEach(({ rank }, i) => {
        if (!rank) return;
        const { values } = placedBy(placedIn(engine.manifest, layer, content.tensors[l]!, l, i), "values");
        chosenIn(engine.manifest, content, l, i).forEach((e, k) => out.set(`${l} ${i} ${e}`, values[k]!));
      });
    });
    return out;
  };
  const [dust, sand, sum] = [entries("dust"), entries("sand"), entries(both)];
  assert.is(sum.size, new Set([...dust.keys(), ...sand.keys()]).size);
  for (const [e, v] of sum)
    assert.ok(Math.abs(v - (0.5 * (dust.get(e) ?? 0) - 0.25 * (sand.get(e) ?? 0))) < 1e-6, e);
  const said = await logits(both);
  await engine.merge(both);
  near(await logits(), said, 1e-5, "merged sparse sum");
  await engine.merge(null);
  const before = await logits();
  assert.is(await logits({ gain: 0.5, blue: 0.5 }).catch((e: WeftError) => e.code), "WEFT_ADAPTER");
  assert.equal(await logits(), before, "an undone merge restores every bit");
  assert.is(await logits({ blue: 1, nobody: 1 }).catch((e: WeftError) => e.code), "WEFT_NOT_FOUND");
  const parts = await Promise.all([
    logits({ blue: 0.5, green: 0.5 }),
    logits("blue"),
    logits({ wave: 0.75, tide: -0.5 }),
  ]);
  assert.equal(parts[0], await logits({ blue: 0.5, green: 0.5 }), "sums in one batch with single adapters");
});
test("merged = unmerged for every method that changes weights, with biases; others say no", async () => {
  const merges = ["lora", "dora", "s2ft", "ia3", "hydra", "sparse", "lora_bias"] as const;
  await using engine = await engineOf(configs.odd, {
    targets: ["wasm"],
    train: ["lora"],
    methods: [...merges, "parallel", "series", "prefix", "prompt"],
    capacities: { s2ft: s2ftOdd },
  });
  const prompt = idsOf("merges", 40, 259);
  const logits = async (adapter?: string): Promise<number[]> =>
    (await engine.score(prompt, { logits: true, ...(adapter && { adapter }) })).logits!.flatMap((r) => [
      ...r,
    ]);
  const base = await logits();
  const max = Math.max(...base.map(Math.abs));
  for (const method of merges) {
    await engine.adapters.load(
      method,
      method === "lora" ? `${fixtures}peft-odd` : `${fixtures}${method}-odd`,
    );
    const unmerged = await logits(method);
    await engine.merge(method);
    (await logits()).forEach((x, i) =>
      assert.ok(Math.abs(x - unmerged[i]!) <= 2e-5 * max, `${method}: ${x} merged, ${unmerged[i]} unmerged`),
    );
    await engine.merge(null);
    assert.ok(
      unmerged.some((x, i) => Math.abs(x - base[i]!) > 1e-2 * max),
      `${method} changes the base`,
    );
  }
  assert.equal(await logits(), base);
  for (const method of ["parallel", "series", "prefix", "prompt"]) {
    await engine.adapters.load(method, `${fixtures}${method}-odd`);
    assert.is(
      await engine.merge(method).then(String, (e: WeftError) => `${e.code} ${e.where}`),
      `WEFT_ADAPTER method ${method}`,
    );
  }
  assert.equal(await logits(), base);
});
test("modules of an adapter's own (peft's modules_to_save) are served merged, and by no batch", async () => {
  await using engine = await engineOf(configs.odd);
  await engine.adapters.load("own", `${fixtures}lora_replacing-odd`);
  const prompt = { prompt: idsOf("own", 10, 259), maxTokens: 3 };
  assert.is(
    await collect(engine, { ...prompt, adapter: "own" }).then(String, (e: WeftError) => e.code),
    "WEFT_ADAPTER",
  );
  assert.is(
    await collect(engine, { ...prompt, adapter: { own: 1 } }).then(String, (e: WeftError) => e.code),
    "WEFT_ADAPTER",
  );
  assert.is(
    await engine
      .finetune({ name: "on", from: "own", data: batchOf(259), steps: 1 })
      .then(String, (e: WeftError) => `${e.code} ${e.where}`),
    "WEFT_ADAPTER from",
  );
  const before = await collect(engine, prompt);
  await engine.merge("own");
  await checkLogits(engine, "lora_replacing.logits", 259);
  await engine.merge(null);
  assert.equal(await collect(engine, prompt), before);
  const dir = `${scratch()}/own`;
  await engine.adapters.get("own").save(dir);
  await engine.adapters.load("copy", dir);
  await engine.merge("copy");
  await checkLogits(engine, "lora_replacing.logits", 259);
});
test.run();
