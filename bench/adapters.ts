/**
 * Many adapters, few slots: 5 to 500 adapters of mixed methods and ranks behind 16 slots, requests drawn by
 * Zipf's law, beside one adapter for all, one batch per adapter, and merge-and-swap, in one run. More
 * requests are in flight than there are slots, so that adapters wait for one another: the time to the first
 * token shows who waits.
 *
 *   npm run -s bench -- adapters [--device wasm|software|webgpu] [--requests 96] [--most 500] [--flight 32]
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type AdapterConfig, defaultConfig, placedIn } from "../runtime/content.ts";
import { initialContent } from "../runtime/initial.ts";
import { compile, type DeviceChoice, type Engine, load } from "../sdk/index.ts";
import { ids, quantile, table, timed } from "./measure.ts";
import { randomModel } from "./model.ts";

/** Adapters with random tensors: what they say does not matter here. */
async function publish(engine: Engine, n: number): Promise<void> {
  const kinds: Partial<AdapterConfig>[] = [
    { method: "lora", rank: 16 },
    { method: "s2ft" },
    { method: "lora", rank: 4 },
    { method: "ia3" },
    { method: "lora", rank: 8, targetModules: ["q_proj", "v_proj"] },
  ];
  const { manifest, core } = engine;
  for (let i = 0; i < n; i++) {
    const kind = kinds[i % kinds.length]!;
    const content = await initialContent(
      manifest,
      { ...defaultConfig(manifest, kind.method!), ...kind },
      i,
      async () => ({
        scores: () => Promise.reject(new Error("random selections need no scores")),
        bias: () => Promise.reject(new Error("no biases")),
        matrix: () => Promise.reject(new Error("random selections need no weights")),
        tuned: null,
        taken: () => new Set(),
        embedding: () => Promise.reject(new Error("no tokens of their own")),
      }),
    );
    // Zero tensors are moved off zero, so that nothing is skipped for being nothing.
    content.tensors.forEach((words, l) => {
      const states = content.branches[l]!;
      for (const b of manifest.branches)
        for (const { t, values } of placedIn(manifest, states, words, l, b.index))
          if (t.init === "zeros") values.forEach((_, k) => (values[k] = (((k * 31 + i) % 17) - 8) * 1e-4));
    });
    core.adapters.publish(`a${i}`, content);
  }
}

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      device: { type: "string", default: "wasm" },
      requests: { type: "string", default: "96" },
      most: { type: "string", default: "500" },
      flight: { type: "string", default: "32" },
    },
  });
  const device = o.device as DeviceChoice;
  const target = device === "wasm" ? "wasm" : "webgpu";
  const out = join(tmpdir(), `weft-bench-adapters-${target}.weft`);
  await compile(randomModel(), out, {
    targets: [target],
    train: [],
    methods: ["lora", "s2ft", "ia3"],
    capacities: {
      context: 128,
      tokens: 256,
      headRows: 32,
      slots: 16,
      rank: 16,
      blocks: 256,
      sequences: Math.max(32, Number(o.flight)),
      jobs: 1,
    },
  });
  const engine = await load(out, { device });
  await publish(engine, Number(o.most));
  const n = Number(o.requests);
  const vocab = engine.manifest.model.vocab;
  const newTokens = 24;
  const concurrent = Number(o.flight);
  /** Request → adapter, by Zipf's law over `count` adapters. */
  const zipf = (count: number): string[] => {
    const weights = Array.from({ length: count }, (_, k) => 1 / (k + 1));
    const total = weights.reduce((a, b) => a + b, 0);
    return Array.from({ length: n }, (_, i) => {
      let u = ((Math.imul(i + 1, 0x9e3779b9) >>> 0) / 2 ** 32) * total;
      let k = 0;
      while (k < count - 1 && u > weights[k]!) u -= weights[k++]!;
      return `a${k}`;
    });
  };
  const gaps: number[] = [];
  const firsts: number[] = [];
  const serve = async (list: readonly (string | null)[]): Promise<number> => {
    const queue = list.map((adapter, i) => ({ adapter, i }));
    gaps.length = 0;
    firsts.length = 0;
    const worker = async (): Promise<void> => {
      for (let r = queue.shift(); r; r = queue.shift()) {
        let last = 0;
        const asked = performance.now();
        for await (const _p of engine.core.generate({
          prompt: ids(16, r.i, vocab),
          maxTokens: newTokens,
          ...(r.adapter && { adapter: r.adapter }),
        })) {
          const now = performance.now();
          if (last) gaps.push(now - last);
          else firsts.push(now - asked);
          last = now;
        }
      }
    };
    const [ms] = await timed(() => Promise.all(Array.from({ length: concurrent }, worker)));
    return (list.length * newTokens * 1000) / ms;
  };
  await serve(zipf(5));
  const one = await serve(Array(n).fill("a0"));
  const rows: string[][] = [
    ["", "tokens/s", "of one adapter", "gap p50 ms", "gap p99 ms", "first p50 ms", "first p99 ms"],
  ];
  const put = (name: string, rate: number): void =>
    void rows.push([
      name,
      rate.toFixed(0),
      (rate / one).toFixed(2),
      quantile(gaps, 0.5).toFixed(2),
      quantile(gaps, 0.99).toFixed(2),
      quantile(firsts, 0.5).toFixed(1),
      quantile(firsts, 0.99).toFixed(1),
    ]);
  const base = await serve(Array(n).fill(null));
  put("base, no adapter", base);
  put("one adapter (LoRA 16) for all", await serve(Array(n).fill("a0")));
  const mixed: Record<number, number> = {};
  const firstP99: Record<number, number> = {};
  for (const count of [5, 16, 50, 200, 500].filter((c) => c <= Number(o.most))) {
    mixed[count] = await serve(zipf(count));
    firstP99[count] = quantile(firsts, 0.99);
    put(`${count} adapters, 16 slots, one batch of all`, mixed[count]!);
  }
  // The alternatives, for 16 adapters: requests sorted by adapter, one adapter at a time.
  const groups = new Map<string, string[]>();
  for (const a of zipf(16)) groups.set(a, [...(groups.get(a) ?? []), a]);
  const [perAdapter] = await timed(async () => {
    for (const g of groups.values()) await serve(g);
  });
  rows.push([
    "16 adapters, one batch per adapter",
    ((n * newTokens * 1000) / perAdapter).toFixed(0),
    ((n * newTokens * 1000) / perAdapter / one).toFixed(2),
    "",
    "",
  ]);
  let switches = 0;
  let swapping = 0;
  const mergeable = [...groups].filter(
    ([a]) => engine.manifest.methods[engine.core.adapters.find(a).content.config.method]!.change !== null,
  );
  const served = mergeable.reduce((k, [, g]) => k + g.length, 0);
  const [merged] = await timed(async () => {
    for (const [a, g] of mergeable) {
      swapping += (await engine.merge(a)).ms;
      switches++;
      await serve(Array(g.length).fill(null));
    }
  });
  await engine.merge(null);
  const swapRate = (served * newTokens * 1000) / merged;
  rows.push([
    `merge and swap (${(swapping / switches).toFixed(0)} ms a switch)`,
    swapRate.toFixed(0),
    (swapRate / one).toFixed(2),
    "",
    "",
  ]);
  console.log(
    `${engine.manifest.model.parameters} parameters on ${engine.device.name}; ${n} requests of 16 + ` +
      `${newTokens} tokens, ${concurrent} at a time`,
  );
  table(rows);
  await engine.dispose();
  console.log(
    JSON.stringify({
      bench: "adapters",
      device,
      ok: true,
      base,
      one,
      mixed,
      inFlight: concurrent,
      firstP99,
      perAdapter: (n * newTokens * 1000) / perAdapter,
      mergeAndSwap: swapRate,
      switchMs: swapping / switches,
    }),
  );
}
