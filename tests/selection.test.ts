/** What S2FT and sparse adapters choose of the base, at run time and when it is compiled. */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { decode, parseHeader } from "../runtime/bundle.ts";
import { chosenIn } from "../runtime/content.ts";
import { compile as compileBundle, type FinetuneOptions, load, type WeftError } from "../sdk/index.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import {
  batchOf,
  bits,
  checkLogits,
  configs,
  engineOf,
  fixtures,
  idsOf,
  reference,
  s2ftOdd,
  small,
} from "./support/engines.ts";
import { all, jobOf, short, vocab } from "./support/methods.ts";
import { permuted } from "./support/permuted.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("selection");

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
  await engine.adapters.combine("half", { permuted: 0.5, "permuted-back": 0.5 });
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
  assert.is(
    await refused.then(String, (e: WeftError) => `${e.code} ${e.where}`),
    "WEFT_OPTION selection, layer 0",
  );

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
test.run();
