/** Checkpoints without asking: two kept, one behind the last step, and a job that goes on for longer. */
import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { readAbout } from "../sdk/checkpoint.ts";
import type { FinetuneOptions, TrainEvent } from "../sdk/index.ts";
import { batchOf, configs, contentBits, engineOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("autosave");
const rows = batchOf(128);
const job: FinetuneOptions = { name: "job", data: rows, batchSize: 2, rank: 2, learningRate: 1e-2, seed: 5 };
const stepsIn = (dir: string): number[] =>
  readdirSync(dir)
    .flatMap((name) => /^v-(\d+)-/.exec(name)?.[1] ?? [])
    .map(Number)
    .sort((a, b) => a - b);

test("the last two are kept, and the end; a job goes on from there as if asked for all", async () => {
  await using engine = await engineOf(configs.even);
  for (const o of [
    {},
    { select: "best", evalData: rows.slice(1, 2), evalEvery: 2, dropout: 0.1, publishEvery: 2 },
  ] as Partial<FinetuneOptions>[]) {
    const dir = join(scratch(), "kept");
    const whole = await (await engine.finetune({ ...job, ...o, epochs: 3 })).done;
    const bits = contentBits(engine, "job");
    const seen: TrainEvent[] = [];
    const about = { bundle: "b", flags: { data: "d" } };
    const first = await engine.finetune({
      ...{ ...job, ...o, epochs: 2, checkpoint: { dir, every: 1e-9, about } },
      onEvent: (e) => seen.push(e),
    });
    await first.done;
    const kept = seen.flatMap((e) => (e.type === "checkpoint" && !e.error ? e.step : []));
    assert.is(kept.at(-1), 6, "the end is one");
    assert.ok(kept.length > 1);
    assert.equal(stepsIn(dir), kept.slice(-2));
    assert.equal(await readAbout(dir), about);
    for (const epochs of [3, 3]) {
      // The second time it is at its end already.
      const on = await engine.finetune({ ...job, ...o, epochs, resume: dir, checkpoint: { dir, every: 0 } });
      const result = await on.done;
      assert.equal(result.losses, whole.losses);
      assert.is(result.kept, whole.kept);
      assert.is(contentBits(engine, "job"), bits);
      assert.is(stepsIn(dir).at(-1), 9);
    }
    await engine.finetune({ ...job, ...o, epochs: 2, resume: dir }).then(
      () => assert.unreachable("fewer"),
      (e) =>
        assert.match(e.message, /: steps: expected at least 9, as it was started with, found 6 \(for fewer/),
    );
  }
});

test("one that cannot be kept is told, the job goes on; without the last it is not done", async () => {
  await using engine = await engineOf(configs.even);
  const dir = join(scratch(), "kept");
  const errors: (string | undefined)[] = [];
  const running = await engine.finetune({
    ...{ ...job, epochs: 2, checkpoint: { dir, every: 1e-9 } },
    onEvent: (e) => {
      if (e.type === "checkpoint") errors.push(e.error?.code);
      if (e.type !== "step" || e.step !== 3) return;
      rmSync(dir, { recursive: true, force: true });
      writeFileSync(dir, "in the way");
    },
  });
  await running.done.then(
    () => assert.unreachable("done"),
    (e) => assert.is(e.code, "WEFT_IO"),
  );
  assert.is(errors.at(-1), "WEFT_IO");
  assert.is(engine.adapters.get("job").generation, 1, "what it learned is there");
  await engine.finetune({ ...job, checkpoint: { dir } }).then(
    () => assert.unreachable("started"),
    (e) => assert.is(e.code, "WEFT_IO", "told before the training"),
  );
  assert.is(engine.core.jobsRunning, 0);
});
test.run();
