/**
 * Layers of several kinds: dense ones among mixtures. Each kind is what a model of it alone is, and what is
 * of one kind is nowhere else: in plans, weights, adapters. torch's numbers are in families.test.ts.
 */
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { emitTarget } from "../compiler/emit/target.ts";
import { formatsOf } from "../compiler/formats.ts";
import { launchesOf } from "../compiler/fuse.ts";
import { layoutOf } from "../compiler/layout.ts";
import { models } from "../compiler/models/index.ts";
import type { Model } from "../compiler/models/model.ts";
import { planMemory } from "../compiler/planner.ts";
import { buildPrograms } from "../compiler/programs/index.ts";
import type { WeightSource } from "../compiler/source.ts";
import { defaultCapacities, targets } from "../compiler/target.ts";
import { print } from "../ops/index.ts";
import { isIn, type Manifest } from "../runtime/bundle.ts";
import { trainableCount } from "../runtime/content.ts";
import { asManifest } from "../runtime/load.ts";
import { compile, load } from "../sdk/index.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import { code } from "./support/code.ts";
import { batchOf, bits, configs, contentBits, engineOf, idsOf, small } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { type Config, scratch, tensorsOf, writeModel } from "./support/tiny.ts";

const test = suite("kinds");
const mixed: Config = configs.qwen3_moe_mixed;
const vocab = mixed.vocab_size;
const read = (c: Config): Model => models[String(c.model_type)]!.read(c);
const programs = (model: Model, train: readonly string[] = [], experts = 0) =>
  buildPrograms(
    model,
    { ...defaultCapacities(model.context), experts },
    {
      ...{ format: () => "f32", kv: "f32", train },
      methods: train.flatMap((name) => adapterMethods[name] ?? []),
    },
  );
/** All linear layers that are not of experts. */
const linear = ".*(self_attn\\..*_proj|mlp\\.\\w+)";

test("which layers are dense is what transformers says; a kind's graph is that of a model of it alone", () => {
  const model = read(mixed);
  assert.equal(model.perLayer.kind, [0, 1, 0, 0]);
  const first = { ...mixed, decoder_sparse_step: 1, mlp_only_layers: [1, 2] };
  assert.equal(read(first).perLayer.kind, [0, 1, 1, 0]);
  const sparse = { ...mixed, decoder_sparse_step: 1, mlp_only_layers: [] };
  const dense = { ...mixed, mlp_only_layers: [0, 1, 2, 3] };
  for (const c of [sparse, dense]) assert.equal(read(c).perLayer, {});
  const graph = (c: Config, kind?: number): string => {
    const of = programs(read(c)).graphs.find((g) => g.name === "forward" && g.kinds?.[0] === kind)!;
    return print(of.roots);
  };
  assert.is(graph(mixed, 0), graph(dense));
  assert.is(graph(mixed, 1), graph(sparse));
  const { decoder_sparse_step: _, mlp_only_layers: __, ...others } = mixed;
  const qwen3 = { ...others, model_type: "qwen3", moe_intermediate_size: null, num_experts: null };
  assert.is(graph(dense), graph({ ...qwen3, num_experts_per_tok: null, norm_topk_prob: null }));
  for (const wrong of [[4], ["1"], 1])
    assert.throws(() => read({ ...mixed, mlp_only_layers: wrong }), /WEFT_CONFIG|mlp_only_layers/);
  assert.throws(() => read({ ...mixed, decoder_sparse_step: 0 }), /decoder_sparse_step/);
});

