/**
 * A long day in short: random requests, aborts, jobs, checkpoints, publishes, adapters in and out, until
 * nothing grows. Every answer that can be told beforehand is compared bit for bit. The long form runs for
 * half an hour on Wasm and ten minutes on a software WebGPU adapter.
 */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import * as assert from "uvu/assert";
import { type Engine, load } from "../sdk/index.ts";
import { batchOf, bundle, collect, configs, contentBits, idsOf, inUse } from "./support/engines.ts";
import { generator } from "./support/random.ts";
import { long, rounds } from "./support/scale.ts";
import { suite } from "./support/suite.ts";
import { scratch } from "./support/tiny.ts";

const test = suite("soak");
const vocab = configs.even.vocab_size;
setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** What a process holds, after garbage is gone. */
interface Held {
  readonly rss: number;
  readonly heap: number;
  readonly threads: number;
  readonly handles: number;
}
const entries = (path: string): number => (existsSync(path) ? readdirSync(path).length : 0);
async function held(): Promise<Held> {
  for (let i = 0; i < 3; i++) {
    collectGarbage();
    await new Promise((r) => setImmediate(r));
  }
  const { rss, heapUsed, arrayBuffers } = process.memoryUsage();
  return {
    rss: rss / 2 ** 20,
    heap: (heapUsed + arrayBuffers) / 2 ** 20,
    threads: entries("/proc/self/task"),
    handles: entries("/proc/self/fd"),
  };
}
const median = (xs: readonly number[]): number => [...xs].sort((a, b) => a - b)[xs.length >> 1]!;
/**
 * Later samples hold what earlier ones held: medians of two stretches, the second no more than `slack` above.
 */
function flat(name: string, samples: readonly Held[]): void {
  const quarter = Math.max(1, Math.floor(samples.length / 4));
  // A short form ends before an allocator has settled.
  const slacks = { rss: long ? 24 : 96, heap: 6, threads: 1, handles: 2 };
  for (const [key, slack] of Object.entries(slacks)) {
    const of = (from: number): number =>
      median(samples.slice(from, from + quarter).map((s) => s[key as keyof Held]));
    const [early, late] = [of(quarter), of(samples.length - quarter)];
    const line = `${name}: ${key} ${early.toFixed(1)} early, ${late.toFixed(1)} late`;
    if (long) console.log(`  ${line}`);
    assert.ok(late <= early + slack, line);
  }
}

