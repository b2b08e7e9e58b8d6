import { readFileSync, statSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { compile } from "../compiler/compile.ts";
import type { AdapterRef } from "../runtime/adapters.ts";
import { asLowRank } from "../runtime/branch.ts";
import { decode, parseHeader } from "../runtime/bundle.ts";
import { chosenIn, placedBy, placedIn } from "../runtime/content.ts";
import { addDeltas } from "../runtime/lowrank.ts";
import {
  compile as compileBundle,
  type FinetuneOptions,
  load,
  type MethodMemory,
  planMemory,
  type WeftError,
} from "../sdk/index.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import {
  batchOf,
  bits,
  checkLogits,
  collect,
  configs,
  contentBits,
  engineOf,
  fixtures,
  idsOf,
  reference,
  s2ftOdd,
  small,
} from "./support/engines.ts";
import { permuted } from "./support/permuted.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("adapters");

const every = [
  "lora",
  "dora",
  "s2ft",
  "ia3",
  "parallel",
  "series",
  "hydra",
  "prefix",
  "prompt",
  "sparse",
  "lora_bias",
  "s2ft_permuted",
] as const;
const vocab = 128;
/** A selection of 16 feed-forward channels and one of the two key heads of each layer. */
const selection = {
  layers: [3, 5].map((step, l) => ({
    ffn: Array.from({ length: 16 }, (_, i) => (7 + i * step) % 128),
    groups: [1 - l],
  })),
  selector: "random",
};
/** Tested in vera.test.ts. */
const apart = ["vera"];
assert.equal([...every, ...apart].sort(), Object.keys(adapterMethods).sort(), "no method is left out");
/** A bundle that serves and trains every method, on a permuted base; S2FT on all its sites. */
const all = (target: "wasm" | "webgpu") => ({
  targets: [target],
  train: [...every],
  selection,
  capacities: {
    savedRows: 80,
    keptRows: 32,
    unitRows: 64,
    slots: 6,
    s2ft: { sites: ["o_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], parameters: 5 * 16 * 64 },
  },
});
const rows = batchOf(vocab);
const short = rows.filter((r) => r.input_ids.length < 40);
const jobOf = (method: string): FinetuneOptions => ({
  name: method,
  method,
  data: short,
  steps: 2,
  batchSize: 3,
  learningRate: 0.02,
  seed: 4,
  ...(method === "lora" && { dropout: 0.1 }),
});

for (const target of ["wasm", "webgpu"] as const)
  test(`law 5 on ${target}: methods in a batch, jobs of several, are as alone; fresh = base`, async () => {
    await using engine = await engineOf(configs.even, all(target));
    const o = { prompt: idsOf("mixed methods", 17, vocab), maxTokens: 5 };
    const base = await collect(engine, o);
    const single = new Map<string, unknown>([["base", base]]);
    const losses = new Map<string, readonly number[]>();
    const content = new Map<string, string>();
    for (const method of every) {
      const fresh = await engine.finetune({ ...jobOf(method), name: "fresh", steps: 1, learningRate: 1e-30 });
      await fresh.done;
      const said = await collect(engine, { ...o, adapter: "fresh" });
      // DoRA divides by the norms that its magnitudes start as: one rounding away from the base.
      if (method === "dora")
        said.logprobs.forEach((x, i) =>
          assert.ok(Math.abs(x - base.logprobs[i]!) < 1e-5, `${x} and ${base.logprobs[i]}`),
        );
      // Tokens of an adapter's own are always heard.
      else if (!engine.manifest.methods[method]!.virtual)
        assert.equal(said, base, `a fresh ${method} adapter is the base`);
      engine.adapters.remove("fresh");
      losses.set(method, (await (await engine.finetune(jobOf(method))).done).losses);
      content.set(method, contentBits(engine, method));
      single.set(method, await collect(engine, { ...o, adapter: method }));
      assert.is.not(
        JSON.stringify(single.get(method)),
        JSON.stringify(base),
        `${method} has learned something`,
      );
    }
    const next = generator("mixed methods");
    const order = ["base", ...every, "base"]
      .map((name) => ({ name, at: next() }))
      .sort((a, b) => a.at - b.at)
      .map(({ name }) => name);
    const mixed = await Promise.all(
      order.map((name) => collect(engine, { ...o, ...(name !== "base" && { adapter: name }) })),
    );
    order.forEach((name, i) => assert.equal(mixed[i], single.get(name), name));
    // Two jobs of different methods at once, beside requests of a third.
    for (const [a, b, other] of [
      ["lora", "s2ft", "ia3"],
      ["series", "ia3", "parallel"],
      ["prompt", "sparse", "prefix"],
      ["s2ft_permuted", "s2ft", "lora_bias"],
    ] as const) {
      const jobs = await Promise.all([a, b].map((m) => engine.finetune({ ...jobOf(m), name: `${m}-again` })));
      const said = collect(engine, { ...o, adapter: other });
      const results = await Promise.all(jobs.map((j) => j.done));
      assert.equal(await said, single.get(other));
      [a, b].forEach((m, i) => {
        assert.equal(results[i]!.losses, losses.get(m), `${m} beside another job`);
        assert.is(contentBits(engine, `${m}-again`), content.get(m), `${m} beside another job`);
      });
    }
  });

test("saved = loaded, bit for bit; the base stays; trainable numbers follow the formula", async () => {
  await using engine = await engineOf(configs.even, all("wasm"));
  const prompt = idsOf("saved methods", 30, vocab);
  const logits = async (adapter?: string): Promise<string[]> =>
    (await engine.score(prompt, { logits: true, ...(adapter && { adapter }) })).logits!.map(bits);
  const base = await logits();
  const hd = 16;
  const [d, ffn, q, kv] = [64, 128, 4 * hd, 2 * hd];
  // [in, out] of q, k, v, o, gate, up, down.
  const shapes: [number, number][] = [
    [d, q],
    [d, kv],
    [d, kv],
    [q, d],
    [d, ffn],
    [d, ffn],
    [ffn, d],
  ];
  const formula: Record<(typeof every)[number], number> = {
    lora: 2 * shapes.reduce((n, [i, o]) => n + 8 * (i + o), 0),
    dora: 2 * shapes.reduce((n, [i, o]) => n + 8 * (i + o) + o, 0),
    s2ft: 2 * 5 * 16 * d,
    ia3: 2 * (kv + kv + ffn),
    parallel: 2 * 8 * (q + d + ffn + d),
    series: 2 * 8 * (d + d + d + d),
    hydra: 2 * 8 * (q + 3 * d + ffn + 3 * d),
    // The even model has no biases; a key head comes with its two query heads.
    lora_bias: 2 * shapes.reduce((n, [i, o]) => n + 8 * (i + o), 0),
    s2ft_permuted: 2 * (3 * 16 + hd + 2 * hd) * d,
    prefix: 2 * 8 * 2 * kv,
    prompt: 8 * d,
    sparse: 2 * 8 * (d + q + d + kv),
  };
  for (const method of every) {
    let trainable = 0;
    const job = await engine.finetune({
      ...jobOf(method),
      onEvent: (e) => e.type === "start" && (trainable = e.trainable),
    });
    await job.done;
    assert.is(trainable, formula[method], method);
    const dir = `${scratch()}/${method}`;
    await engine.adapters.get(method).save(dir);
    await engine.adapters.load(`${method}-copy`, dir);
    assert.equal(await logits(`${method}-copy`), await logits(method), method);
    assert.is.not((await logits(method))[5], base[5]);
    const other = method === "lora" ? "s2ft" : "lora";
    assert.is(
      await engine
        .finetune({ ...jobOf(other), name: "wrong", dropout: 0, from: method })
        .catch((e: WeftError) => `${e.code} ${e.where}`),
      "WEFT_OPTION from",
      "an adapter of another method",
    );
    if (!engine.manifest.methods[method]!.dropout)
      assert.is(
        await engine
          .finetune({ ...jobOf(method), name: "drop", dropout: 0.5 })
          .catch((e: WeftError) => `${e.code} ${e.where}`),
        "WEFT_OPTION dropout",
      );
  }
  assert.equal(await logits(), base);
});

test("S2FT selects what a brute-force ranking does, one a coupled group; seeds repeat", async () => {
  await using engine = await engineOf(configs.even, all("wasm"));
  const weights = new Map((await engine.core.baseTensors()).map((t) => [t.name, t]));
  const chosen = (name: string, layer: number, module: string): number[] => {
    const b = engine.manifest.branches.find(
      (x) => x.method === "s2ft" && engine.manifest.sites[x.site]!.module.endsWith(module),
    )!;
    return chosenIn(engine.manifest, engine.core.adapters.find(name).content, layer, b.index);
  };
  const run = async (o: Partial<FinetuneOptions>): Promise<void> =>
    void (await (
      await engine.finetune({ ...jobOf("s2ft"), steps: 1, ...o })
    ).done);
  const ffnSquares = (layer: number): number[] =>
    Array.from({ length: 128 }, (_, c) => {
      let s = 0;
      for (const m of ["gate_proj", "up_proj"])
        for (let i = 0; i < 64; i++)
          s += weights.get(`model.layers.${layer}.mlp.${m}.weight`)!.data[c * 64 + i]! ** 2;
      for (let o = 0; o < 64; o++)
        s += weights.get(`model.layers.${layer}.mlp.down_proj.weight`)!.data[o * 128 + c]! ** 2;
      return s;
    });
  for (const selector of ["weight-large", "weight-small"] as const) {
    await run({ name: selector, selector, rank: 12 });
    for (const layer of [0, 1]) {
      const norm = ffnSquares(layer);
      const sign = selector === "weight-large" ? -1 : 1;
      const want = [...norm.keys()]
        .sort((a, b) => sign * (norm[a]! - norm[b]!))
        .slice(0, 12)
        .sort((a, b) => a - b);
      for (const m of ["gate_proj", "up_proj", "down_proj"])
        assert.equal(chosen(selector, layer, m), want, `${selector}, layer ${layer}, ${m}`);
    }
  }
  // Activations and gradients: sums over the tokens of the data, as torch computes them with hooks.
  const ranked = (of: readonly number[], end: string): number[] =>
    [...of.keys()].sort((x, y) => (end === "large" ? -1 : 1) * (of[x]! - of[y]!));
  for (const what of ["activation", "gradient"] as const)
    for (const end of ["large", "small"] as const) {
      const name = `${what}-${end}` as const;
      await run({ name, selector: name, rank: 16 });
      for (const layer of [0, 1]) {
        const { ffn, heads } = reference.even[`${what}_squares`][layer]!;
        const channels = ranked(ffn, end)
          .slice(0, 16)
          .sort((x, y) => x - y);
        for (const m of ["gate_proj", "up_proj", "down_proj"])
          assert.equal(chosen(name, layer, m), channels, `${name}, layer ${layer}, ${m}`);
        const byHead = Array.from({ length: 4 }, (_, h) =>
          heads.slice(h * 16, h * 16 + 16).reduce((x, y) => x + y, 0),
        );
        assert.equal(
          chosen(name, layer, "o_proj")[0],
          ranked(byHead, end)[0]! * 16,
          `${name}, layer ${layer}: a whole head of o`,
        );
      }
    }
  await run({ name: "product", selector: "product-large", rank: 16 });
  for (const layer of [0, 1]) {
    const { ffn } = reference.even.activation_squares[layer]!;
    const both = Array.from({ length: 128 }, (_, c) => Math.sqrt(ffn[c]!) * Math.sqrt(ffnSquares(layer)[c]!));
    assert.equal(
      chosen("product", layer, "down_proj"),
      ranked(both, "large")
        .slice(0, 16)
        .sort((x, y) => x - y),
    );
  }
  // Adapters that share no channel: their sum is one adapter of all their channels.
  await run({
    name: "apart",
    selector: "activation-small",
    rank: 16,
    disjointFrom: ["activation-small", "product"],
    targetModules: ["gate_proj", "up_proj", "down_proj"],
  });
  for (const layer of [0, 1])
    for (const m of ["gate_proj", "down_proj"]) {
      const others = new Set([...chosen("activation-small", layer, m), ...chosen("product", layer, m)]);
      assert.not(
        chosen("apart", layer, m).some((c) => others.has(c)),
        `${m}: no channel twice`,
      );
    }
  const all128 = [
    "activation-small",
    "activation-large",
    "apart",
    "product",
    "gradient-large",
    "gradient-small",
    "weight-large",
    "weight-small",
  ];
  await run({
    name: "rest",
    rank: 16,
    seed: 9,
    disjointFrom: ["activation-small", "activation-large"],
    targetModules: ["o_proj"],
  });
  await run({
    name: "last",
    rank: 16,
    seed: 9,
    disjointFrom: ["activation-small", "activation-large", "rest"],
    targetModules: ["o_proj"],
  });
  const refused = await engine.finetune({
    ...jobOf("s2ft"),
    steps: 1,
    name: "none",
    rank: 16,
    targetModules: ["o_proj"],
    disjointFrom: [...all128, "rest", "last"],
  });
  assert.is(await refused.done.catch((e: WeftError) => `${e.code} ${e.where}`), "WEFT_OPTION disjointFrom");
  await run({ name: "one", seed: 1 });
  await run({ name: "same", seed: 1 });
  await run({ name: "two", seed: 2 });
  assert.equal(chosen("one", 0, "down_proj"), chosen("same", 0, "down_proj"));
  assert.is.not(chosen("one", 0, "down_proj").join(), chosen("two", 0, "down_proj").join());
  assert.is.not(chosen("one", 0, "down_proj").join(), chosen("one", 1, "down_proj").join());
  // A whole head: 16 channels of one head of 16.
  const head = chosen("one", 0, "o_proj");
  assert.equal(
    head.map((c) => c - head[0]!),
    Array.from({ length: 16 }, (_, i) => i),
  );
  assert.is(head[0]! % 16, 0);
});

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
    engine.adapters.combine("both", weights);
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
test("a fresh prompt of tokens' embeddings = those tokens before the text, bit for bit", async () => {
  await using engine = await engineOf(configs.even, { targets: ["wasm"], train: ["prompt"], methods: [] });
  await (await engine.finetune({ ...jobOf("prompt"), rank: 6, steps: 1, learningRate: 1e-30 })).done;
  const table = (await engine.core.baseTensors()).find((t) => t.name === "model.embed_tokens.weight")!.data;
  const { tensors } = engine.core.adapters.find("prompt").content;
  const said = Array.from({ length: 6 }, (_, r) => {
    const id = Array.from({ length: vocab }, (_, v) => v).findIndex((v) =>
      Array.from({ length: 64 }, (_, c) => c).every((c) => table[v * 64 + c] === tensors[0]![r * 64 + c]),
    );
    assert.ok(id >= 0, `row ${r} is a token's embedding`);
    return id;
  });
  const ids = idsOf("behind", 20, vocab);
  const plain = await engine.score([...said, ...ids], { logits: true });
  const behind = await engine.score(ids, { logits: true, adapter: "prompt" });
  assert.equal(behind.logits!.map(bits), plain.logits!.slice(6).map(bits));
  const o = { maxTokens: 6, repetitionPenalty: 1.3 };
  const a = await collect(engine, { ...o, prompt: ids, adapter: "prompt" });
  assert.is(a.ids.length, 6);
  assert.is(
    await collect(engine, { prompt: idsOf("long", 122, vocab), maxTokens: 5, adapter: "prompt" }).then(
      String,
      (e: WeftError) => e.code,
    ),
    "WEFT_CONTEXT_OVERFLOW",
  );
});
test("sparse masks: the entries that moved most in a full fine-tuning, and the largest weights", async () => {
  const moved = `${scratch()}/moved`;
  {
    await using engine = await engineOf(configs.even, { targets: ["wasm"], train: ["full"], methods: [] });
    await (await engine.finetune({ name: "full", method: "full", data: short, steps: 2, batchSize: 3 })).done;
    await engine.saveModel(moved);
  }
  await using engine = await engineOf(configs.even, { targets: ["wasm"], train: ["sparse"], methods: [] });
  const before = new Map((await engine.core.baseTensors()).map((t) => [t.name, t.data]));
  const file = readFileSync(`${moved}/model.safetensors`);
  const after = (name: string): Float32Array => {
    const t = parseHeader(file, file.length, "moved").tensors.find((x) => x.name === name)!;
    return decode(file.subarray(t.start, t.end), "F32", name);
  };
  for (const [selector, score] of [
    ["difference", (name: string, e: number) => Math.abs(after(name)[e]! - before.get(name)![e]!)],
    ["weight-large", (name: string, e: number) => Math.abs(before.get(name)![e]!)],
  ] as const) {
    await (
      await engine.finetune({
        ...jobOf("sparse"),
        name: selector,
        selector,
        rank: 2,
        targetModules: ["v_proj"],
        tuned: moved,
      })
    ).done;
    const { content } = engine.core.adapters.find(selector);
    for (const layer of [0, 1]) {
      const b = engine.manifest.branches.find((x) =>
        engine.manifest.sites[x.site]!.module.endsWith("v_proj"),
      )!;
      const { rank } = content.branches[layer]![b.index]!;
      assert.is(rank, 2 * (64 + 32));
      const name = `model.layers.${layer}.self_attn.v_proj.weight`;
      const scores = Float64Array.from({ length: 64 * 32 }, (_, e) => score(name, e));
      const want = [...scores.keys()].sort((x, y) => scores[y]! - scores[x]! || x - y).slice(0, rank);
      const got = chosenIn(engine.manifest, content, layer, b.index);
      assert.equal(
        got,
        want.sort((x, y) => x - y),
        `${selector}, layer ${layer}`,
      );
    }
  }
  const job = await engine.finetune({ ...jobOf("sparse"), name: "no", selector: "difference" });
  assert.is(await job.done.then(String, (e: WeftError) => `${e.code} ${e.where}`), "WEFT_OPTION selector");
});
test("a permuted base says the same, and reads and writes the same files, in one order", async () => {
  const { folder, selection } = permuted("odd");
  const others = [
    "dora",
    "ia3",
    "hydra",
    "parallel",
    "series",
    "prefix",
    "prompt",
    "sparse",
    "lora_bias",
  ] as const;
  const capacities = { s2ft: s2ftOdd, rank: 12, slots: 4 };
  await using engine = await engineOf(configs.odd, {
    targets: ["wasm"],
    train: ["s2ft_permuted", "lora", "full"],
    methods: ["s2ft", ...others],
    capacities,
    selection,
  });
  await checkLogits(engine, "odd.logits", 259);
  const one = idsOf("one base", 50, 259);
  {
    await using plain = await engineOf(configs.odd);
    const [a, b] = await Promise.all(
      [plain, engine].map(async (e) => (await e.score(one, { logits: true })).logits!.flatMap((r) => [...r])),
    );
    const max = Math.max(...a!.map(Math.abs));
    a!.forEach((x, i) =>
      assert.ok(Math.abs(x - b![i]!) <= 1e-5 * max, `${x} in the model's order, ${b![i]} permuted`),
    );
  }
  for (const [name, from, tensor] of [
    ["lora", `${fixtures}peft-odd`, "odd.lora_logits"],
    ["s2ft", `${fixtures}s2ft-odd`, "odd.s2ft_logits"],
    ["permuted", folder, "odd.s2ft_logits"],
    ...others.map((m) => [m, `${fixtures}${m}-odd`, `${m}.logits`] as const),
  ] as const) {
    await engine.adapters.load(name, from);
    await checkLogits(engine, tensor, 259, name);
    assert.is(
      engine.core.adapters.find(name).content.config.method,
      name === "permuted" ? "s2ft_permuted" : name,
    );
    // Trained by nothing, read back from the device: what is written is what was read.
    if (name === "lora" || name === "permuted") {
      const job = await engine.finetune({
        name: `${name}-back`,
        from: name,
        method: name === "lora" ? "lora" : "s2ft_permuted",
        data: batchOf(259),
        steps: 0,
      });
      await job.done;
      const [a, b] = [name, `${name}-back`].map(
        (x) => writeAdapter(engine.core.adapters.find(x).content, engine.manifest).weights,
      );
      assert.equal(b, a, name);
    }
  }
  engine.adapters.combine("half", { permuted: 0.5, "permuted-back": 0.5 });
  await checkLogits(engine, "odd.s2ft_logits", 259, "half");
  // Channels of another selection are refused; an indexed bundle reads the class permuted.
  await using plain = await engineOf(configs.odd, {
    targets: ["wasm"],
    train: ["s2ft"],
    methods: [],
    capacities,
  });
  await plain.adapters.load("permuted", folder);
  await checkLogits(plain, "odd.s2ft_logits", 259, "permuted");
  const chosen = {
    layers: selection.layers.map((x) => ({ ffn: x.ffn.map((c) => (c + 1) % 150), groups: x.groups })),
    selector: "random",
  };
  await using other = await engineOf(configs.odd, {
    targets: ["wasm"],
    train: ["s2ft_permuted"],
    methods: [],
    capacities,
    selection: chosen,
  });
  assert.is(
    await other.adapters.load("permuted", folder).then(String, (e: WeftError) => e.code),
    "WEFT_ADAPTER_MISMATCH",
  );
  assert.is(
    await compile(writeModel(configs.odd), { targets: ["wasm"], train: ["s2ft_permuted"] }).then(
      String,
      (e: WeftError) => e.where,
    ),
    "selection",
  );

  const headless = { layers: selection.layers.map((x) => ({ ...x, groups: [] })), selector: "random" };
  const refused = compile(writeModel(configs.odd), {
    targets: ["wasm"],
    train: ["s2ft_permuted"],
    capacities: { ...small, ...capacities },
    selection: headless,
  });
  assert.is(await refused.then(String, (e: WeftError) => `${e.code} ${e.where}`), "WEFT_OPTION selection");

  const before = new Map((await plain.core.baseTensors()).map((t) => [t.name, bits(t.data)]));
  for (const t of await engine.core.baseTensors()) assert.is(bits(t.data), before.get(t.name), t.name);
  assert.is(engine.manifest.base, plain.manifest.base, "one base, whatever the order it is kept in");
});
test("compile with data to calibrate on: an indexed job's channels, as a dense slice", async () => {
  const model = writeModel(configs.even);
  const out = `${scratch()}/bundle`;
  const capacities = { ...small, s2ft: { sites: ["down_proj", "up_proj"], parameters: 2 * 20 * 64 } };
  await compileBundle(model, out, {
    targets: ["wasm"],
    train: ["s2ft"],
    quick: true,
    capacities,
    calibrate: { data: short, selector: "activation-large" },
  });
  await using engine = await load(out, { device: "wasm" });
  await (await engine.finetune({ ...jobOf("s2ft"), name: "indexed", selector: "activation-large" })).done;
  await (await engine.finetune({ ...jobOf("s2ft_permuted"), name: "permuted" })).done;
  const ids = idsOf("both classes", 30, vocab);
  const [a, b] = await Promise.all(
    ["indexed", "permuted"].map(async (adapter) =>
      (await engine.score(ids, { adapter, logits: true })).logits!.flatMap((r) => [...r]),
    ),
  );
  const max = Math.max(...a!.map(Math.abs));
  a!.forEach((x, i) => assert.ok(Math.abs(x - b![i]!) <= 1e-4 * max, `${x} indexed, ${b![i]} permuted`));
});
test("the planner counts what the compiler builds: published shapes, a bundle's numbers", async () => {
  const of = (list: readonly MethodMemory[], method: string): MethodMemory =>
    list.find((m) => m.method === method)!;
  const seven = await planMemory("llama-2-7b", { tokens: 512, rank: 16 });
  const eight = await planMemory("llama-3-8b", { tokens: 512, rank: 16 });
  // Parameters of the published checkpoints.
  assert.is(of(seven, "full").trainable, 6_738_415_616);
  assert.is(of(eight, "full").trainable, 8_030_261_248);
  for (const [preset, parameters] of Object.entries({
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "gemma-3-1b": 999_885_952,
    "llama-3.2-1b": 1_235_814_400,
  })) {
    const [q4, f16] = [await planMemory(preset, { format: "q4" }), await planMemory(preset)];
    assert.is(of(q4, "full").trainable, parameters, preset);
    assert.is(of(q4, "full").weightBytes, 4 * parameters, "full training stores f32");
    // Five bits a weight, blocks of 32 with a scale and a minimum of 16 bits each; vectors are f32.
    assert.ok(Math.abs(of(q4, "lora").weightBytes / parameters - 5 / 8) < 0.01, preset);
    assert.ok(Math.abs(of(f16, "lora").weightBytes / parameters - 2) < 0.01, preset);
  }
  // LoRA r = 16: 16 · Σ (in + out) · layers.
  assert.is(of(seven, "lora").trainable, 16 * 32 * (4 * 8192 + 3 * (4096 + 11008)));
  // S2FT: as many parameters, to within a unit a site; o and down where heads are not shared, down alone
  // where they are (paper §5.4).
  for (const plan of [seven, eight])
    assert.ok(Math.abs(of(plan, "s2ft").trainable / of(plan, "lora").trainable - 1) < 0.1);
  for (const m of [...seven, ...eight]) {
    assert.ok(m.boundaryBytes < m.savedBytes && m.savedBytes < m.readBytes, m.method);
    assert.is(m.stateBytes, 12 * m.trainable);
  }
  // Against LoRA that keeps its inputs, S2FT keeps and moves at most 0.9 (in the paper 18 of 20 GB with
  // weights and all).
  for (const plan of [seven, eight])
    assert.ok(
      (of(plan, "s2ft").savedBytes + of(plan, "s2ft").stateBytes) /
        (of(plan, "lora").readBytes + of(plan, "lora").stateBytes) <
        0.9,
    );
  assert.is(await planMemory("llama-9").catch((e: WeftError) => e.code), "WEFT_OPTION");
  // What is kept of a token is every target's; WGSL is compiled by a device alone.
  const { manifest } = await compile(writeModel(configs.even), {
    targets: ["webgpu"],
    train: [...every],
    selection,
    quick: true,
    capacities: small,
  });
  const planned = await planMemory(configs.even, { tokens: 10, rank: small.rank! });
  for (const method of every) {
    assert.is(of(planned, method).savedBytes, 10 * 2 * manifest.saved[method]!.bytes.all, method);
    assert.is(of(planned, method).boundaryBytes, 10 * 2 * manifest.saved[method]!.bytes.boundary, method);
  }
});
test("ternary files: signs as asked, one magnitude, exact, small; refused when cut", async () => {
  await using engine = await engineOf(configs.even, all("wasm"));
  const prompt = idsOf("ternary", 30, vocab);
  const logits = async (adapter?: string): Promise<number[]> =>
    (await engine.score(prompt, { logits: true, ...(adapter && { adapter }) })).logits!.flatMap((r) => [
      ...r,
    ]);
  for (const method of ["lora", "s2ft"]) {
    await (await engine.finetune({ ...jobOf(method), steps: 4 })).done;
    const dir = scratch();
    const errors: number[] = [];
    for (const density of [0.05, 0.2, 1]) {
      const told = await engine.adapters.get(method).compress(`${dir}/${density}`, { density });
      errors.push(told.error);
      assert.is(statSync(`${dir}/${density}/adapter_model.ternary`).size, told.bytes);
      await engine.adapters.load(`t${density}`, `${dir}/${density}`);
      const of = (name: string) => engine.core.adapters.find(name).content;
      const dense = (name: string): number[] => {
        const { weights } = writeAdapter(of(name), engine.manifest);
        return parseHeader(weights, weights.length, "x").tensors.flatMap((t) =>
          t.dtype === "F32" ? [...decode(weights.subarray(t.start, t.end), "F32", t.name)] : [],
        );
      };
      const [was, is] = [dense(method), dense(`t${density}`)];
      const nonzero = is.filter((x) => x !== 0);
      assert.is(nonzero.length, Math.round(density * was.length), "numbers kept");
      assert.is(new Set(nonzero.map(Math.abs)).size, 1, "one magnitude");
      const least = Math.min(...was.filter((_, i) => is[i] !== 0).map(Math.abs));
      was.forEach((x, i) => {
        if (is[i] === 0) assert.ok(Math.abs(x) <= least, "the largest are kept");
        else if (x !== 0) assert.is(Math.sign(x), Math.sign(is[i]!), "signs are kept");
      });
      const difference = Math.sqrt(
        was.reduce((n, x, i) => n + (x - is[i]!) ** 2, 0) / was.reduce((n, x) => n + x * x, 0),
      );
      assert.ok(Math.abs(difference - told.error) < 1e-5, `told ${told.error}, is ${difference}`);
      if (density === 0.05) assert.ok(told.ratio > 8, `ratio ${told.ratio}`);
      // Once more changes nothing.
      await engine.adapters.get(`t${density}`).compress(`${dir}/again`, { density });
      assert.equal(
        readFileSync(`${dir}/again/adapter_model.ternary`),
        readFileSync(`${dir}/${density}/adapter_model.ternary`),
      );
      engine.adapters.remove(`t${density}`);
    }
    assert.ok(errors[1]! < errors[0]!, "more numbers, less error");
    const path = `${dir}/0.2/adapter_model.ternary`;
    writeFileSync(path, readFileSync(path).subarray(0, -20));
    const base = await logits();
    assert.is(
      await engine.adapters.load("cut", `${dir}/0.2`).catch((e: WeftError) => e.code),
      "WEFT_ADAPTER",
    );
    assert.is(
      await engine.adapters
        .get(method)
        .compress(dir, { density: 0 })
        .catch((e: WeftError) => e.code),
      "WEFT_OPTION",
    );
    assert.equal(await logits(), base);
  }
});
test.run();
