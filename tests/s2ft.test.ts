/**
 * S2FT equals a masked full fine-tuning of real torch, chosen at run time and when the base is compiled; and
 * as a LoRA what peft computes.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { decode, parseHeader } from "../runtime/bundle.ts";
import { chosenIn } from "../runtime/content.ts";
import { singleSites } from "../runtime/experts.ts";
import { writeAdapter, writeAsLora } from "../sdk/peft/write.ts";
import {
  batchOf,
  checkGradient,
  checkLogits,
  collect,
  configs,
  contentBits,
  engineOf,
  fixtures,
  idsOf,
  reference,
  s2ftAll,
  s2ftFamilies,
  s2ftOdd,
} from "./support/engines.ts";
import { permuted } from "./support/permuted.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("s2ft");

// A software adapter takes seconds to load: in the short form one model on it is of odd sizes, with three
// query heads a key head, and one is permuted, with slices of projections that are several.
const both = ["wasm", "webgpu"] as const;
const onCpu = ["wasm"] as const;
const inLong = long ? both : onCpu;
for (const [name, space, targets] of [
  ["odd", "indexed", both],
  ["even", "indexed", onCpu],
  ["mha", "indexed", onCpu],
  ["mqa", "indexed", inLong],
  ["odd", "permuted", inLong],
  ["even", "permuted", onCpu],
  ["mha", "permuted", inLong],
  // Slices of projections that are several.
  ["phi3", "indexed", inLong],
  ["phi3", "permuted", onCpu],
  ["gpt2", "indexed", onCpu],
  ["gpt2", "permuted", both],
  // Channels of experts.
  ["mixtral", "indexed", inLong],
  ["mixtral", "permuted", inLong],
  ["qwen3_moe", "indexed", onCpu],
  ["qwen3_moe", "permuted", onCpu],
  ["qwen3_moe_mixed", "indexed", onCpu],
] as const)
  for (const target of targets)
    test(`S2FT, ${space}, on ${name}, ${target}: as torch's masked full fine-tuning`, async () => {
      const steps = target === "wasm" ? 20 : 4;
      const vocab = configs[name].vocab_size;
      const ref = reference[name];
      // The pool of saved rows is small here, so that everything fits 1 MiB: micro-batches never change a
      // result.
      const capacities = {
        savedRows: 160,
        keptRows: 96,
        ...(name === "odd" && { s2ft: s2ftOdd }),
        ...((name === "mha" || name === "mqa") && { s2ft: s2ftAll }),
        ...(Object.hasOwn(s2ftFamilies, name) && { s2ft: s2ftFamilies[name as "phi3"] }),
      };
      const given = space === "permuted" ? permuted(name) : null;
      const method = given ? "s2ft_permuted" : "s2ft";
      await using engine = await engineOf(configs[name], {
        targets: [target],
        train: [method],
        methods: [],
        capacities,
        ...(given && { selection: given.selection }),
      });
      await engine.adapters.load("s2ft", given?.folder ?? `${fixtures}s2ft-${name}`);
      await checkLogits(engine, `${name}.s2ft_logits`, vocab, "s2ft");
      const common = { data: batchOf(vocab), batchSize: 5, shuffle: false, from: "s2ft", method } as const;
      const lr = 16;
      const one = await engine.finetune({
        ...common,
        name: "grad",
        steps: 1,
        optimizer: "sgd",
        momentum: 0,
        learningRate: lr,
        maxGradNorm: 0,
      });
      const { losses } = await one.done;
      assert.ok(
        Math.abs(losses[0]! - ref.s2ft_loss!) <= 1e-5,
        `loss ${losses[0]}, torch says ${ref.s2ft_loss}`,
      );
      const files = ["s2ft", "grad"].map(
        (a) => writeAdapter(engine.core.adapters.find(a).content, engine.manifest).weights,
      );
      const [h0, h1] = files.map((f) => parseHeader(f, f.length, "adapter").tensors) as [
        ReturnType<typeof parseHeader>["tensors"],
        ReturnType<typeof parseHeader>["tensors"],
      ];
      let seen = 0;
      h0.forEach((t, i) => {
        const bytes = (k: 0 | 1): Uint8Array =>
          files[k]!.subarray([h0, h1][k]![i]!.start, [h0, h1][k]![i]!.end);
        if (t.dtype === "I32") return assert.equal([...bytes(0)], [...bytes(1)], "a selection stays");
        const path = t.name.replace("base_model.model.", "").replace(".s2ft_delta", "");
        checkGradient(
          t.name,
          decode(bytes(0), "F32", t.name),
          decode(bytes(1), "F32", t.name),
          lr,
          ref.s2ft_grads![path]!,
        );
        seen++;
      });
      assert.is(seen, Object.keys(ref.s2ft_grads!).length);
      const job = await engine.finetune({ ...common, name: "adamw", steps, learningRate: 1e-3 });
      (await job.done).losses.forEach((x, i) =>
        assert.ok(
          Math.abs(x - ref.s2ft![i]!) <= 1e-4,
          `step ${i + 1}: loss ${x}, torch says ${ref.s2ft![i]}`,
        ),
      );
    });

for (const [name, rank] of [
  ["phi3", 16],
  ["gpt2", 20],
  ["mixtral", 12],
] as const)
  test(`S2FT on ${name}: one ranking a group; beside others, saved, merged and as a LoRA the same`, async () => {
    const { vocab_size: vocab } = configs[name];
    // Room for a sum.
    const s2ft = { ...s2ftFamilies[name], parameters: 3 * s2ftFamilies[name].parameters };
    const capacities = { rank: 64, experts: 20, s2ft, savedRows: 160, keptRows: 96 };
    await using engine = await engineOf(configs[name], { train: ["s2ft"], methods: ["lora"], capacities });
    const { manifest } = engine;
    const data = batchOf(vocab).slice(0, 2);
    const job = { method: "s2ft", rank, data, steps: 2, learningRate: 0.02 } as const;
    await (await engine.finetune({ ...job, name: "alone", selector: "weight-large" })).done;
    await engine.adapters.load("other", `${fixtures}s2ft-${name}`);
    const ids = idsOf("served", 30, vocab);
    const [beside] = await Promise.all([
      engine.finetune({ ...job, name: "beside", selector: "weight-large" }),
      ...["other", undefined].map((adapter) =>
        collect(engine, { prompt: ids.slice(0, 9), maxTokens: 12, ...(adapter && { adapter }) }),
      ),
    ]);
    await beside.done;
    assert.is(contentBits(engine, "beside"), contentBits(engine, "alone"));

    // Σ w² of each channel over the matrices that share it: of experts over each one's own.
    const weights = new Map((await engine.core.baseTensors()).map((t) => [t.name, t]));
    const { content } = engine.core.adapters.find("alone");
    const groups = new Map<string, { squares: number[]; chosen: number[][] }>();
    for (const b of manifest.branches.filter(({ method }) => method === "s2ft"))
      singleSites(manifest.sites[b.site]!).forEach(({ module, inFeatures, outFeatures, coupling }, one) => {
        const { group, channels, at, axis, unit } = coupling!;
        const key = [group, channels, one].join();
        const of = groups.get(key) ?? { squares: Array<number>(channels / unit).fill(0), chosen: [] };
        groups.set(key, of);
        const path = `${manifest.checkpoint.modules.replace("{l}", "0")}${module}.weight`;
        const turned = manifest.checkpoint.transposed.some((end) => path.endsWith(`.${end}`));
        const { data } = weights.get(path)!;
        const unitOf = (place: number): number | null => {
          const from = at.find((x) => place >= x && place < x + channels);
          return from === undefined ? null : Math.floor((place - from) / unit);
        };
        for (let o = 0; o < outFeatures; o++)
          for (let i = 0; i < inFeatures; i++) {
            const u = unitOf(axis === "in" ? i : o);
            const w = data[turned ? i * outFeatures + o : o * inFeatures + i]!;
            if (u !== null) of.squares[u] = of.squares[u]! + w * w;
          }
        const places = chosenIn(manifest, content, 0, b.index, one);
        for (const from of at) {
          const slice = places.filter((p) => p >= from && p < from + channels);
          assert.is(slice.length, places.length / at.length, "each slice as many");
          of.chosen.push([...new Set(slice.map((p) => unitOf(p)!))]);
        }
      });
    for (const { squares, chosen } of groups.values())
      for (const units of chosen) {
        const ranked = [...squares.keys()].sort((x, y) => squares[y]! - squares[x]!);
        assert.equal(
          units,
          ranked.slice(0, units.length).sort((x, y) => x - y),
        );
      }

    const folder = `${scratch()}/adapter`;
    await engine.adapters.get("alone").save(folder);
    await engine.adapters.load("again", folder);
    assert.is(contentBits(engine, "again"), contentBits(engine, "alone"));
    const played = await engine.score(ids, { adapter: "alone", logits: true });
    await engine.adapters.get("alone").save(`${folder}-lora`, { as: "lora" });
    await engine.adapters.load("lora", `${folder}-lora`);
    const asLora = await engine.score(ids, { adapter: "lora", logits: true });
    await engine.merge("alone");
    const merged = await engine.score(ids, { logits: true });
    await engine.merge(null);
    const base = await engine.score(ids, { logits: true });
    const apart = (a: typeof base, b: typeof base): number =>
      Math.max(...a.logits!.flatMap((row, t) => [...row].map((x, i) => Math.abs(x - b.logits![t]![i]!))));
    for (const other of [asLora, merged]) assert.ok(apart(other, played) < 5e-5);
    assert.ok(apart(base, played) > 1e-3);
    // A sum, as one adapter of all channels that the two have, and as one LoRA.
    const sum = { alone: 0.5, other: 0.75 };
    const united = await engine.score(ids, { adapter: sum, logits: true });
    const joined = await engine.score(ids, { adapter: { lora: 0.5, other: 0.75 }, logits: true });
    assert.ok(apart(united, joined) < 5e-5);
    assert.ok(apart(united, played) > 1e-3);
  });

test("S2FT on mixtral: what an expert's channels carry, and what moves the loss, as torch sums it", async () => {
  const { vocab_size: vocab } = configs.mixtral;
  const capacities = { rank: 40, experts: 16, s2ft: s2ftFamilies.mixtral, savedRows: 160, keptRows: 96 };
  await using engine = await engineOf(configs.mixtral, { train: ["s2ft"], methods: ["lora"], capacities });
  const { manifest } = engine;
  const data = batchOf(vocab).filter((r) => r.input_ids.length < 40);
  for (const what of ["activation", "gradient"] as const)
    for (const end of ["large", "small"] as const) {
      const name = `${what}-${end}` as const;
      const job = { name, method: "s2ft", data, batchSize: data.length, selector: name, steps: 0 };
      await (await engine.finetune(job)).done;
      const { content } = engine.core.adapters.find(name);
      for (const b of manifest.branches.filter(({ method }) => method === "s2ft")) {
        const { experts = 0 } = manifest.sites[b.site]!;
        for (let l = 0; l < 2; l++)
          for (let e = 0; e < experts; e++) {
            const squares = reference.mixtral.expert_squares![l]![what][e]!;
            const chosen = chosenIn(manifest, content, l, b.index, e);
            const ranked = [...squares.keys()].sort(
              (x, y) => (end === "large" ? -1 : 1) * (squares[x]! - squares[y]!) || x - y,
            );
            const want = ranked.slice(0, chosen.length).sort((x, y) => x - y);
            assert.equal(chosen, want, `${name}, layer ${l}, expert ${e}`);
          }
      }
    }
});

test("S2FT as a LoRA: the file that peft read, its logits, as S2FT and as LoRA", async () => {
  const folder = `${fixtures}weft-s2ft-as-lora`;
  const file = readFileSync(`${folder}/adapter_model.safetensors`);
  assert.is(
    createHash("sha256").update(file).digest("hex"),
    reference.weft_s2ft_as_lora_sha256,
    "run tests/fixtures/save_adapter.ts, then make.py",
  );
  await using engine = await engineOf(configs.odd, {
    methods: ["lora", "s2ft"],
    capacities: { rank: 60, s2ft: s2ftOdd },
  });
  await engine.adapters.load("s2ft", `${fixtures}s2ft-odd`);
  const { weights } = writeAsLora(engine.core.adapters.find("s2ft").content, engine.manifest);
  assert.is(createHash("sha256").update(weights).digest("hex"), reference.weft_s2ft_as_lora_sha256);
  await engine.adapters.load("lora", folder);
  await checkLogits(engine, "s2ft_as_lora.logits", 259, "s2ft");
  await checkLogits(engine, "s2ft_as_lora.logits", 259, "lora");
});

test.run();
