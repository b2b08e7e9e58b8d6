/** Bundles and jobs of every adapter method. */
import * as assert from "uvu/assert";
import type { Engine, FinetuneOptions } from "../../sdk/index.ts";
import { batchOf, collect, contentBits, idsOf } from "./engines.ts";
import { generator } from "./random.ts";

export const every = [
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
export const vocab = 128;
/** A selection of 16 feed-forward channels and one of the two key heads of each layer. */
export const selection = {
  layers: [3, 5].map((step, l) => ({
    ffn: Array.from({ length: 16 }, (_, i) => (7 + i * step) % 128),
    groups: [1 - l],
  })),
  selector: "random",
};
/** A bundle that serves and trains every method, on a permuted base; S2FT on all its sites. */
export const all = (target: "wasm" | "webgpu") => ({
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
export const short = rows.filter((r) => r.input_ids.length < 40);
export const jobOf = (method: string): FinetuneOptions => ({
  name: method,
  method,
  data: short,
  steps: 2,
  batchSize: 3,
  learningRate: 0.02,
  seed: 4,
  ...(method === "lora" && { dropout: 0.1 }),
});

/**
 * Law 5: fresh adapters are the base; requests of all methods in one batch, and two jobs at once beside
 * requests of a third method, are what they are alone.
 */
export async function checkMixed(engine: Engine, methods: readonly string[]): Promise<void> {
  const o = { prompt: idsOf("mixed methods", 17, vocab), maxTokens: 5 };
  const base = await collect(engine, o);
  const single = new Map<string, unknown>([["base", base]]);
  const losses = new Map<string, readonly number[]>();
  const content = new Map<string, string>();
  for (const method of methods) {
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
  const order = ["base", ...methods, "base"]
    .map((name) => ({ name, at: next() }))
    .sort((a, b) => a.at - b.at)
    .map(({ name }) => name);
  const mixed = await Promise.all(
    order.map((name) => collect(engine, { ...o, ...(name !== "base" && { adapter: name }) })),
  );
  order.forEach((name, i) => assert.equal(mixed[i], single.get(name), name));
  const three = [
    ["lora", "s2ft", "ia3"],
    ["series", "ia3", "parallel"],
    ["prompt", "sparse", "prefix"],
    ["s2ft_permuted", "s2ft", "lora_bias"],
  ] as const;
  for (const [a, b, other] of three.filter((names) => names.every((m) => methods.includes(m)))) {
    const jobs = await Promise.all([a, b].map((m) => engine.finetune({ ...jobOf(m), name: `${m}-again` })));
    const said = collect(engine, { ...o, adapter: other });
    const results = await Promise.all(jobs.map((j) => j.done));
    assert.equal(await said, single.get(other));
    [a, b].forEach((m, i) => {
      assert.equal(results[i]!.losses, losses.get(m), `${m} beside another job`);
      assert.is(contentBits(engine, `${m}-again`), content.get(m), `${m} beside another job`);
    });
  }
}
