/**
 * Jobs: what is done at rest, what a cancel leaves, whose weights the base is, and what a checkpoint goes on
 * with.
 */
import { readFileSync, writeFileSync } from "node:fs";
import * as assert from "uvu/assert";
import type { TrainState } from "../runtime/trainer.ts";
import type { Engine, FinetuneOptions, Job } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { collect, configs, engineOf, idsOf } from "./support/engines.ts";
import { base, one, outcome, prompt, rows, stateBits, stepsOf, turns, vocab } from "./support/jobs.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("jobs");

test("publish() and checkpoint() that wait when a job is cancelled are rejected", async () => {
  await using engine = await engineOf(configs.even, { ...one, capacities: { slots: 1 } });
  await (await engine.finetune({ ...base, name: "other", learningRate: 0.05 })).done;
  for (let i = 0; i < rounds(4, 30); i++) {
    const job = await stepsOf(engine, { ...base, name: `v${i}`, steps: 1000 }, 1);
    // A request for the other waits for the only slot.
    const answer = collect(engine, { prompt, maxTokens: 3, adapter: "other" });
    const asked = [job.publish(), job.checkpoint(`${scratch()}/c`)];
    const ends = Promise.all([...asked, job.done].map(outcome));
    job.cancel();
    const ended = await ends;
    await answer;
    assert.equal(ended, ["AbortError", "AbortError", "AbortError"]);
    assert.not(engine.core.adapters.has(`v${i}`));
    assert.is(await outcome(job.publish()), "AbortError");
  }
});

test("a checkpoint is of a moment between two steps, or rejected: never of the middle of one", async () => {
  await using engine = await engineOf(configs.even, one);
  // What every step leaves, taken one by one.
  const whole = new Map<number, string>();
  const job = await engine.finetune({ ...base, name: "all" });
  const core = (job as unknown as { core: { checkpoint(): Promise<TrainState> } }).core;
  const taken: Promise<unknown>[] = [];
  for (let i = 0; i < base.steps; i++)
    taken.push(core.checkpoint().then((s) => whole.set(s.step, stateBits(s))));
  await job.done;
  await Promise.all(taken);
  assert.ok(whole.size > 0);
  const again = await engine.finetune({ ...base, name: "each", onEvent: () => {} });
  const each = (again as unknown as { core: { checkpoint(): Promise<TrainState> } }).core;
  for (let s = await each.checkpoint(); ; s = await each.checkpoint()) {
    whole.set(s.step, stateBits(s));
    if (s.step === base.steps) break;
  }
  await again.done;
  const ends = { resolved: 0, rejected: 0 };
  for (let i = 0; i < rounds(12, 100); i++) {
    const j = await engine.finetune({ ...base, name: `c${i}` });
    const c = (j as unknown as { core: { checkpoint(): Promise<TrainState> } }).core;
    for (let k = 0; k < (i * 7) % 23; k++) await new Promise((r) => setImmediate(r));
    const state = c.checkpoint();
    if (i % 3) j.cancel();
    await state.then(
      (s) => {
        ends.resolved++;
        assert.is(stateBits(s), whole.get(s.step), `snapshot after step ${s.step}`);
      },
      () => ends.rejected++,
    );
    j.cancel();
    await outcome(j.done);
  }
  assert.ok(ends.resolved > 0 && ends.rejected > 0, JSON.stringify(ends));
});

