/**
 * The crew of threads: what every command list may rely on, whoever plays it; and the two lists of an engine.
 */
import * as assert from "uvu/assert";
import { compileKernels } from "../compiler/emit/asc.ts";
import { openCrew } from "../runtime/crew.ts";
import { type Engine, type FinetuneOptions, load, WeftError } from "../sdk/index.ts";
import {
  atRest,
  batchOf,
  bundle,
  collect,
  configs,
  contentBits,
  engineOf,
  idsOf,
} from "./support/engines.ts";
import { pause, watch } from "./support/lists.ts";
import { generator } from "./support/random.ts";
import { suite } from "./support/suite.ts";

const test = suite("crew");
const vocab = 128;

/**
 * Eight words a command: how often each part ran, of how many parts, and whether the command before it was
 * not over.
 */
const RECORD = 32;
const marker = `
export function mark(bind: usize, meta: usize, scratch: usize, part: i32, parts: i32): void {
  let ran: i32 = 0;
  for (let p: usize = 0; p < 4; p++) ran += load<i32>(meta - ${RECORD} + (p << 2));
  if (ran != load<i32>(meta - ${RECORD}, 16)) store<i32>(meta, 1, 20);
  const n: i32 = (<i32>(meta >> 5) * 7 + part * 13) % 61 * 20;
  for (let i: i32 = 0; i < n; i++) store<i32>(scratch, i);
  store<i32>(meta + (<usize>part << 2), load<i32>(meta + (<usize>part << 2)) + 1);
  store<i32>(meta, parts, 16);
}`;

test("every part of a kernel runs once, after the one before, while two lanes trade", async () => {
  const module = await WebAssembly.compile(
    (await compileKernels(marker, { cache: true, quick: true })) as BufferSource,
  );
  for (const threads of [2, 4]) {
    const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
    const most = 6000;
    const metas = [2 ** 20, 2 ** 21].map((at) => at + RECORD);
    const crew = await openCrew({
      module,
      memory,
      kernels: ["mark"],
      threads,
      control: 1024,
      scratch: 2 ** 19,
      scratchBytes: 1024,
      lanes: metas.map((meta) => ({ bind: 0, meta })),
    });
    const traded = [0, 0];
    const shares = new Set<string>();
    await Promise.all(
      [0, 1].map(async (lane) => {
        const next = generator(`lane${lane} of ${threads}`);
        for (let list = 0; list < 3000; list++) {
          // Long ones, to be stopped in the middle; and many so short that they are over before who began
          // them looks again.
          const short = list >= 25 && traded.every((n) => n > 2);
          const n = short ? 1 : 1 + (next() % (list % 5 ? 400 : most));
          new Int32Array(memory.buffer, metas[lane]! - RECORD, (n + 1) * 8).fill(0);
          await crew.play(
            lane,
            Int32Array.from(Array.from({ length: n }, (_, c) => [0, 0, c * RECORD, 1, 1, 1]).flat()),
          );
          const records = new Int32Array(memory.buffer, metas[lane]!, n * 8);
          const parts = new Set<number>();
          for (let c = 0; c < n; c++) {
            const [a, b, d, e, of, early] = records.subarray(c * 8, c * 8 + 6);
            assert.equal(
              [a, b, d, e],
              [0, 1, 2, 3].map((p) => (p < of! ? 1 : 0)),
              `lane ${lane}, list ${list}, command ${c} of ${of} parts`,
            );
            assert.is(
              early,
              0,
              `lane ${lane}, list ${list}: command ${c} began before the one before it was over`,
            );
            parts.add(of!);
            shares.add(`${lane}: ${of}`);
          }
          if (parts.size > 1) traded[lane]!++;
          if (!short && next() % 2) crew.rest(lane);
          if (!short && next() % 3 === 0) await pause(next() % 4);
        }
        crew.rest(lane);
      }),
    );
    crew.dispose();
    assert.ok(traded[0]! > 2 && traded[1]! > 2, `lists that went on with other members: ${traded}`);
    assert.equal(
      [...shares].sort(),
      threads === 2 ? ["0: 1", "0: 2", "1: 1", "1: 2"] : ["0: 2", "0: 4", "1: 2", "1: 4"],
    );
  }
});

/** Lists of requests that began while one of jobs was on its way, and the other way round. */
function overlaps(engine: Engine): { readonly requests: number; readonly jobs: number } {
  const { device } = engine.core;
  const run = device.run.bind(device);
  const busy = [false, false];
  const count = { requests: 0, jobs: 0 };
  (device as { run: typeof run }).run = async (lane, ...rest) => {
    if (busy[1 - lane]) count[lane ? "jobs" : "requests"]++;
    busy[lane] = true;
    return run(lane, ...rest).finally(() => {
      busy[lane] = false;
    });
  };
  return count;
}
const methods = ["lora", "s2ft", "dora", "sparse"];
const compile = { train: methods, methods };
const job: Omit<FinetuneOptions, "name"> = {
  data: batchOf(vocab),
  batchSize: 5,
  learningRate: 5e-3,
  seed: 5,
  steps: 8,
};

