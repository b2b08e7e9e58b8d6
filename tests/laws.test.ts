/**
 * Laws 3 to 8: windows, batch invariance, adapters, pruning, saving, the pool. Bits, not tolerances, wherever
 * the law says bits. One file, since they share an engine a target: on a software adapter each takes seconds.
 */
import { createHash } from "node:crypto";
import * as assert from "uvu/assert";
import { compile } from "../compiler/compile.ts";
import { placedBy, placedIn } from "../runtime/content.ts";
import type { StepTrace } from "../runtime/engine.ts";
import type { Placed } from "../runtime/tensors/tensor.ts";
import type { Engine, FinetuneOptions, WeftError } from "../sdk/index.ts";
import {
  atRest,
  batchOf,
  bits,
  collect,
  configs,
  contentBits,
  engineOf,
  fixtures,
  idsOf,
  inUse,
  small,
} from "./support/engines.ts";
import { poison } from "./support/poison.ts";
import { generator } from "./support/random.ts";
import { long } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch, writeModel } from "./support/tiny.ts";

const test = suite("laws");
const targets = ["wasm", "webgpu"] as const;
type Target = (typeof targets)[number];
const vocab = 128;
const rows = batchOf(vocab);
const job: FinetuneOptions = {
  name: "job",
  data: rows,
  steps: 3,
  batchSize: 5,
  learningRate: 5e-3,
  dropout: 0.1,
  seed: 5,
  rank: 4,
};
const train = async (
  engine: Engine,
  o: Partial<FinetuneOptions> = {},
): Promise<{ losses: readonly number[]; content: string }> => {
  const j = await engine.finetune({ ...job, ...o });
  const { losses } = await j.done;
  return { losses, content: contentBits(engine, o.name ?? job.name) };
};
/**
 * One engine a target for the laws that need none of their own: a software adapter takes seconds to load. Of
 * so few slots that adapters wait for one.
 */
const shared = new Map<Target, Promise<Engine>>();
const slots = 3;
function engineOn(target: Target): Promise<Engine> {
  const engine = shared.get(target) ?? engineOf(configs.even, { targets: [target], capacities: { slots } });
  shared.set(target, engine);
  return engine;
}
test.after(async () => {
  for (const engine of shared.values()) await (await engine).dispose();
});
/** Rows a step, busy or idle, until the function that comes back is called: what `load` takes as budgets. */
function budgetOf(engine: Engine, rows: number): () => void {
  const { loops } = engine.core as unknown as { loops: { o: { budget: number; idle: number } } };
  const { budget, idle } = loops.o;
  Object.assign(loops.o, { budget: rows, idle: rows });
  return () => void Object.assign(loops.o, { budget, idle });
}
const requests = (i: number) => ({
  prompt: idsOf(`request${i}`, 3 + ((i * 13) % 60), vocab),
  maxTokens: 8 + (i % 5),
  temperature: i % 2 ? 0.9 : 0,
  seed: i,
});

for (const target of targets)
  test(`law 3 on ${target}: forward windows, kept sets and units change no bit of training`, async () => {
    const steps = target === "wasm" ? 3 : 1;
    const runs: { losses: readonly number[]; content: string }[] = [];
    const engine = await engineOn(target);
    for (const [budget, keep] of [
      [48, "auto"],
      [7, "auto"],
      [48, "boundary"],
      [19, "boundary"],
    ] as const) {
      if (target === "webgpu" && budget === 19) continue;
      const restore = budgetOf(engine, budget);
      runs.push(await train(engine, { keep, steps }));
      restore();
    }
    // Units of one quantum each: how quanta are packed into launches changes no sum either.
    await using single = await engineOf(configs.even, { targets: [target], capacities: { unitRows: 32 } });
    runs.push(await train(single, { steps }));
    for (const r of runs.slice(1)) assert.equal(r, runs[0]);
    // Other quanta are other sums.
    if (target === "webgpu" && !long) return;
    await using fine = await engineOf(configs.even, {
      targets: [target],
      capacities: { quantum: 5, headRows: 3 },
    });
    const b = await train(fine, { steps });
    runs[0]!.losses.forEach((x, i) =>
      assert.ok(Math.abs(x - b.losses[i]!) < 1e-5, `step ${i}: ${x} and ${b.losses[i]}`),
    );
  });

