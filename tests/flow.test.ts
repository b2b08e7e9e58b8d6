/** Back-pressure: a slow reader pauses its own sequence, and nobody else; what is said are the same bits. */
import * as assert from "uvu/assert";
import type { Engine } from "../sdk/index.ts";
import { createWorkerEngine } from "../sdk/worker/index.ts";
import { batchOf, bundle, collect, configs, engineOf, idsOf } from "./support/engines.ts";
import { suite } from "./support/suite.ts";
import { fromSources } from "./support/worker.ts";

const test = suite("flow");
const vocab = 128;
const data = batchOf(vocab);
const eos = [configs.even.eos_token_id].flat() as number[];
/** An answer of 60 tokens, greedy or drawn. */
const asked = (i: number) => ({
  ...{ prompt: idsOf(`flow ${i}`, 6 + (i % 4), vocab), maxTokens: 60 },
  logitBias: Object.fromEntries(eos.map((id) => [id, -100])),
  ...(i % 2 && { temperature: 1, repetitionPenalty: 1.2, presencePenalty: 0.5, seed: i }),
});
type Stream = ReturnType<Engine["generate"]>;
async function rest(stream: Stream): Promise<number[]> {
  const ids: number[] = [];
  for await (const { id } of stream) ids.push(id);
  return ids;
}
const capacities = { sequences: 4, blocks: 16, context: 96 };

test("unread streams stand still; others, a job and other adapters go on in their place; same tokens", async () => {
  const rows = { generate: 0 };
  await using engine = await engineOf(configs.even, {
    capacities: { ...capacities, slots: 2 },
    load: { prefixCache: true, onStep: (t) => (rows.generate += t.rows.generate) },
  });
  for (const name of ["a", "b", "c"])
    await (await engine.finetune({ name, data, steps: 1, batchSize: 5, rank: 4, learningRate: 0.1 })).done;
  const of = (i: number) => ({ ...asked(i), ...([1, 2].includes(i) && { adapter: "ab"[i - 1]! }) });
  const want = await Promise.all([0, 1, 2, 3].map((i) => collect(engine, of(i))));
  rows.generate = 0;
  // As many as there is room for, of which one token is read each.
  const slow = [0, 1, 2, 3].map((i) => engine.generate(of(i)));
  const first = await Promise.all(slow.map((s) => s.next()));
  // Whoever comes then, for whatever adapter, is served to the end; so is a job.
  const sums = { a: 0.5, c: 0.5 };
  for (const adapter of [undefined, "c", "b", sums])
    assert.is((await engine.complete({ ...asked(0), adapter })).ids.length, 60);
  const others = rows.generate;
  const job = await engine.finetune({ name: "beside", data, steps: 3, batchSize: 5, rank: 4 });
  await job.done;
  assert.is(rows.generate, others, "what is paused takes no rows");
  // Prompts, what was read and 16 unread tokens of each; a step is on its way when the last is told.
  const own = others - 4 * (6 + 59);
  assert.ok(own <= 4 * (9 + 1 + 17 + 1), `${own} rows for streams that nobody reads`);
  assert.ok(engine.core.busy, "they wait for their readers");
  for (const [i, s] of slow.entries()) {
    const ids = [first[i]!.value!.id, ...(await rest(s))];
    assert.equal(ids, want[i]!.ids, `stream ${i}`);
  }
  assert.not(engine.core.busy);
  const { blocks } = engine.memory();
  assert.is(blocks.free, blocks.total);
});

test("what was preempted is cancelled, aborted and disposed of as what waits", async () => {
  const engine = await engineOf(configs.even, { capacities, load: { maxQueued: 4 } });
  const controller = new AbortController();
  const slow = [0, 1, 2, 3].map((i) =>
    engine.generate({ ...asked(i), ...(i === 1 && { signal: controller.signal }) }),
  );
  for (const s of slow) await s.next();
  await Promise.all([4, 5, 6, 7].map((i) => engine.complete(asked(i))));
  await slow[0]!.return();
  controller.abort();
  // What it had said is there; then the abort.
  const heard = await rest(slow[1]!).then(
    () => null,
    (e) => e as Error,
  );
  assert.is(heard?.name, "AbortError");
  // The queue is full when they come back: they wait for a place in it, and have it before who comes later.
  const running = [0, 1, 2, 3].map((i) => engine.generate(asked(8 + i)));
  for (const s of running) await s.next();
  const ends = [2, 3].map((i) => rest(slow[i]!));
  assert.equal(
    (await Promise.all(ends)).map((ids) => ids.length),
    [59, 59],
  );
  const left = [0, 1].map((i) => engine.generate(asked(20 + i)));
  for (const s of left) await s.next();
  await Promise.all([4, 5, 6, 7].map((i) => engine.complete(asked(i))));
  await engine.dispose();
  for (const s of [...left, ...running])
    assert.is(
      await rest(s).then(
        () => null,
        (e) => (e as { code?: string }).code,
      ),
      "WEFT_DISPOSED",
    );
});

test("through a worker: a reader that sleeps pauses its own sequence", async () => {
  const dir = await bundle(configs.even, { capacities });
  await using there = await createWorkerEngine(dir, { device: "wasm", threads: 1, worker: fromSources });
  const { ids } = await there.complete({ ...asked(0), maxTokens: 90 });
  const slow = there.generate({ ...asked(0), maxTokens: 90 });
  const first = await slow.next();
  for (let i = 4; i < 8; i++) assert.is((await there.complete(asked(i))).ids.length, 60);
  const { blocks } = await there.memory();
  assert.ok(blocks.free < blocks.total, "it is not done, and nobody needed its blocks");
  assert.equal([first.value!.id, ...(await rest(slow as Stream))], ids);
});
test.run();
