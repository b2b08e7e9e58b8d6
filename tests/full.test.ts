/** Full training owns the base: what it changes, for whom, and what is left when it is cancelled. */
import { readFileSync } from "node:fs";
import * as assert from "uvu/assert";
import type { TrainState } from "../runtime/trainer.ts";
import { compile, type Job } from "../sdk/index.ts";
import { code } from "./support/code.ts";
import { bits, collect, configs, contentBits, engineOf } from "./support/engines.ts";
import { base, one, outcome, prompt, stepsOf, turns } from "./support/jobs.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("full");
test("full training changes nobody's answer, and a cancelled one leaves the base", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  const full = { ...base, name: "full", method: "full", steps: 200 };
  const weights = async (): Promise<string> =>
    (await engine.core.baseTensors()).map((t) => bits(t.data)).join();
  const answer = (): Promise<unknown> => collect(engine, { prompt, maxTokens: 20 });
  const alone = await answer();
  const pristine = await weights();

  const stream = engine.generate({ prompt, maxTokens: 100 });
  await stream.next();
  // The answer is on its way for as long as this test wants.
  const device = engine.core.device as { run: typeof engine.core.device.run };
  const run = device.run.bind(device);
  let go = (): void => {};
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  device.run = (...args) => gate.then(() => run(...args));
  const refused = await code("WEFT_CONFLICT", () => engine.finetune(full), /requests/);
  assert.is(refused.retryable, true);
  device.run = run;
  go();
  await stream.return();

  const cancelled = await stepsOf(engine, full, 2);
  assert.is((await code("WEFT_CONFLICT", answer, /full training/)).retryable, true);
  await code("WEFT_CONFLICT", () => engine.saveModel(`${scratch()}/m`));
  cancelled.cancel();
  // While it rolls back nobody is served.
  await code("WEFT_CONFLICT", answer);
  await cancelled.done.catch(() => {});
  assert.equal(await answer(), alone);
  assert.is(await weights(), pristine);
  assert.is(engine.base, engine.manifest.base);

  const failed = await engine.finetune({ ...full, learningRate: 1e30, maxGradNorm: 0 });
  await code("WEFT_NUMERICS", () => failed.done);
  assert.is(await weights(), pristine);

  // From a base that is no longer the bundle's: back to what the first made of it.
  await (await engine.finetune({ ...full, steps: 2 })).done;
  const trained = await weights();
  const [first, at] = [engine.base, await answer()];
  assert.is.not(first, engine.manifest.base);
  const second = await stepsOf(engine, full, 2);
  second.cancel();
  await second.done.catch(() => {});
  assert.is(await weights(), trained);
  assert.is(engine.base, first);
  assert.equal(await answer(), at);
});

test("the base is its weights: adapters of another are refused, merge(null) restores", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  const folder = scratch();
  const lora = { ...base, method: "lora", steps: 2 };
  await (await engine.finetune({ ...lora, name: "before" })).done;
  await engine.adapters.get("before").save(`${folder}/before`);
  await (await engine.finetune({ ...base, name: "full", method: "full", steps: 3 })).done;
  const trained = await collect(engine, { prompt, maxTokens: 20 });
  assert.is.not(engine.base, engine.manifest.base);

  const mismatch = (f: () => Promise<unknown>) =>
    code("WEFT_ADAPTER_MISMATCH", f, /other base|another model/);
  await mismatch(() => collect(engine, { prompt, adapter: "before" }));
  await mismatch(() => collect(engine, { prompt, adapter: { before: 0.5 } }));
  await mismatch(() => engine.score(prompt, { adapter: "before@1" }));
  await mismatch(() => engine.merge("before"));
  await mismatch(() => engine.finetune({ ...lora, name: "on", from: "before" }));
  await mismatch(() => engine.adapters.load("again", `${folder}/before`));

  await (await engine.finetune({ ...lora, name: "after" })).done;
  await mismatch(() => collect(engine, { prompt, adapter: { before: 0.5, after: 0.5 } }));
  await engine.adapters.get("after").save(`${folder}/after`);
  await engine.adapters.get("before").save(`${folder}/before2`);
  const recorded = (dir: string): unknown =>
    (JSON.parse(readFileSync(`${folder}/${dir}/adapter_config.json`, "utf8")) as { weft_base: string })
      .weft_base;
  assert.is(recorded("after"), engine.base);
  assert.is(engine.adapters.get("after").base, engine.base);
  assert.is(recorded("before2"), engine.manifest.base);
  await engine.adapters.load("read", `${folder}/after`);

  const beside = await collect(engine, { prompt, maxTokens: 20, adapter: "after" });
  await engine.merge("after");
  assert.equal((await collect(engine, { prompt, maxTokens: 20 })).ids, beside.ids);
  await engine.merge({ after: 0.5 });
  await engine.merge(null);
  assert.equal(await collect(engine, { prompt, maxTokens: 20 }), trained);

  // Saved and compiled, it is known by the same values.
  await engine.saveModel(`${folder}/model`);
  const compiled = { targets: ["wasm"], train: [], quick: true } as const;
  const manifest = await compile(`${folder}/model`, `${folder}/model.weft`, compiled);
  assert.is(manifest.base, engine.base);

  // Trained the same way, it is the same base; another bundle of the source knows nothing of it.
  await using twin = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  await mismatch(() => twin.adapters.load("after", `${folder}/after`));
  await (await twin.finetune({ ...base, name: "full", method: "full", steps: 3 })).done;
  assert.is(twin.base, engine.base);
  await twin.adapters.load("after", `${folder}/after`);
  assert.is(contentBits(twin, "after"), contentBits(engine, "after"));
});

