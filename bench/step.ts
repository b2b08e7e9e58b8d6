/**
 * One step of everything: prefill and decode at batch 1, 4, 16; a fine-tuning step for full and LoRA;
 * launches, pipelines, encode time; the co-serving gain G and inter-token latency with jobs, beside inference
 * alone and fine-tuning alone in the same run.
 *
 *   npm run -s bench -- step [--device wasm|software|webgpu] [--model random|story] [--repeats 3]
 */

import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { isForMany } from "../runtime/bundle.ts";
import { compile, type DeviceChoice, type Engine, load } from "../sdk/index.ts";
import { ids, median, quantile, spread, table, timed } from "./measure.ts";
import { randomModel } from "./model.ts";

/** `batch` streams of `tokens` tokens each, after a prompt of 16: inter-token gaps and the whole time. */
async function decode(
  engine: Engine,
  batch: number,
  tokens: number,
): Promise<{ ms: number; gaps: number[] }> {
  const gaps: number[] = [];
  const vocab = engine.manifest.model.vocab;
  const [ms] = await timed(() =>
    Promise.all(
      Array.from({ length: batch }, async (_, i) => {
        let last = 0;
        for await (const _p of engine.core.generate({ prompt: ids(16, i, vocab), maxTokens: tokens })) {
          const now = performance.now();
          if (last) gaps.push(now - last);
          last = now;
        }
      }),
    ),
  );
  return { ms, gaps };
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: "string", default: "wasm" },
      model: { type: "string", default: "random" },
      repeats: { type: "string", default: "3" },
    },
  });
  const device = values.device as DeviceChoice;
  const target = device === "wasm" ? "wasm" : "webgpu";
  const software = device === "software";
  const repeats = Number(values.repeats);
  const folder =
    values.model === "story"
      ? fileURLToPath(new URL("../examples/model/story", import.meta.url))
      : randomModel();
  const open = async (train: "lora" | "full"): Promise<Engine> => {
    const out = join(tmpdir(), `weft-bench-${values.model}-${train}-${target}.weft`);
    await compile(folder, out, {
      targets: [target],
      train: [train],
      capacities: {
        context: 256,
        tokens: 256,
        headRows: 32,
        savedRows: 1024,
        keptRows: 1024,
        quantum: 32,
        unitRows: 128,
        units: 32,
        slots: 4,
        jobs: 2,
        rank: 16,
        blocks: 256,
        sequences: 48,
      },
    });
    return load(out, { device });
  };
  const tokens = software ? 12 : 64;
  const rows = (seed: number, n: number, vocab: number) =>
    Array.from({ length: n }, (_, i) => ({ input_ids: ids(129, seed * 100 + i, vocab) }));
  const result: Record<string, unknown> = { bench: "step", model: values.model, device };
  const out: string[][] = [["", "median (min–max)", "unit"]];
  const engine = await open("lora");
  const { vocab, layers, parameters } = engine.manifest.model;
  console.log(
    `${values.model}: ${parameters} parameters, ${layers} layers, on ${engine.device.name}; ` +
      `${repeats} repeats`,
  );
  const plan = engine.manifest.targets[target]!;
  const perLayer = (name: string): [number, number] => {
    // Of two kernels for few rows and for many, a step launches one.
    const l = plan.programs.find((p) => p.name === name)!.launches.filter(isForMany);
    return [l.filter((x) => x.bits.length === 0).length, l.length];
  };
  const launches = {
    forward: perLayer("forward"),
    backward: perLayer("backward.lora"),
    rerun: perLayer("rerun.lora"),
    kernels: Object.keys(plan.kernels).length,
  };
  out.push([
    "launches a layer: forward base / with adapters",
    `${launches.forward[0]} / ${launches.forward[0] + 4}`,
    "",
  ]);
  out.push(
    ["launches a layer: backward, and a rerun", `${launches.backward[1] - 1}, ${launches.rerun[1]}`, ""],
    ["kernels in the bundle", String(launches.kernels), ""],
  );

  await decode(engine, 2, 4);
  const prefill: number[] = [];
  const batches = [1, 4, 16];
  const rates = batches.map(() => [] as number[]);
  for (let r = 0; r < repeats; r++) {
    const [ms] = await timed(() => engine.complete({ prompt: ids(224, r, vocab), maxTokens: 1 }));
    prefill.push((224 / ms) * 1000);
    for (const [i, b] of batches.entries())
      rates[i]!.push((b * tokens * 1000) / (await decode(engine, b, tokens)).ms);
  }
  out.push(["prefill, 224 tokens", spread(prefill), "tokens/s"]);
  batches.forEach((b, i) => out.push([`decode, batch ${b}`, spread(rates[i]!), "tokens/s"]));

  const any = { batchSize: 4, learningRate: 1e-4, shuffle: false } as const;
  const lora = { ...any, rank: 16, alpha: 16 } as const;
  const steps = software ? 1 : 4;
  const tune = async (
    e: Engine,
    method: "lora" | "full",
    name: string,
    n: number,
    seed = 1,
  ): Promise<number> => {
    const [ms] = await timed(
      async () =>
        (
          await e.finetune({
            ...(method === "full" ? any : lora),
            ...{ name, method, data: rows(seed, 4, vocab), steps: n },
          })
        ).done,
    );
    return ms / n;
  };
  await tune(engine, "lora", "warm", 1);
  const loraMs: number[] = [];
  for (let r = 0; r < repeats; r++) loraMs.push(await tune(engine, "lora", "lora", steps));
  out.push(["LoRA r=16 step, 4 × 128 tokens", spread(loraMs, 1), "ms"]);

  // Co-serving: the same inference and the same fine-tuning alone, then together.
  const load16 = 8;
  const streamTokens = 150;
  const coSteps = software ? 1 : 6;
  const gains: number[] = [];
  const p50: number[] = [];
  const p99: number[] = [];
  const share: number[] = [];
  for (let r = 0; r < repeats; r++) {
    const alone = await decode(engine, load16, streamTokens);
    const [ftAlone] = await timed(async () =>
      Promise.all(
        (
          await Promise.all(
            [1, 2].map((s) =>
              engine.finetune({ ...lora, name: `a${s}`, data: rows(s, 4, vocab), steps: coSteps }),
            ),
          )
        ).map((j) => j.done),
      ),
    );
    // Together: streams go on until the jobs are done, so that every step has both.
    let served = 0;
    let on = true;
    const gaps: number[] = [];
    const stream = async (i: number): Promise<void> => {
      for (let k = 0; on; k++) {
        let last = 0;
        for await (const _p of engine.core.generate({
          prompt: ids(16, i + k * 31, vocab),
          maxTokens: streamTokens,
        })) {
          const now = performance.now();
          if (last) gaps.push(now - last);
          last = now;
          served++;
          if (!on) break;
        }
      }
    };
    const streams = Promise.all(Array.from({ length: load16 }, (_, i) => stream(i)));
    const [together] = await timed(async () =>
      Promise.all(
        (
          await Promise.all(
            [1, 2].map((s) =>
              engine.finetune({ ...lora, name: `b${s}`, data: rows(s, 4, vocab), steps: coSteps }),
            ),
          )
        ).map((j) => j.done),
      ),
    );
    on = false;
    await streams;
    gains.push(((served / (load16 * streamTokens)) * alone.ms + ftAlone) / together);
    p50.push(quantile(gaps, 0.5) / quantile(alone.gaps, 0.5));
    p99.push(quantile(gaps, 0.99) / quantile(alone.gaps, 0.99));
    share.push(ftAlone / together);
  }
  out.push(["co-serving gain G (time slicing is 1), 8 streams + 2 jobs", spread(gains, 2), ""]);
  out.push(
    ["inter-token p50 with jobs / without", spread(p50, 2), "×"],
    ["inter-token p99 with jobs / without", spread(p99, 2), "×"],
    ["fine-tuning beside inference / alone", spread(share, 2), "×"],
  );
  const { launches: launched, encodeMs } = engine.core.device.stats;
  const encodeUs = (encodeMs / launched) * 1000;
  out.push([
    "encoding a launch",
    target === "wasm" ? "a call" : encodeUs.toFixed(2),
    target === "wasm" ? "" : "µs",
  ]);
  await engine.dispose();

  const whole = await open("full");
  await tune(whole, "full", "warm", 1);
  const fullMs: number[] = [];
  for (let r = 0; r < repeats; r++) fullMs.push(await tune(whole, "full", "full", steps));
  await whole.dispose();
  out.push(
    ["full step, 4 × 128 tokens", spread(fullMs, 1), "ms"],
    ["full / LoRA", (median(fullMs) / median(loraMs)).toFixed(2), "×"],
  );
  table(out);
  Object.assign(result, {
    prefill: median(prefill),
    decode: Object.fromEntries(batches.map((b, i) => [b, median(rates[i]!)])),
    loraMs: median(loraMs),
    fullMs: median(fullMs),
    launches,
    gain: median(gains),
    p50: median(p50),
    p99: median(p99),
    fineTuningShare: median(share),
    ok: median(p50) <= 2.5 && median(p99) <= 2.5 && median(share) >= 0.4,
  });
  console.log(JSON.stringify(result));
}