interface Soak {
  readonly turns: () => boolean;
  readonly load: Parameters<typeof load>[1];
  readonly targets: readonly ["wasm"] | readonly ["webgpu"];
}
/** Requests, jobs and adapters of one engine until `turns` says stop; what each must give is known before. */
async function soak(name: string, o: Soak): Promise<void> {
  const path = await bundle(configs.even, {
    targets: o.targets,
    train: ["lora", "s2ft"],
    capacities: { slots: 8, savedRows: 192, keptRows: 192 },
  });
  const dir = scratch("weft-soak-");
  await using engine: Engine = await load(path, o.load);
  const rows = batchOf(vocab);
  const job = { data: rows, batchSize: 3, steps: 4, learningRate: 5e-3, seed: 4, rank: 4 } as const;
  for (const [k, method] of (["lora", "s2ft", "lora"] as const).entries()) {
    const { rank, ...rest } = job;
    const options = method === "lora" ? { ...rest, rank, seed: k } : { ...rest, seed: k };
    await (await engine.finetune({ ...options, method, name: `kept${k}` })).done;
    await engine.adapters.get(`kept${k}`).save(join(dir, `kept${k}`));
  }
  const prompts = Array.from({ length: rounds(3, 6) }, (_, i) => idsOf(`soak${i}`, 5 + i * 13, vocab));
  const adapters = [undefined, "kept0", "kept1@1", "kept2", { kept0: 0.5, kept2: 0.25 }] as const;
  const ask = (p: number, a: number) => ({
    prompt: prompts[p]!,
    maxTokens: 10 + p,
    temperature: p % 2 ? 0.9 : 0,
    seed: p,
    ...(adapters[a] && { adapter: adapters[a] }),
  });
  const want = new Map<string, string>();
  for (const p of prompts.keys())
    for (const a of adapters.keys()) want.set(`${p} ${a}`, JSON.stringify(await collect(engine, ask(p, a))));
  const taught = await (await engine.finetune({ ...job, name: "told" })).done;
  const told = contentBits(engine, "told");
  engine.adapters.remove("told");
  const free = inUse(engine);

  const next = generator(name);
  const below = (n: number): number => next() % n;
  const counts = { answers: 0, aborted: 0, jobs: 0, cancelled: 0, resumed: 0, saved: 0 };
  const answer = async (): Promise<void> => {
    const [p, a] = [below(prompts.length), below(adapters.length)];
    const got = JSON.stringify(await collect(engine, ask(p, a)));
    assert.is(got, want.get(`${p} ${a}`), `${name}: prompt ${p}, adapter ${a}`);
    counts.answers++;
  };
  const aborted = async (): Promise<void> => {
    const c = new AbortController();
    const after = below(6);
    let n = 0;
    try {
      for await (const _ of engine.generate({ ...ask(below(prompts.length), below(5)), signal: c.signal })) {
        if (n++ < after) continue;
        if (after % 2) break;
        c.abort();
      }
    } catch (e) {
      assert.is((e as Error).name, "AbortError");
    }
    counts.aborted++;
  };
  const trained = async (id: number): Promise<void> => {
    const kind = below(3);
    const started = await engine.finetune({ ...job, name: `job${id}` });
    if (kind === 1) {
      const checkpoint = started.checkpoint(join(dir, "checkpoint")).then(
        () => true,
        () => false,
      );
      if (below(2)) await checkpoint;
      started.cancel();
      await started.done.catch(() => {});
      counts.cancelled++;
      if (!(await checkpoint)) return;
      const resume = join(dir, "checkpoint");
      const again = await engine.finetune({ ...job, name: `job${id}`, resume }).catch((e: Error) => {
        // Options are the name's too, and another job may have written here since.
        assert.match(e.message, /options/);
        return null;
      });
      if (!again) return;
      assert.equal((await again.done).losses, taught.losses);
      counts.resumed++;
    } else {
      assert.equal((await started.done).losses, taught.losses, `${name}: losses of job ${id}`);
      counts.jobs++;
    }
    assert.is(contentBits(engine, `job${id}`), told, `${name}: what job ${id} learned`);
    if (kind === 2) {
      await engine.adapters.get(`job${id}`).save(join(dir, "saved"));
      await engine.adapters.load(`read${id}`, join(dir, "saved"));
      assert.is(contentBits(engine, `read${id}`), told);
      engine.adapters.remove(`read${id}`);
      counts.saved++;
    }
    engine.adapters.remove(`job${id}`);
  };
  const samples: Held[] = [];
  for (let id = 0; o.turns(); id++) {
    const work: Promise<void>[] = Array.from({ length: 1 + below(8) }, () =>
      below(4) ? answer() : aborted(),
    );
    if (below(2)) work.push(trained(id));
    await Promise.all(work);
    if (!long || id % 8 === 0) samples.push(await held());
  }
  if (long) console.log(`  ${name}: ${JSON.stringify(counts)}`);
  flat(name, samples);
  assert.equal(inUse(engine), free);
  rmSync(dir, { recursive: true });
}
/** `n` turns in the short form, minutes in the long one. */
const turns = (n: number, minutes: number): (() => boolean) => {
  const end = performance.now() + minutes * 60_000;
  let left = n;
  return () => (long ? performance.now() < end : left-- > 0);
};

test("Wasm: requests, jobs and adapters come and go; every answer is the one it was, and nothing grows", () =>
  soak("wasm", { turns: turns(12, 30), load: { device: "wasm", threads: 2 }, targets: ["wasm"] }));

test("WebGPU, on a software adapter: the same", () =>
  soak("webgpu", { turns: turns(3, 10), load: { device: "software" }, targets: ["webgpu"] }));

test("engines opened and disposed of give everything back", async () => {
  const path = await bundle(configs.even);
  const prompt = idsOf("open", 6, vocab);
  const samples: Held[] = [];
  for (let i = 0; i < rounds(6, 100); i++) {
    await using engine = await load(path, { device: "wasm", threads: 2 });
    const job = await engine.finetune({ name: "left", data: batchOf(vocab), steps: 100 });
    assert.is((await collect(engine, { prompt, maxTokens: 3 })).ids.length, 3);
    job.done.catch(() => {});
    await engine.dispose();
    samples.push(await held());
  }
  flat("opened and disposed", samples);
});
test.run();