test("law 4 for two lists: jobs beside requests are what one list computes", async () => {
  const answers = new Map<string, unknown>();
  const same = (what: string, value: unknown, where: string): void => {
    if (answers.has(what)) assert.equal(value, answers.get(what), `${what}, ${where}`);
    answers.set(what, value);
  };
  for (const [lanes, threads] of [
    [1, 2],
    [2, 2],
    [2, 3],
  ] as const) {
    await using engine = await engineOf(configs.even, { ...compile, load: { lanes, threads } });
    const count = lanes === 2 ? overlaps(engine) : null;
    const where = `${lanes} lists, ${threads} threads`;
    const first = await engine.finetune({ ...job, name: "first", method: "dora", steps: 1 });
    await first.done;
    const next = generator(where);
    let training = true;
    // Streams that come and go, under an adapter with norms of its own, so that threads are traded in the
    // middle of lists.
    const streams = [0, 1, 2].map(async (i) => {
      for (let turn = 0; training || turn < 4; turn++) {
        const k = turn % 4;
        const said = await collect(engine, {
          prompt: idsOf(`list${i}.${k}`, 3 + ((i * 11 + k * 7) % 40), vocab),
          maxTokens: 5 + i,
          temperature: 0.8,
          seed: i,
          ...(k % 2 && { adapter: "first@1" }),
        });
        same(`stream ${i}.${k}`, said, where);
        await pause(next() % 6);
      }
    });
    for (const pair of [
      ["lora", "s2ft"],
      ["dora", "sparse"],
    ]) {
      const jobs = await Promise.all(pair.map((method) => engine.finetune({ ...job, name: method, method })));
      const ended = await Promise.all(jobs.map((j) => j.done));
      pair.forEach((method, i) => {
        same(`${method}: losses`, ended[i]!.losses, where);
        same(`${method}: weights`, contentBits(engine, method), where);
      });
    }
    training = false;
    await Promise.all(streams);
    if (count)
      assert.ok(
        count.requests > 20 && count.jobs > 5,
        `lists that began beside another: ${JSON.stringify(count)}`,
      );
  }
});

test("what is dropped in mid-list leaves nothing, and gives nothing away before its end", async () => {
  await using engine = await engineOf(configs.even, {
    ...compile,
    capacities: { slots: 3, blocks: 18 },
    load: { threads: 2 },
  });
  const free = engine.memory();
  const ask = { prompt: idsOf("kept", 20, vocab), maxTokens: 12 };
  const first = await engine.finetune({ ...job, name: "first", method: "sparse", steps: 2 });
  const { losses } = await first.done;
  const want = await collect(engine, { ...ask, adapter: "first@1" });
  const next = generator("dropped");
  const seen = watch(engine);
  for (let i = 0; i < 12; i++) {
    // Few blocks and slots: whoever comes takes what somebody has just left.
    const leaving = await engine.finetune({
      ...job,
      name: `leaving${i}`,
      method: methods[i % 4]!,
      steps: 50,
    });
    const others = [0, 1, 2, 3, 4, 5].map((k) => {
      const c = new AbortController();
      setTimeout(() => c.abort(), next() % 25);
      return collect(engine, {
        prompt: idsOf(`gone${i}.${k}`, 9 + k * 15, vocab),
        maxTokens: 30,
        adapter: "first@1",
        signal: c.signal,
      }).catch((e: Error) => assert.is(e.name, "AbortError"));
    });
    await pause(next() % 30);
    leaving.cancel();
    const staying = collect(engine, { ...ask, adapter: "first@1" });
    await leaving.done.catch((e: Error) => assert.is(e.name, "AbortError"));
    const again = await engine.finetune({ ...job, name: `again${i}`, method: "sparse", steps: 2 });
    assert.equal((await again.done).losses, losses, `a job after one that was dropped (${i})`);
    assert.equal(contentBits(engine, `again${i}`), contentBits(engine, "first"));
    assert.equal(await staying, want, `a request beside jobs that were dropped (${i})`);
    await Promise.all(others);
    engine.adapters.remove(`again${i}`);
  }
  assert.equal(seen.wrong, []);
  assert.ok(seen.lists > 200, `${seen.lists} lists`);
  await atRest(engine);
  assert.equal(engine.memory(), free);
});

