/**
 * weft as a contender in a process of its own:
 * node --import tsx weft.ts BUNDLE [relaxed] [threads] [wasm|webgpu|software]
 */
import { type DeviceChoice, type Engine, load } from "../../sdk/index.ts";
import { ids } from "../measure.ts";
import { median, prompt, serve, timed } from "./serve.mjs";

const [bundle, relaxed, threads, device = "wasm"] = process.argv.slice(2);
const engine: Engine = await load(bundle!, {
  device: device as DeviceChoice,
  threads: Number(threads ?? 2),
  relaxed: relaxed === "relaxed",
});
const { core } = engine;
const { vocab } = engine.manifest.model;
const targetModules = ["q_proj", "k_proj", "v_proj", "o_proj"];

/** The lists and metadata of the last step that `during` ran and `pick` likes best. */
type Run = typeof core.device.run;
let jobs = 0;
async function lora(n: number, steps: number): Promise<number[]> {
  const stamps: number[] = [];
  const row = { input_ids: ids(n, 1, vocab), labels: ids(n, 1, vocab) };
  const job = await engine.finetune({
    name: `job${jobs++}`,
    data: Array.from({ length: steps }, () => row),
    steps,
    batchSize: 1,
    rank: 16,
    targetModules,
    onEvent: (e) => {
      if (e.type === "step") stamps.push(performance.now());
    },
  });
  await job.done;
  engine.adapters.remove(`job${jobs - 1}`);
  return stamps.slice(1).map((t, i) => t - stamps[i]!);
}
async function prefill(n: number, seed: number): Promise<void> {
  for await (const _ of core.generate({ prompt: prompt(n, seed), maxTokens: 1 }));
}
async function decode(batch: number, tokens: number): Promise<number> {
  const stamps: number[] = [];
  await Promise.all(
    Array.from({ length: batch }, async (_, i) => {
      for await (const _ of core.generate({ prompt: prompt(31, i), maxTokens: tokens }))
        if (!i) stamps.push(performance.now());
    }),
  );
  return (stamps.at(-1)! - stamps[2]!) / (stamps.length - 3);
}
let seed = 0;
/** The compiler comes only when it is asked for: it takes more memory than a model. */
const machine = async (relaxed: boolean) =>
  (await import("../machine.ts")).machine(relaxed, Number(threads ?? 2));
await serve({
  device: async () => ({ name: engine.device.name }),
  matmul: async ({ m, k, n }: Record<"m" | "k" | "n", number>) => {
    const here = await machine(relaxed === "relaxed");
    const ms = await here.gemm(m, k, n);
    here.end();
    return { ms };
  },
  bandwidth: async () => {
    const here = await machine(false);
    const rate = await here.bandwidth();
    here.end();
    return { rate };
  },
  greedy: async (q: { ids: number[]; count: number }) => {
    const out: number[] = [];
    for await (const e of core.generate({ prompt: q.ids, maxTokens: q.count })) out.push(e.id);
    return { ids: out };
  },
  prefill: async (q: { n: number }) => ({ ms: await timed(() => prefill(q.n, seed++)) }),
  decode: async (q: { batch: number; tokens: number }) => ({ ms: await decode(q.batch, q.tokens) }),
  lora: async (q: { n: number }) => ({ ms: Math.min(...(await lora(q.n, 3))) }),
  /** Milliseconds of each kernel's launches in one step of a kind, each kernel's list played alone. */
  kernels: async (q: { of: "decode" | "prefill" | "lora" }) => {
    const { device } = core;
    const run = device.run.bind(device);
    const lists: Parameters<Run>[] = [];
    (device as { run: Run }).run = (lane, commands, meta, reads) => {
      lists.push([lane, commands.slice(), meta.slice(), reads]);
      return run(lane, commands, meta, reads);
    };
    if (q.of === "decode") await decode(1, 4);
    else if (q.of === "prefill") await prefill(128, 1);
    else await lora(128, 1);
    (device as { run: Run }).run = run;
    const chosen = q.of === "decode" ? [lists.at(-1)!] : q.of === "prefill" ? [lists[0]!] : lists;
    const names = Object.keys(device.plan.kernels);
    const out: Record<string, number> = {};
    for (const [lane, commands, meta] of chosen) {
      const kinds = new Map<number, number[]>();
      for (let i = 0; i < commands.length; i += 6)
        kinds.set(commands[i]!, [...(kinds.get(commands[i]!) ?? []), ...commands.slice(i, i + 6)]);
      for (const [k, list] of kinds) {
        const words = Int32Array.from(list);
        const ms: number[] = [];
        for (let i = 0; i < (q.of === "lora" ? 1 : 5); i++) {
          const t0 = performance.now();
          await run(lane, words, meta, []);
          ms.push(performance.now() - t0);
        }
        out[names[k]!] = (out[names[k]!] ?? 0) + median(ms);
      }
    }
    return { kernels: out };
  },
});