test("a full training that is cancelled between any two turns leaves nothing that trains on", async () => {
  // One row a step: a micro-batch takes longer than the rollback.
  await using engine = await engineOf(configs.even, {
    train: ["lora", "full"],
    load: { threads: 1, budget: 1, idleBudget: 1 },
  });
  const { exports } = engine.core.host;
  for (let i = 0; i < rounds(24, 100); i++) {
    const job: Job = await engine.finetune({
      ...base,
      name: `full${i}`,
      method: "full",
      steps: 100,
      batchSize: 1,
      onEvent: (e) => {
        if (e.type === "step" && e.step === 2) void turns(i % 24).then(() => job.cancel());
      },
    });
    assert.is(await outcome(job.done), "AbortError");
    assert.is(exports.freeBlocks(), exports.blocksTotal(), `cancelled ${i} turns after a step`);
  }
});

test("a full training that is cancelled before its weights are the base's ends cancelled", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["full"] });
  const job = await engine.finetune({
    ...base,
    name: "full",
    method: "full",
    steps: 1,
    onEvent: (e) => {
      // The second is taken after the last step, at the end.
      if (e.type === "step") void core.checkpoint().then(() => core.checkpoint().then(() => job.cancel()));
    },
  });
  const core = (job as unknown as { core: { checkpoint(): Promise<TrainState> } }).core;
  assert.is(await outcome(job.done), "AbortError");
  assert.is(engine.base, engine.manifest.base);
});

test("base weights are read whole: nothing changes them meanwhile", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  await (await engine.finetune({ ...base, name: "a", method: "lora" })).done;
  const whole = (await engine.core.baseTensors()).map((t) => bits(t.data));
  const { device } = engine.core;
  const read = device.read.bind(device);
  let go = (): void => {};
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  (device as { read: typeof read }).read = (r) => gate.then(() => read(r));
  const reading = engine.core.baseTensors();
  for (const change of [
    () => engine.merge("a"),
    () => engine.finetune({ ...base, name: "full", method: "full" }),
  ])
    assert.is((await code("WEFT_CONFLICT", change, /read/)).retryable, true);
  go();
  assert.equal(
    (await reading).map((t) => bits(t.data)),
    whole,
  );
  await engine.merge("a");
});

test("a job is not started from an adapter of the base that a full training just replaced", async () => {
  await using engine = await engineOf(configs.even, { ...one, train: ["lora", "full"] });
  await (await engine.finetune({ ...base, name: "a", method: "lora", steps: 1 })).done;
  const full = await engine.finetune({ ...base, name: "full", method: "full", steps: 1 });
  // Rows of the job that comes, which are read until the training has ended.
  const slow = new Blob([JSON.stringify({ input_ids: [1, 2, 3] })]);
  const read = slow.arrayBuffer.bind(slow);
  slow.arrayBuffer = async () => {
    await full.done;
    return read();
  };
  const start = (from?: string) =>
    engine.finetune({ ...base, name: "b", method: "lora", data: slow, ...(from && { from }) });
  const early = code("WEFT_CONFLICT", start, /full training that ended/);
  const fromOld = code("WEFT_ADAPTER_MISMATCH", () => start("a"));
  assert.is((await early).retryable, true);
  await fromOld;
  await code("WEFT_ADAPTER_MISMATCH", () => start("a"));
  assert.is.not(engine.base, engine.manifest.base);
});
test.run();