test("a request aborted under its list keeps its blocks, slot, generation to its end", async () => {
  await using engine = await engineOf(configs.even, { load: { threads: 2 } });
  await (await engine.finetune({ ...job, name: "first", method: "lora", steps: 1 })).done;
  const { device } = engine.core;
  const run = device.run.bind(device);
  const free = engine.memory();
  const c = new AbortController();
  let held: ReturnType<Engine["memory"]> | null = null;
  (device as { run: typeof run }).run = async (lane, ...rest) => {
    if (!held) {
      c.abort();
      await pause(5);
      held = engine.memory();
      assert.throws(() => engine.adapters.remove("first"), /requests in flight/);
    }
    return run(lane, ...rest);
  };
  const said = collect(engine, {
    prompt: idsOf("aborted", 40, vocab),
    maxTokens: 40,
    adapter: "first",
    signal: c.signal,
  });
  assert.is(await said.catch((e: Error) => e.name), "AbortError");
  await atRest(engine);
  assert.is(held!.blocks.free, free.blocks.free - 3, "80 tokens have three blocks");
  assert.is(held!.slots.used, 1);
  assert.equal(engine.memory(), free);
  engine.adapters.remove("first");
});

test("no list touches the slot of a request that waits for room: a job may take it meanwhile", async () => {
  await using engine = await engineOf(configs.even, {
    ...compile,
    capacities: { slots: 1, blocks: 18 },
    load: { threads: 2 },
  });
  await (await engine.finetune({ ...job, name: "first", method: "dora", steps: 1 })).done;
  const ask = { prompt: idsOf("waits", 70, vocab), maxTokens: 10, adapter: "first" };
  const want = await collect(engine, ask);
  const { device, manifest } = engine.core;
  const { blocks, header } = device.plan;
  const units = blocks.step.words + manifest.capacities.units * blocks.unit.words;
  let filled = 0;
  const run = device.run.bind(device);
  (device as { run: typeof run }).run = (lane, commands, meta, reads) => {
    for (const at of new Set(commands.filter((_, i) => i % 6 === 2).map((offset) => offset / 4)))
      if (lane === 0 && at >= units && meta[at + header.indexOf("slot")] === 1) filled++;
    return run(lane, commands, meta, reads);
  };
  // Sixteen of the eighteen blocks: it needs three.
  const others = [0, 1, 2, 3].map((i) =>
    engine.generate({ prompt: idsOf(`o${i}`, 20, vocab), maxTokens: 108 }),
  );
  await Promise.all(others.map((s) => s.next()));
  // Filled anew, and so to be prepared before it is used.
  engine.core.adapters.publish("first", engine.core.adapters.find("first").content);
  const answer = collect(engine, ask);
  for (let i = 0; i < 5; i++) await Promise.all(others.map((s) => s.next()));
  assert.is(filled, 0);
  await Promise.all(others.map((s) => s.return()));
  assert.equal(await answer, want);
  assert.is(filled, 1);
});

test("lanes: one or two, and two only where there are threads and jobs for them", async () => {
  const trains = await bundle(configs.even, {});
  const serves = await bundle(configs.even, { train: [] });
  const refused = async (
    path: string,
    options: { lanes: number; threads?: number },
    says: RegExp,
  ): Promise<void> => {
    const e = await load(path, { device: "wasm", ...(options as { lanes: 1 }) }).then(
      () => null,
      (e: unknown) => e,
    );
    assert.instance(e, WeftError);
    assert.is((e as WeftError).code, "WEFT_OPTION");
    assert.match((e as WeftError).message, says);
  };
  for (const lanes of [0, 3, 1.5]) await refused(trains, { lanes, threads: 2 }, /1 or 2/);
  await refused(trains, { lanes: 2, threads: 1 }, /second thread/);
  await refused(serves, { lanes: 2, threads: 2 }, /--train/);
  for (const [path, threads, lanes] of [
    [trains, 1, 1],
    [trains, 2, 2],
    [serves, 2, 1],
  ] as const) {
    await using engine = await load(path, { device: "wasm", threads });
    assert.is(engine.core.device.lanes, lanes);
  }
});

test("first come, first served with two lists: no job has a list while a request runs", async () => {
  await using engine = await engineOf(configs.even, { policy: "fcfs", load: { threads: 2, lanes: 2 } });
  const running: number[] = [];
  const { device, host } = engine.core;
  const run = device.run.bind(device);
  (device as { run: typeof run }).run = (lane, ...rest) => {
    if (lane === 1)
      running.push(
        Array.from({ length: 16 }, (_, s) => host.exports.kindOf(s)).filter((kind) => kind === 1).length,
      );
    return run(lane, ...rest);
  };
  const j = await engine.finetune({ ...job, name: "j", steps: 4 });
  for (let i = 0; i < 6; i++) {
    await collect(engine, { prompt: idsOf(`first${i}`, 20, vocab), maxTokens: 10 });
    await pause(5);
  }
  await j.done;
  assert.ok(running.length > 4);
  assert.ok(running.every((n) => n === 0));
});
test.run();