test("micro-batches never change a bit", async () => {
  await using engine = await engineOf(configs.even);
  const one = await train(engine);
  const many = await train(engine, { microBatch: 2, name: "job" });
  assert.equal(many.losses, one.losses);
  assert.is(many.content, one.content);
});

for (const target of targets)
  test(`law 4 on ${target}: what is served and trained is bit-identical alone and co-served`, async () => {
    const n = target === "wasm" ? 12 : 4;
    const steps = target === "wasm" ? 3 : 1;
    const alone: { ids: number[]; logprobs: number[] }[] = [];
    const engine = await engineOn(target);
    await engine.adapters.load("peft", `${fixtures}peft-even`);
    const adapterOf = (i: number) => (i % 3 === 0 ? { adapter: "peft" } : {});
    for (let i = 0; i < n; i++) alone.push(await collect(engine, { ...requests(i), ...adapterOf(i) }));
    const a = await train(engine, { name: "a", steps });
    const b = await train(engine, {
      name: "b",
      steps,
      seed: 9,
      dropout: 0,
      targetModules: ["q_proj", "down_proj"],
    });
    // Everything at once.
    const [ja, jb] = [
      await engine.finetune({ ...job, name: "a", steps }),
      await engine.finetune({
        ...job,
        name: "b",
        steps,
        seed: 9,
        dropout: 0,
        targetModules: ["q_proj", "down_proj"],
      }),
    ];
    const together = await Promise.all(
      Array.from({ length: n }, (_, i) => collect(engine, { ...requests(i), ...adapterOf(i) })),
    );
    const [ra, rb] = [await ja.done, await jb.done];
    assert.equal(together, alone);
    assert.equal(ra.losses, a.losses);
    assert.equal(rb.losses, b.losses);
    assert.is(contentBits(engine, "a"), a.content);
    assert.is(contentBits(engine, "b"), b.content);
  });

test("law 4 can fail: a perturbed kernel family turns it red", async () => {
  // The row path of products sums k downwards: same values in exact arithmetic, other bits than the tile
  // path.
  const { compileKernels } = await import("../compiler/emit/asc.ts");
  const { files } = await compile(writeModel(configs.even), {
    targets: ["wasm"],
    quick: true,
    capacities: small,
  });
  const source = new TextDecoder().decode(files.get("kernels.as.ts")!);
  const wrong = source
    .replace(/function tile1_f32\([^)]*\): void \{/, "$&\n  backwards(x0, w, K, acc);\n  if (K > 0) return;")
    .concat(`
function backwards(x: usize, w: usize, K: i32, out: usize): void {
  let a0: v128 = v128.load(out), a1: v128 = v128.load(out, 16);
  for (let k: i32 = K - 1; k >= 0; k--) {
    const s: v128 = v128.load_splat<f32>(x + ((<usize>k) << 2));
    a0 = f32x4.add(a0, f32x4.mul(s, v128.load(w + <usize>k * 32)));
    a1 = f32x4.add(a1, f32x4.mul(s, v128.load(w + <usize>k * 32, 16)));
  }
  v128.store(out, a0);
  v128.store(out, a1, 16);
}`);
  assert.ok(wrong.includes("backwards(x0"), "the row path is where it was");
  const kernels = await compileKernels(wrong, { cache: true, quick: true });
  const { Engine: Core } = await import("../runtime/engine.ts");
  const { openWasm } = await import("../runtime/wasm.ts");
  const reader = { where: "memory", read: async (name: string) => files.get(name)! };
  const open = (module: Uint8Array) => Core.open(reader, (m) => openWasm(m, module));
  for (const [module, same] of [
    [files.get("kernels.wasm")!, true],
    [kernels, false],
  ] as const) {
    const core = await open(module);
    const prompt = idsOf("mutation", 40, vocab);
    // One row at a time against chunks: the same request in two shapes.
    const whole = await core.score(prompt, { logits: true });
    const pieces = await Promise.all(
      prompt.slice(0, 30).map((_, i) => core.score(prompt.slice(0, i + 1), { logits: true })),
    );
    const equal = pieces.every((p, i) => bits(p.logits![i]!) === bits(whole.logits![i]!));
    assert.is(core.invariance, same ? "verified" : "off", "the check at load sees it too");
    assert.is(
      equal,
      same,
      same ? "an intact bundle is batch-invariant" : "a perturbed family must be noticed",
    );
    await core.dispose();
  }
});

