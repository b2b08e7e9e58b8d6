/** Adapters of every method: in one batch, in files, and what they keep. */
import { readFileSync, statSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import { adapterMethods } from "../compiler/adapters/index.ts";
import { compile } from "../compiler/compile.ts";
import { decode, parseHeader } from "../runtime/bundle.ts";
import { type MethodMemory, planMemory, type WeftError } from "../sdk/index.ts";
import { writeAdapter } from "../sdk/peft/write.ts";
import { bits, collect, configs, engineOf, idsOf, small } from "./support/engines.ts";
import { all, checkMixed, every, jobOf, selection, vocab } from "./support/methods.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("adapters");

/** Tested in vera.test.ts. */
const apart = ["vera"];
test("no method is left out of what is asked here of every one", () => {
  const known: readonly string[] = [...every, ...apart];
  const left = Object.keys(adapterMethods).filter((m) => !known.includes(m));
  assert.equal(left, [], "a line in `every` of support/methods.ts, and a formula of what it trains below");
});

for (const target of long ? (["wasm", "webgpu"] as const) : (["wasm"] as const))
  test(`law 5 on ${target}: methods in a batch, jobs of several, are as alone; fresh = base`, async () => {
    await using engine = await engineOf(configs.even, all(target));
    await checkMixed(engine, every);
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
  // A mixture has all of its experts.
  const mixture = await planMemory("qwen3-30b-a3b");
  assert.ok(Math.abs(of(mixture, "lora").weightBytes / 2 / 30_532_122_624 - 1) < 1e-4);
  assert.is(of(mixture, "full").trainable, 30_532_122_624);
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
