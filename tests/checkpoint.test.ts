/** A checkpoint is of a job at rest, or it is none: whatever ends the job meanwhile. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as assert from "uvu/assert";
import { LOCK } from "../runtime/lock.ts";
import type { Engine, FinetuneOptions } from "../sdk/index.ts";
import { batchOf, configs, contentBits, engineOf } from "./support/engines.ts";
import { generator } from "./support/random.ts";
import { rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("checkpoint");
const job: FinetuneOptions = {
  name: "job",
  data: batchOf(128),
  steps: 12,
  batchSize: 5,
  rank: 2,
  learningRate: 1e-2,
  seed: 5,
};
const states = (dir: string): string[] =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    // A lock is no state: its writer may be about to let go of it.
    .filter((e) => e.isFile() && !(e.parentPath ?? e.path).endsWith(LOCK))
    .map((e) => `${e.name} ${readFileSync(join(e.parentPath ?? e.path, e.name), "base64")}`)
    .sort();

test("beside cancel() or dispose() it is one to go on from, or rejects and writes nothing", async () => {
  let engine = await engineOf(configs.even);
  const whole = await (await engine.finetune(job)).done;
  const bits = contentBits(engine, "job");
  const dir = join(scratch(), "checkpoint");
  const resume = async (e: Engine): Promise<void> => {
    const again = await (await e.finetune({ ...job, resume: dir })).done;
    assert.equal(again.losses, whole.losses);
    assert.is(contentBits(e, "job"), bits);
  };
  const next = generator("checkpoints");
  let before: string[] = [];
  const ends = { taken: 0, rejected: 0 };
  for (let i = 0; i < rounds(8, 100); i++) {
    // The first is not disturbed, the second is given up before it can be at rest; every eighth engine is
    // disposed of.
    const how = i === 0 ? "none" : i % 8 === 7 ? "dispose" : "cancel";
    const at = 1 + (next() % 4);
    // Any moment of a step, and of what a checkpoint takes.
    const moment = (ms: number): Promise<void> => new Promise((r) => setTimeout(r, next() % ms));
    let ended = Promise.resolve([] as PromiseSettledResult<void>[]);
    const running = await engine.finetune({
      ...job,
      onEvent: (e) => {
        if (e.type !== "step" || e.step !== at) return;
        ended = (async () => {
          if (i !== 1) await moment(20);
          const taken = running.checkpoint(dir);
          const settled = Promise.allSettled([taken]);
          if (how === "none") await taken;
          if (i !== 1) await moment(40);
          if (how === "cancel") running.cancel();
          if (how === "dispose") await engine.dispose();
          return settled;
        })();
      },
    });
    await running.done.catch(() => {});
    const [end] = await ended;
    if (how === "dispose") engine = await engineOf(configs.even);
    if (end!.status === "rejected") {
      assert.match(String((end as PromiseRejectedResult).reason), /WEFT_|AbortError/);
      assert.equal(states(dir), before, "nothing was written");
      ends.rejected++;
    } else {
      before = states(dir);
      ends.taken++;
    }
    await resume(engine);
  }
  await engine.dispose();
  assert.ok(ends.taken > 0 && ends.rejected > 0, JSON.stringify(ends));
});
test.run();