for (const target of targets)
  test(`law 5 on ${target}: a mixed batch = single runs, fresh = the base, generations stay`, async () => {
    const engine = await engineOn(target);
    const prompt = idsOf("mixed", 21, vocab);
    const o = { prompt, maxTokens: 6, temperature: 0 };
    const base = await collect(engine, o);
    const fresh = await engine.finetune({
      ...job,
      name: "fresh",
      steps: 1,
      learningRate: 1e-30,
      weightDecay: 0,
    });
    await fresh.done;
    assert.equal(await collect(engine, { ...o, adapter: "fresh" }), base, "B = 0 changes nothing");
    const single: Record<string, unknown> = { base };
    for (const [i, name] of ["one", "two", "three", "four", "five"].entries()) {
      // More adapters than slots: content waits on the host.
      const j = await engine.finetune({
        ...job,
        name,
        steps: 1,
        seed: i,
        learningRate: 0.05,
        rank: [1, 3, 8, 5, 2][i]!,
        ...(i === 2 && { targetModules: ["v_proj"] }),
      });
      await j.done;
      single[name] = await collect(engine, { ...o, adapter: name });
    }
    const names = ["three", "base", "one", "five", "two", "four"];
    const mixed = await Promise.all(
      names.map((name) => collect(engine, { ...o, ...(name !== "base" && { adapter: name }) })),
    );
    names.forEach((name, i) => assert.equal(mixed[i], single[name], name));
    // A later generation never changes an earlier one.
    const again = await engine.finetune({
      ...job,
      name: "one",
      from: "one",
      steps: 1,
      learningRate: 0.05,
      rank: 1,
    });
    await again.done;
    assert.equal(await collect(engine, { ...o, adapter: "one@1" }), single.one);
    assert.is.not(
      JSON.stringify(await collect(engine, { ...o, adapter: "one" })),
      JSON.stringify(single.one),
    );
    assert.is(engine.adapters.get("one").generation, 2);
  });

test("law 5: merged = unmerged", async () => {
  const { encode } = await import("../runtime/safetensors.ts");
  const { tensorsOf } = await import("./support/tiny.ts");
  const { writeFileSync } = await import("node:fs");
  const { compileTo } = await import("../compiler/compile.ts");
  const { load } = await import("../sdk/index.ts");
  await using engine = await engineOf(configs.even);
  await engine.adapters.load("peft", `${fixtures}peft-even`);
  const { branches, tensors } = engine.core.adapters.find("peft").content;
  const merged = tensorsOf(configs.even).map((t) => {
    const m = /^model\.layers\.(\d+)\.(.*)\.weight$/.exec(t.name);
    const site = m && engine.manifest.sites.find((s) => s.module === m[2]);
    if (!m || !site) return t;
    const branch = engine.manifest.branches.find((b) => b.site === site.index)!.index;
    const l = Number(m[1]);
    const s = branches[l]![branch]!;
    const placed = placedIn(engine.manifest, branches[l]!, tensors[l]!, l, branch);
    const [down, up] = (["a", "b"] as const).map((side) => placedBy(placed, side)) as [Placed, Placed];
    const data = Float32Array.from(t.data as Float32Array, (w, i) => {
      const [o, k] = [Math.floor(i / site.inFeatures), i % site.inFeatures];
      let d = 0;
      for (let r = 0; r < s.rank; r++) d += up.values[r * up.t.cols + o]! * down.values[r * down.t.cols + k]!;
      return w + s.scale * d;
    });
    return { ...t, data };
  });
  const dir = writeModel(configs.even);
  writeFileSync(`${dir}/model.safetensors`, encode(merged));
  const out = `${scratch()}/m.weft`;
  await compileTo(dir, out, { targets: ["wasm"], train: [], quick: true, capacities: small });
  await using other = await load(out, { device: "wasm" });
  const ids = idsOf("merge", 50, vocab);
  const [a, b] = [
    await engine.score(ids, { adapter: "peft", logits: true }),
    await other.score(ids, { logits: true }),
  ];
  let max = 0;
  let error = 0;
  a.logits!.forEach((row, i) =>
    row.forEach((x, j) => {
      max = Math.max(max, Math.abs(x));
      error = Math.max(error, Math.abs(x - b.logits![i]![j]!));
    }),
  );
  assert.ok(error <= 5e-5 * max, `merged differs by ${error} of ${max}`);
});