test("kernels are as many, and their text as long, however many experts there are", () => {
  const train = ["lora", "s2ft", "full"];
  const emitted = (target: "wasm" | "webgpu", count: number) => {
    const model = read({ ...mixed, num_experts: count });
    const capacities = defaultCapacities(model.context);
    const how = { cache: true, quick: false };
    const settings = { capacities, kv: "f32", train, products: "f32", how } as const;
    const made = programs(model, train, 4);
    const launches = launchesOf(model, made, { fuse: true, products: "f32" });
    const layout = layoutOf(model, made, settings, targets[target]);
    const { kernels, sources } = emitTarget(targets[target], model, settings, made, launches, layout);
    const text = sources.map((s) => s.text).join("\n");
    return { kernels: kernels.length, lines: text.split("\n").length, bytes: text.length };
  };
  for (const target of ["wasm", "webgpu"] as const) {
    const [few, many] = [emitted(target, 8), emitted(target, 128)];
    assert.is(many.kernels, few.kernels, target);
    // Numbers have more digits; and which launches share a module depends on how many numbers they bring.
    for (const size of ["lines", "bytes"] as const)
      assert.ok(many[size] < 1.02 * few[size], `${target}: ${many[size]} ${size}, of 8 ${few[size]}`);
  }
});

test("a chamber is that of the largest kind's layer; a format is that of the layers which have the tensor", async () => {
  const wordsOf = (c: Config, train: readonly string[] = []) => {
    const model = read(c);
    const capacities = defaultCapacities(model.context);
    const { room, records } = layoutOf(
      model,
      programs(model, train),
      { capacities, kv: "f32", train },
      targets.wasm,
    );
    return { weights: room.weights.layer, kept: records.lora?.kept };
  };
  const kinds = [
    { ...mixed, decoder_sparse_step: 1, mlp_only_layers: [] },
    { ...mixed, mlp_only_layers: [0, 1, 2, 3] },
  ].map((c) => wordsOf(c, ["lora"]));
  const all = wordsOf(mixed, ["lora"]);
  assert.is(all.weights, Math.max(...kinds.map((k) => k.weights)));
  assert.is(all.kept, Math.max(...kinds.map((k) => k.kept!)));
  const names = new Set(tensorsOf(mixed).map((t) => t.name));
  const weights = {
    has: (name: string) => names.has(name),
    nearest: (name: string) => (names.has(name) ? "bf16" : "f32"),
  } as unknown as WeightSource;
  const format = formatsOf(read(mixed), weights, "keep");
  for (const name of ["self_attn.q_proj", "mlp.up_proj", "mlp.experts.3.up_proj"])
    assert.is(format("layer", `${name}.weight`), "bf16", name);
});

test("tensors, adapters and what is planned of them are of the layers that have them", async () => {
  await using engine = await engineOf(mixed);
  const { manifest } = engine;
  const { wasm: plan } = manifest.targets;
  for (const p of plan!.layerParams)
    for (let l = 0; l < manifest.model.layers; l++) {
      const name = manifest.checkpoint.layer[p.name]!.replace("{l}", String(l));
      const there = manifest.tensors.some((t) => t.name === name);
      assert.is(there, isIn(manifest.model, l, p), name);
    }
  assert.is(
    manifest.model.parameters,
    tensorsOf(mixed).reduce((n, t) => n + t.data.length, 0),
  );
  const other = (change: (m: Manifest) => void): Manifest => {
    const m = JSON.parse(JSON.stringify(manifest)) as Manifest;
    change(m);
    return m;
  };
  const param = (m: Manifest, name: string): object =>
    m.targets.wasm!.layerParams.find((p) => p.name === name)!;
  for (const [says, change] of [
    ["tensors", (m) => Object.assign(m.model.perLayer, { kind: [0, 1, 1, 0] })],
    ["perLayer.kind", (m) => Object.assign(m.model.perLayer, { kind: [1, 1, 1, 1] })],
    ["its site's", (m) => Object.assign(param(m, "mlp.up_proj.weight"), { kinds: [1] })],
    ["tensors", (m) => Object.assign(param(m, "input_layernorm.weight"), { kinds: [0] })],
  ] as readonly [string, (m: Manifest) => void][])
    assert.throws(
      () => asManifest(other(change), "m"),
      (e: Error) => e.message.includes(says) || assert.unreachable(`${says}: ${e.message}`),
    );
  // A name that dense layers and experts have; those of dense layers alone; experts alone.
  const data = batchOf(vocab).slice(0, 1);
  for (const [name, targetModules, layers] of [
    ["both", ["up_proj"], [0, 1, 2, 3]],
    ["dense", ["mlp.up_proj"], [0, 2, 3]],
    ["experts", ".*experts.*up_proj", [1]],
  ] as const) {
    await (await engine.finetune({ name, data, steps: 1, rank: 4, targetModules })).done;
    const { branches } = engine.core.adapters.find(name).content;
    const found = branches.flatMap((layer, l) => (layer.some((s) => s.rank) ? [l] : []));
    assert.equal(found, layers, name);
  }
  await code(
    "WEFT_ADAPTER_MISMATCH",
    async () => (await engine.finetune({ name: "none", data, targetModules: ["layers.1.mlp.up_proj"] })).done,
    /target_modules.*layers\.1/s,
  );
  const plans = planMemory(mixed, 100, 4, "f32");
  const [said, full] = ["lora", "full"].map((name) => plans.find((m) => m.method === name)!);
  assert.is(full!.trainable, manifest.model.parameters);
  const job = await engine.finetune({ name: "all", data, rank: 4, steps: 1, targetModules: linear });
  await job.done;
  assert.is(said!.trainable, trainableCount(manifest, engine.core.adapters.find("all").content.branches));
});