test("a job touches accumulators of its own rows alone: the rest may hold anything", async () => {
  for (const target of ["wasm", "webgpu"] as const) {
    const train = target === "wasm" ? ["lora", "dora", "ia3"] : ["lora"];
    await using engine = await engineOf(configs.even, { targets: [target], train });
    const { device, jobLane: lane, manifest } = engine.core;
    const places = Array.from({ length: manifest.model.layers }, (_, group) => ({
      ...{ space: "accum" as const, group, offset: 0, words: device.plan.jobWords, lane },
    }));
    for (const method of train) {
      const o = {
        ...base,
        method,
        targetModules: ["k_proj", "down_proj"],
        ...(method !== "ia3" && { rank: 3 }),
      };
      const taught = async (name: string): Promise<TrainState> => {
        const taken: Promise<TrainState>[] = [];
        const job: Job = await engine.finetune({
          ...{ ...o, name },
          onEvent: (e) => {
            const { core } = job as unknown as { core: { checkpoint(): Promise<TrainState> } };
            if (e.type === "step" && e.step === o.steps - 1) taken.push(core.checkpoint());
          },
        });
        await job.done;
        return taken[0]!;
      };
      const alone = await taught(`${method}-alone`);
      for (const { words, ...at } of places) device.write(at, new Float32Array(words).fill(Number.NaN));
      const beside = await taught(`${method}-beside`);
      assert.is(stateBits(beside), stateBits(alone), `${method} on ${target}`);
      const found = await device.readAll(places);
      const kept = found.map((words) => words.filter(Number.isNaN).length);
      const own = alone.accum.map((words) => words.length);
      assert.ok(own.every((n) => n > 0 && n < device.plan.jobWords / 2));
      assert.equal(
        kept,
        own.map((n) => device.plan.jobWords - n),
      );
    }
  }
});

test("tasks asked for in the last event, at the end, and by dispose: each settles", async () => {
  const engine = await engineOf(configs.even, one);
  const asked: Promise<unknown>[] = [];
  const job: Job = await engine.finetune({
    ...base,
    name: "late",
    onEvent: (e) => {
      if (e.type === "done" || (e.type === "step" && e.step === base.steps)) asked.push(job.publish());
      // One that asks again and again does not keep the job from ending.
      if (e.type === "publish") asked.push(job.publish().catch(() => "ended"));
    },
  });
  const { generation } = await job.done;
  assert.ok((await Promise.all(asked)).length >= 3);
  assert.is(generation, `late@${engine.adapters.get("late").generation}`);
  assert.is(await outcome(job.publish()), "WEFT_CONFLICT");
  const other = await stepsOf(engine, { ...base, name: "disposed", steps: 1000 }, 1);
  const ends = Promise.all([other.publish(), other.checkpoint(`${scratch()}/c`), other.done].map(outcome));
  await engine.dispose();
  assert.equal(await ends, ["WEFT_DISPOSED", "WEFT_DISPOSED", "WEFT_DISPOSED"]);
});

test("an adapter of the same weights in another format loads, and says so", async () => {
  await using engine = await engineOf(configs.even, one);
  await (await engine.finetune({ ...base, name: "a" })).done;
  assert.equal(engine.adapters.get("a").warnings, []);
  const dir = `${scratch()}/a`;
  await engine.adapters.get("a").save(dir);
  assert.equal((await engine.adapters.load("same", dir)).warnings, []);
  const path = `${dir}/adapter_config.json`;
  const config = JSON.parse(readFileSync(path, "utf8")) as object;
  writeFileSync(path, JSON.stringify({ ...config, weft_format: "f16" }));
  const { warnings } = await engine.adapters.load("half", dir);
  assert.is(warnings.length, 1);
  assert.match(warnings[0]!, /f16.*f32/);
});