for (const target of targets)
  test(`law 6 on ${target}: what is frozen stays bit-equal; pruning keeps less, as planned`, async () => {
    const engine = await engineOn(target);
    await engine.adapters.load("bystander", `${fixtures}peft-even`);
    const hash = async (): Promise<string> => {
      const h = createHash("sha256");
      for (const t of await engine.core.baseTensors()) h.update(t.data);
      return h.digest("hex");
    };
    const before = await hash();
    const o = { prompt: idsOf("bystander", 9, vocab), maxTokens: 5, adapter: "bystander" };
    const said = await collect(engine, o);
    await train(engine, { steps: target === "wasm" ? 3 : 1 });
    assert.is(await hash(), before);
    assert.equal(await collect(engine, o), said);
    const { lora } = engine.manifest.saved;
    assert.ok(
      lora!.bytes.boundary < lora!.bytes.all && lora!.bytes.all < lora!.bytes.naive,
      JSON.stringify(lora!.bytes),
    );
    // Planned bytes are what the fields occupy: one list made both.
    const planned = (index: string): number =>
      lora!.fields.filter((f) => f.index === index).reduce((n, f) => n + 4 * f.cols, 0);
    assert.is(planned("save_row"), lora!.bytes.boundary);
    assert.is(planned("save_row") + planned("ext_row"), lora!.bytes.all);
    const { savedRows, keptRows } = engine.manifest.capacities;
    const { boundary, kept } = lora!.words;
    const within = (words: number, index: string): void => {
      const fields = lora!.fields.filter((f) => f.index === index).length;
      const most = planned(index) / 4 + 3 * fields;
      assert.ok(
        words >= planned(index) / 4 && words <= most,
        `${words} words a row for ${planned(index)} bytes`,
      );
    };
    within(boundary, "save_row");
    within(kept, "ext_row");
    const needed = savedRows * boundary + keptRows * kept;
    const held = engine.core.device.plan.spaces.saved.layer;
    assert.ok(held >= needed && held <= needed + kept + 128, `${held} words held, ${needed} planned`);
  });

for (const target of targets)
  test(`law 7 on ${target}: saved = loaded, and a resumed job = one that never stopped`, async () => {
    const engine = await engineOn(target);
    const half = target === "wasm" ? 3 : 1;
    await train(engine, { steps: 1 });
    const dir = scratch();
    await engine.adapters.get("job").save(`${dir}/adapter`);
    await engine.adapters.load("copy", `${dir}/adapter`);
    const ids = idsOf("saved", 30, vocab);
    const [a, b] = [
      await engine.score(ids, { adapter: "job", logits: true }),
      await engine.score(ids, { adapter: "copy", logits: true }),
    ];
    a.logits!.forEach((row, i) => assert.is(bits(row), bits(b.logits![i]!)));

    const options: FinetuneOptions = {
      ...job,
      name: "long",
      steps: 2 * half,
      schedule: "cosine",
      warmupSteps: 2,
      evalData: rows.slice(0, 2),
      evalEvery: half,
    };
    const whole = await (await engine.finetune(options)).done;
    const content = contentBits(engine, "long");
    const controller = new AbortController();
    let saved: Promise<void> | null = null;
    const first = await engine.finetune({
      ...options,
      signal: controller.signal,
      onEvent: (e) => {
        if (e.type === "step" && e.step === half)
          saved = first.checkpoint(`${dir}/checkpoint`).then(() => controller.abort());
      },
    });
    // Stopped as soon as the checkpoint is on disk; a fast machine may finish first, which changes nothing
    // below.
    await first.done.catch((e: Error) => assert.is(e.name, "AbortError"));
    await saved;
    const second = await (await engine.finetune({ ...options, resume: `${dir}/checkpoint` })).done;
    assert.equal(second.losses, whole.losses);
    assert.is(contentBits(engine, "long"), content);
  });