test("every method, where both kinds have sites: recomputed, saved, merged it is the same", async () => {
  const methods = Object.keys(adapterMethods).filter((m) => m !== "s2ft_permuted");
  await using engine = await engineOf(mixed, {
    train: methods,
    methods: [],
    capacities: { slots: 3, experts: 8 },
  });
  assert.is(engine.core.invariance, "verified");
  const data = batchOf(vocab).filter((r) => r.input_ids.length < 40);
  const ids = idsOf("merged", 20, vocab);
  const file = (name: string): string => {
    const { weights } = writeAdapter(engine.core.adapters.find(name).content, engine.manifest);
    return Buffer.from(weights).toString("base64");
  };
  for (const method of methods) {
    const job = {
      method,
      data,
      steps: 2,
      batchSize: 3,
      learningRate: 0.02,
      ...(method === "lora" && { rank: 4 }),
    } as const;
    const losses = await Promise.all(
      (["all", "boundary"] as const).map(
        async (keep) =>
          (await (await engine.finetune({ ...job, name: `${method}-${keep}`, keep })).done).losses,
      ),
    );
    assert.equal(losses[0], losses[1], method);
    assert.ok(file(`${method}-all`) === file(`${method}-boundary`), method);
    const folder = `${scratch()}/adapter`;
    await engine.adapters.get(`${method}-all`).save(folder);
    await engine.adapters.load("again", folder);
    assert.ok(file("again") === file(`${method}-all`), method);
    const { content } = engine.core.adapters.find("again");
    content.branches.forEach((layer, l) => {
      layer.forEach(({ rank }, i) => {
        const { site } = engine.manifest.branches[i]!;
        if (rank) assert.ok(isIn(engine.manifest.model, l, engine.manifest.sites[site]!), method);
      });
    });
    if (!engine.manifest.methods[method]!.change) continue;
    const served = await engine.score(ids, { adapter: "again", logits: true });
    await engine.merge("again");
    const merged = await engine.score(ids, { logits: true });
    await engine.merge(null);
    merged.logits!.forEach((row, t) => {
      row.forEach((x, i) => {
        const want = served.logits![t]![i]!;
        assert.ok(Math.abs(x - want) < 5e-5 * (1 + Math.abs(x)), `${method}: ${x}, ${want}`);
      });
    });
  }
});

