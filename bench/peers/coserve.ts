/**
 * One way of sharing the machine between streams and jobs, in a process: node --import tsx coserve.ts BUNDLE
 * THREADS LANES [sliced]. `sliced`: two engines that have the machine in turns.
 */
import { type Engine, load } from "../../sdk/index.ts";
import { ids } from "../measure.ts";
import { serve } from "./serve.mjs";

const [bundle, threads, lanes, mode] = process.argv.slice(2);
const options = { device: "wasm", threads: Number(threads), lanes: Number(lanes) as 1 | 2 } as const;
const streaming: Engine = await load(bundle!, options);
const training: Engine = mode === "sliced" ? await load(bundle!, options) : streaming;
const { vocab } = streaming.manifest.model;

// Turns: an engine keeps the machine for a slice, if it has something to run, and gives it away between two
// steps.
let slice = 100;
if (mode === "sliced") {
  let owner: Engine = streaming;
  let since = performance.now();
  const waiting = new Set<Engine>();
  const idle = (e: Engine): boolean => (e === streaming ? !on : !busy);
  for (const engine of [streaming, training]) {
    const other = engine === streaming ? training : streaming;
    const { device } = engine.core;
    const run = device.run.bind(device);
    const pass = (to: Engine): void => {
      owner = to;
      since = performance.now();
    };
    (device as { run: typeof run }).run = async (...args) => {
      waiting.add(engine);
      // Who does not want its turn loses it.
      while (owner !== engine) {
        if (idle(owner)) pass(engine);
        else await new Promise((resolve) => setTimeout(resolve, 1));
      }
      waiting.delete(engine);
      const out = await run(...args);
      if (performance.now() - since > slice && waiting.has(other)) pass(other);
      return out;
    };
  }
}
let on = false;
let busy = false;
let served = 0;
let gaps: number[] = [];
let started = 0;
let streams: Promise<unknown> = Promise.resolve();
/** Adapters that streams use in turn, beside the base. */
const kept: (string | undefined)[] = [undefined];
let beside: readonly (string | undefined)[] = [undefined];
async function stream(i: number): Promise<void> {
  const adapter = beside[i % beside.length];
  for (let k = 0; on; k++) {
    let last = 0;
    for await (const _ of streaming.core.generate({
      prompt: ids(16, i + k * 31, vocab),
      maxTokens: 200,
      ...(adapter && { adapter }),
    })) {
      const now = performance.now();
      if (last) gaps.push(now - last);
      last = now;
      served++;
      if (!on) break;
    }
  }
}
const count = (): void => {
  served = 0;
  gaps = [];
  started = performance.now();
};
let jobs = 0;
await serve({
  slice: async (q: { ms: number }) => {
    slice = q.ms;
    return {};
  },
  /** Streams that run until `stop`; `mark` begins to count, once they are under way. */
  start: async (q: { batch: number; adapters: boolean }) => {
    on = true;
    beside = q.adapters ? kept : [undefined];
    count();
    streams = Promise.all(Array.from({ length: q.batch }, (_, i) => stream(i)));
    return {};
  },
  mark: async () => {
    count();
    return {};
  },
  stop: async () => {
    const ms = performance.now() - started;
    const out = { ms, served, gaps };
    on = false;
    await streams;
    return out;
  },
  wait: async (q: { ms: number }) => {
    await new Promise((resolve) => setTimeout(resolve, q.ms));
    return {};
  },
  /**
   * A LoRA and an S2FT job side by side, each `steps` steps of one row of 128 tokens; `keep`: streams can use
   * what they made.
   */
  jobs: async (q: { steps: number; keep?: boolean }) => {
    const t0 = performance.now();
    busy = true;
    const all = await Promise.all(
      ["lora", "s2ft"].map((method) =>
        training.finetune({
          name: `${method}${jobs++}`,
          method,
          data: Array.from({ length: q.steps }, (_, s) => ({
            input_ids: ids(128, s, vocab),
            labels: ids(128, s, vocab),
          })),
          steps: q.steps,
          batchSize: 1,
        }),
      ),
    );
    await Promise.all(all.map((j) => j.done));
    busy = false;
    const ms = performance.now() - t0;
    for (const { name } of all)
      if (q.keep) {
        if (streaming !== training)
          streaming.core.adapters.publish(name, training.core.adapters.find(name).content);
        kept.push(name);
      } else training.adapters.remove(name);
    return { ms };
  },
});