test("a checkpoint goes on with the same rows and options by value, and with no others", async () => {
  await using engine = await engineOf(configs.even, one);
  await (await engine.finetune({ ...base, name: "seed", steps: 1 })).done;
  const dir = `${scratch()}/checkpoint`;
  const o = {
    ...base,
    name: "r",
    from: "seed",
    evalData: rows.slice(0, 1),
    evalEvery: 2,
  };
  const whole = await (await engine.finetune({ ...o, name: "whole" })).done;
  const job = await stepsOf(engine, o, 1);
  await job.checkpoint(dir);
  job.cancel();
  await job.done.catch(() => {});
  const resume = async (patch: Partial<FinetuneOptions>): Promise<readonly number[]> => {
    const j = await engine.finetune({ ...o, ...patch, name: `x${Math.random()}`, resume: dir });
    return (await j.done).losses;
  };
  const refuse = (patch: Partial<FinetuneOptions>, says = /options/) =>
    code("WEFT_CONFLICT", () => resume(patch), says);
  const other = rows.map((r, i) => (i === 2 ? { ...r, input_ids: r.input_ids.map((t) => t ^ 1) } : r));
  await refuse({ data: other }, /options\.rows/);
  await refuse({ data: rows.map((r, i) => (i === 1 ? { ...r, labels: r.labels.map(() => 7) } : r)) });
  await refuse({ data: [...rows].reverse() });
  await refuse({ evalData: rows.slice(1, 2) });
  await refuse({ learningRate: 0.02 }, /options\.settings\.learningRate: expected .*, found 0\.02/);
  await refuse({ select: "best" });
  engine.core.adapters.publish("seed", {
    ...engine.core.adapters.find("seed").content,
    tensors: engine.core.adapters.find("seed").content.tensors.map((t) => t.map((x) => x * 2)),
  });
  await refuse({});
  // The same adapter by another name, keys in another order, defaults written out, and what never changes a
  // result.
  const same = Object.fromEntries(Object.entries(o).reverse()) as unknown as FinetuneOptions;
  const losses = await resume({
    ...same,
    from: "seed@1",
    optimizer: "adamw",
    betas: [0.9, 0.999],
    shuffle: true,
    microBatch: 1,
    keep: "boundary",
    select: "last",
  });
  assert.equal(losses, whole.losses);
});

test("rows to evaluate are checked when the job starts; a best step needs some", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  const start = (o: Partial<FinetuneOptions>) =>
    engine.finetune({ ...base, name: "e", steps: 100, evalEvery: 100, ...o });
  await code("WEFT_DATA", () => start({ evalData: [{ input_ids: [1, 2, 999] }] }), /evalData, row 1/);
  const file = `${scratch()}/rows.jsonl`;
  const ids = (n: number): string => JSON.stringify({ input_ids: Array(n).fill(1) });
  writeFileSync(file, [ids(3), "", ids(2000)].join("\n"));
  await code("WEFT_DATA", () => start({ evalData: file }), /rows\.jsonl, line 3/);
  await code("WEFT_DATA", () => start({ evalData: [{ input_ids: idsOf("l", 200, vocab) }] }), /at most 128/);
  await code("WEFT_DATA", () => start({ evalData: [{ input_ids: [1, 2], labels: [-100, -100] }] }));
  await code("WEFT_OPTION", () => start({ select: "best" }), /evalData/);
  await code("WEFT_OPTION", () => start({ method: "full", select: "best", evalData: rows }), /full/);
  assert.is(engine.core.jobsRunning, 0);
  // As long as a training row may be: one id more than the context, the last of which is only predicted.
  const { losses } = await (
    await start({ steps: 1, evalEvery: 1, evalData: [{ input_ids: idsOf("l", 129, vocab) }] })
  ).done;
  assert.is(losses.length, 1);
  // Labels that are not the next ids are what is evaluated.
  const evals: number[] = [];
  const labels = rows[1]!.input_ids.map((t) => (t + 1) % vocab);
  const o = { steps: 1, evalEvery: 1, learningRate: 1e-12 };
  const loss = async (r: { input_ids: readonly number[]; labels: readonly number[] }): Promise<number> => {
    const trained = await (await start({ ...o, batchSize: 1, data: [r as never] })).done;
    await (
      await start({ ...o, evalData: [r as never], onEvent: (e) => e.type === "eval" && evals.push(e.loss) })
    ).done;
    return trained.losses[0]!;
  };
  const want = await loss({ input_ids: rows[1]!.input_ids, labels });
  assert.ok(Math.abs(evals[0]! - want) < 1e-3, `evaluated ${evals[0]}, trained ${want}`);
});