for (const target of targets)
  test(`law 8 on ${target}: after requests, jobs, cancels and aborts all memory is free`, async () => {
    // Pages are NaN from the start, and again as soon as they are free: a stale read would poison an answer.
    await using engine = await engineOf(configs.even, {
      targets: [target],
      load: { budget: 24, prefixCache: true },
    });
    const poisoned = poison(engine.core);
    const free = inUse(engine);
    const next = generator("pool");
    const work: Promise<unknown>[] = [];
    for (const space of ["kv", "saved"] as const)
      for (let l = 0; l < 2; l++)
        engine.core.device.write(
          { space, group: l, offset: 0 },
          new Float32Array(engine.core.device.plan.spaces[space].layer).fill(Number.NaN),
        );
    const answers: number[][] = [];
    for (let i = 0; i < (target === "wasm" ? 40 : 14); i++) {
      const r = requests(i);
      const kind = next() % 3;
      if (kind === 0) {
        const c = new AbortController();
        work.push(
          collect(engine, { ...r, signal: c.signal }).catch((e: Error) => assert.is(e.name, "AbortError")),
        );
        setTimeout(() => c.abort(), next() % 20);
      } else if (kind === 1)
        work.push(
          (async () => {
            for await (const p of engine.generate(r)) if (p.id % 3 === 0) break;
          })(),
        );
      else work.push(collect(engine, r).then((a) => void (answers[i] = a.ids)));
      if (i % 13 === 5) {
        const j = await engine
          .finetune({ ...job, name: `job${i}`, steps: 2 })
          .catch((e: WeftError) => void assert.is(e.code, "WEFT_CAPACITY"));
        if (!j) continue;
        work.push(j.done.catch((e: Error) => assert.is(e.name, "AbortError")));
        if (i > 10) setTimeout(() => j.cancel(), 10 + (next() % 30));
      }
      if (next() % 4 === 0) await new Promise((f) => setTimeout(f, next() % 5));
    }
    await Promise.all(work);
    assert.ok(poisoned().free > 200, "what was free was poisoned");
    await atRest(engine);
    assert.equal(inUse(engine), free);
    assert.ok(
      answers.some((ids) => ids),
      "requests were answered",
    );
    for (const [i, ids] of answers.entries())
      if (ids) assert.equal((await collect(engine, requests(i))).ids, ids, `request ${i} under load`);
  });

test("a step mixes decode rows, prompts and windows of jobs; a decode step fits between units", async () => {
  for (const budget of [44, 12]) {
    const traces: StepTrace[] = [];
    await using engine = await engineOf(configs.even, {
      load: { budget, lanes: 1, onStep: (t) => traces.push(t) },
    });
    traces.length = 0;
    // Many short rows a step and a stream of short requests: windows of both jobs, decode rows and prompt
    // chunks are around all the time.
    const short = Array.from({ length: 12 }, (_, i) => ({
      input_ids: idsOf(`short${i}`, 5 + (i % 4), vocab),
    }));
    const jobs = await Promise.all(
      ["a", "b"].map((name) => engine.finetune({ ...job, name, data: short, batchSize: 12, steps: 16 })),
    );
    const streams = Array.from({ length: 5 }, async (_, i) => {
      for (let k = 0; k < 12; k++)
        await collect(engine, { prompt: idsOf(`turn${i}.${k}`, 4 + ((i + k) % 5), vocab), maxTokens: 6 + i });
    });
    await Promise.all([...jobs.map((j) => j.done), ...streams]);
    if (budget === 44)
      assert.ok(
        traces.some((t) => t.requests > 1 && t.rows.generate > t.requests && t.jobs === 2),
        "decode rows, a prompt chunk and windows of two jobs in one forward",
      );
    assert.ok(
      traces.some((t) => t.requests > 0 && t.units > 0),
      "units beside decode",
    );
    if (budget === 12)
      assert.ok(
        traces.some((t) => t.requests > 0 && t.units === 0 && t.rows.train === 0),
        "a decode step between units",
      );
  }
});
test.run();