test("channels chosen before, of dense layers and experts, are as if a job had chosen them", async () => {
  const folder = writeModel(mixed);
  const data = batchOf(vocab).filter((r) => r.input_ids.length < 40);
  const out = `${scratch()}/permuted.weft`;
  const capacities = { ...small, s2ft: { sites: ["up_proj", "down_proj"], parameters: 2 * 8 * 40 } };
  const common = { targets: ["wasm"], quick: true, capacities } as const;
  await compile(folder, out, {
    ...{ ...common, train: ["s2ft_permuted"], methods: [] },
    calibrate: { data, selector: "activation-large" },
  });
  await using permuted = await load(out, { device: "wasm" });
  const chosen = permuted.manifest.selection!.layers.map((l) => l.ffn.length > 0);
  assert.equal(chosen, [true, false, true, true]);
  const { layers, selector } = permuted.manifest.selection!;
  assert.is(new Set(layers[1]!.experts!.map(String)).size > 1, true, "each expert's own");
  for (const experts of [undefined, layers[1]!.experts!.slice(1), layers[1]!.experts!.map(() => [22])]) {
    const others = layers.map(({ ffn, groups }, l) => ({
      ffn,
      groups,
      ...(l === 1 && experts && { experts }),
    }));
    const o = { ...common, train: ["s2ft_permuted"], methods: [], selection: { layers: others, selector } };
    await code("WEFT_OPTION", () => compile(folder, `${scratch()}/no.weft`, o), /below 22, for each of 7/);
  }
  await using indexed = await engineOf(mixed, { train: ["s2ft"], methods: [], capacities });
  const ids = idsOf("prompt", 30, vocab);
  const plain = await indexed.score(ids, { logits: true });
  const same = await permuted.score(ids, { logits: true });
  same.logits!.forEach((row, t) => {
    row.forEach((x, i) => assert.ok(Math.abs(x - plain.logits![t]![i]!) < 1e-4, `${t} ${i}`));
  });
  const job = { name: "s", data, steps: 3, batchSize: 3, learningRate: 0.01 } as const;
  const losses = [
    (await (await permuted.finetune({ ...job, method: "s2ft_permuted" })).done).losses,
    (await (await indexed.finetune({ ...job, method: "s2ft", selector: "activation-large" })).done).losses,
  ];
  losses[0]!.forEach((x, i) => assert.ok(Math.abs(x - losses[1]![i]!) < 1e-5, losses.join(" and ")));
  // One file, as a request of either has it, and merged.
  const dir = `${scratch()}/s`;
  await permuted.adapters.get("s").save(dir);
  await permuted.adapters.load("again", dir);
  assert.ok(contentBits(permuted, "again") === contentBits(permuted, "s"));
  const said = [
    await permuted.score(ids, { adapter: "s", logits: true }),
    await indexed.score(ids, { adapter: "s", logits: true }),
  ];
  await permuted.merge("s");
  said.push(await permuted.score(ids, { logits: true }));
  for (const other of said.slice(1))
    other.logits!.forEach((row, t) => {
      row.forEach((x, i) => assert.ok(Math.abs(x - said[0]!.logits![t]![i]!) < 1e-4, `${t} ${i}`));
    });
});

test("a folder of the base is the base again, also after it was merged and given back", async () => {
  await using engine = await engineOf(mixed);
  const [out, again] = [`${scratch()}/model`, `${scratch()}/again.weft`];
  await engine.saveModel(out);
  const options = { targets: ["wasm"], train: [], methods: [], quick: true, capacities: small } as const;
  const { base } = await compile(out, again, options);
  assert.is(base, engine.manifest.base);
  const before = await engine.core.baseTensors();
  const data = batchOf(vocab).slice(0, 1);
  await (await engine.finetune({ name: "a", data, steps: 1, rank: 4 })).done;
  await engine.merge("a");
  await engine.merge(null);
  (await engine.core.baseTensors()).forEach((t, i) => assert.is(bits(t.data), bits(before[i]!.data), t.name));
});
test.run();