test("a job evaluates although a request waits for the slot that it trains", async () => {
  await using engine = await engineOf(configs.even, { ...one, capacities: { slots: 1 } });
  await (await engine.finetune({ ...base, name: "other", steps: 1 })).done;
  const asked: Promise<unknown>[] = [];
  const job = await engine.finetune({
    ...base,
    name: "job",
    evalData: rows.slice(0, 1),
    evalEvery: 1,
    onEvent: (e) => {
      if (e.type === "start")
        asked.push(outcome(collect(engine, { prompt, maxTokens: 2, adapter: "other" })));
      // Forever, if they wait for each other.
      if (e.type === "step" && e.step === 1) void turns(2000).then(() => job.cancel());
    },
  });
  assert.is(await outcome(job.done), "resolved");
  assert.equal(await Promise.all(asked), ["resolved"]);
});

test("a job that finds every slot in use waits for one; given up, it waits no more", async () => {
  await using engine = await engineOf(configs.even, { ...one, capacities: { slots: 1, jobs: 3 } });
  const free = engine.memory();
  // Holds the only slot until it is told to end, however slow the machine is.
  const holder = await stepsOf(engine, { ...base, name: "holder", steps: 1_000_000 }, 1);
  const given = await engine.finetune({ ...base, name: "given-up", steps: 1 });
  const job = await engine.finetune({ ...base, name: "waits", steps: 1 });
  const ends = [given.done, job.done].map(outcome);
  given.cancel();
  assert.is(await ends[0], "AbortError");
  assert.is(job.step, 0);
  holder.cancel();
  assert.is(await outcome(holder.done), "AbortError");
  assert.is(await ends[1], "resolved");
  assert.equal(engine.memory(), free);
});

test("what a method has no use for is refused when the job starts, and not ignored", async () => {
  await using engine = await engineOf(configs.even, {
    ...one,
    methods: ["lora", "ia3"],
    train: ["ia3", "full"],
  });
  const start = (o: Partial<FinetuneOptions>) => engine.finetune({ ...base, name: "u", ...o });
  await code("WEFT_OPTION", () => start({ method: "ia3", dropout: 0.1 }), /dropout/);
  await code("WEFT_OPTION", () => start({ method: "full", dropout: 0.1 }), /dropout/);
  await code("WEFT_OPTION", () => start({ method: "full", targetModules: "q_proj" }), /targetModules/);
  await code("WEFT_OPTION", () => start({ method: "full", publishEvery: 1 }), /publishEvery/);
  assert.is(engine.core.jobsRunning, 0);
  assert.is(engine.core.exclusive, null);
});

test("a checkpoint goes on only where its words lie as they did: methods, order of channels", async () => {
  const dirs = scratch();
  const o = { ...base, name: "job", method: "lora", steps: 1000 };
  const take = async (engine: Engine, o: FinetuneOptions, dir: string): Promise<void> => {
    const job = await stepsOf(engine, o, 1);
    await job.checkpoint(`${dirs}/${dir}`);
    job.cancel();
    await outcome(job.done);
  };
  const refuse = (engine: Engine, o: FinetuneOptions, dir: string) =>
    code("WEFT_CONFLICT", () => engine.finetune({ ...o, resume: `${dirs}/${dir}` }), /layout/);
  {
    await using a = await engineOf(configs.even, { ...one, methods: ["lora", "dora"] });
    await take(a, o, "lora");
    await using b = await engineOf(configs.even, { ...one, methods: ["dora", "lora"] });
    await refuse(b, o, "lora");
  }
  const channels = (first: number) => ({
    ...one,
    train: ["s2ft_permuted", "full"],
    methods: ["s2ft_permuted"],
    selection: {
      layers: [0, 1].map(() => ({ ffn: [first, first + 9], groups: [first & 1] })),
      selector: "random" as const,
    },
    capacities: { s2ft: { sites: ["v_proj", "down_proj"], parameters: 2 * 16 * 128 } },
  });
  const full = { ...o, name: "full", method: "full" };
  await using a = await engineOf(configs.even, channels(3));
  await take(a, full, "full");
  await using b = await engineOf(configs.even, channels(20));
  assert.is(b.base, a.base);
  await refuse(b, full, "full");
});

test.run();
