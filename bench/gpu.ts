/**
 * Everything about one GPU in less than nine minutes: what the adapter is and gives, the laws on tiny models,
 * each kernel against its roofline, decoding, prompts, steps of LoRA and S2FT, and serving beside a job; what
 * arithmetic says beside what is measured. A JSON file a part, as each is done.
 *
 *   npm run -s bench -- gpu [--device webgpu|software] [--out DIR] [--models 135m,1b] [--formats bf16,q4]
 *     [--products f32,matrix]
 *
 * Without `--products`: of f32, and where there are matrix units, the last model in the first format of
 * those.
 */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { StepTrace } from "../runtime/loops.ts";
import type { Products } from "../runtime/products.ts";
import { compile, type DeviceChoice, type Engine, load } from "../sdk/index.ts";
import { launched } from "./gpu/kernels.ts";
import { laws } from "./gpu/laws.ts";
import { devices, Model, predicted, type Work } from "./gpu/predict.ts";
import { measure, type Rates } from "./gpu/rates.ts";
import { checkpoint, shapes } from "./isa/shape.ts";
import { ids, median, quantile, table, timed } from "./measure.ts";

/** How long one run of a measurement is, at least: milliseconds. */
const ENOUGH = 1500;
/** How often a list is played whose kernels are timed. */
const PLAYS = 3;
const modelsOf: Readonly<Record<string, string>> = { "135m": "smollm2-135m", "1b": "llama-1b", tiny: "tiny" };

interface Sizes {
  readonly batches: readonly number[];
  readonly prompts: readonly number[];
  readonly rows: number;
  readonly tokens: number;
}
const whole: Sizes = { batches: [1, 2, 4, 8, 32], prompts: [512, 2048], rows: 512, tokens: 64 };
const short: Sizes = { batches: [1, 4], prompts: [64], rows: 64, tokens: 8 };

/** `batch` answers of `tokens` each: milliseconds a step once all have begun, and the gaps between tokens. */
async function decode(
  engine: Engine,
  batch: number,
  tokens: number,
): Promise<{ ms: number; gaps: number[] }> {
  const { vocab } = engine.manifest.model;
  const gaps: number[] = [];
  const ends = await Promise.all(
    Array.from({ length: batch }, async (_, i) => {
      const times: number[] = [];
      for await (const _p of engine.core.generate({ prompt: ids(16, i, vocab), maxTokens: tokens }))
        times.push(performance.now());
      times.slice(1).forEach((t, k) => void gaps.push(t - times[k]!));
      return times;
    }),
  );
  const first = Math.max(...ends.map((t) => t[0]!));
  const last = Math.min(...ends.map((t) => t.at(-1)!));
  const steps = ends[0]!.filter((t) => t > first && t <= last).length;
  return { ms: (last - first) / Math.max(1, steps), gaps };
}
/** The median of as many runs as are worth it. */
async function settled(run: () => Promise<number>): Promise<number> {
  await run();
  const t0 = performance.now();
  const all: number[] = [];
  while (all.length < 3 || (performance.now() - t0 < ENOUGH && all.length < 20)) all.push(await run());
  return median(all);
}

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      device: { type: "string", default: "webgpu" },
      out: { type: "string", default: join(tmpdir(), "weft-bench-gpu") },
      models: { type: "string" },
      formats: { type: "string", default: "bf16,q4" },
      products: { type: "string" },
    },
  });
  const device = values.device as DeviceChoice;
  const software = device === "software";
  const size = software ? short : whole;
  mkdirSync(values.out, { recursive: true });
  const t0 = performance.now();
  const keep = (part: string, what: unknown): void => {
    writeFileSync(join(values.out, `${part}.json`), JSON.stringify(what, null, 1));
    console.log(`${part}: at ${((performance.now() - t0) / 1000).toFixed(0)} s\n`);
  };

  // In Node Dawn's clock goes in steps of 66 µs unless told otherwise, and matrix units are asked for so.
  process.env.WEFT_DAWN ??=
    "enable-dawn-features=allow_unsafe_apis disable-dawn-features=timestamp_quantization";
  const found = await measure(software ? "software" : "hardware");
  if (!found)
    throw new Error("no such adapter: install the peer dependency webgpu, or try --device software");
  const { adapter, rates } = found;
  const clock = adapter.features.includes("timestamp-query");
  const ofUnits = rates.units === null ? "no matrix units" : `matrix units ${rates.units.toPrecision(3)}`;
  console.log(
    `${adapter.name}: copies ${rates.copy.toPrecision(3)} GB/s, fma ${rates.fma.toPrecision(3)} ` +
      `TFLOP/s, ${ofUnits}, a launch ${rates.launch.toFixed(1)} µs`,
  );
  keep("adapter", found);

  const verdicts = await laws(device, values.out, rates.units !== null);
  table([["law", "holds", ""], ...verdicts.map((v) => [v.law, v.ok ? "yes" : "NO", v.found])]);
  keep("laws", verdicts);

  const summary: Record<string, { readonly ms: Readonly<Record<string, number>> }> = {};
  const names = (values.models ?? (software ? "tiny" : "135m,1b")).split(",");
  const formats = values.formats.split(",");
  const asked = (values.products ?? "f32").split(",") as Products[];
  const parts = names.flatMap((name) =>
    formats.flatMap((format) => asked.map((products) => [name, format, products] as const)),
  );
  const too = values.products === undefined && rates.units !== null;
  const units = too ? ([[names.at(-1)!, formats[0]!, "matrix"]] as const) : [];
  for (const [name, format, products] of [...parts, ...units]) {
    const part = products === "f32" ? `${name}-${format}` : `${name}-${format}-${products}`;
    const shape = modelsOf[name] ?? name;
    summary[part] = await model(shape, format, products, device, size, rates, clock, values.out);
    keep(part, summary[part]);
  }
  console.log(
    JSON.stringify({
      bench: "gpu",
      adapter: adapter.name,
      rates,
      laws: verdicts.filter((v) => !v.ok).map((v) => v.law),
      models: Object.fromEntries(Object.entries(summary).map(([part, { ms }]) => [part, ms])),
      seconds: (performance.now() - t0) / 1000,
    }),
  );
}

async function model(
  shape: string,
  format: string,
  products: Products,
  device: DeviceChoice,
  size: Sizes,
  rates: Rates,
  clock: boolean,
  out: string,
): Promise<{ readonly ms: Readonly<Record<string, number>> }> {
  const folder = checkpoint(shapes[shape]!, true);
  const bundle = join(out, `${shape}-${format}.weft`);
  const [compiled, manifest] = await timed(() =>
    compile(folder, bundle, {
      targets: ["webgpu"],
      train: ["lora", "s2ft"],
      format: format as "bf16" | "q4",
      products,
      capacities: {
        ...{ context: Math.max(...size.prompts) + 256, tokens: Math.max(...size.prompts, size.rows) },
        ...{ savedRows: size.rows, keptRows: size.rows, unitRows: size.rows, headRows: 64 },
        ...{ sequences: 40, slots: 4, jobs: 2, rank: 16 },
      },
    }),
  );
  rmSync(folder, { recursive: true });
  const [loaded, engine] = await timed(() => load(bundle, { device }));
  console.log(
    `${shape}, ${format}, ${engine.device.numerics}: compiled in ${(compiled / 1000).toFixed(1)} s, ` +
      `loaded in ${(loaded / 1000).toFixed(1)} s, invariance ${engine.core.invariance}`,
  );
  const { vocab } = manifest.model;
  const rows: string[][] = [["", "ms", "by arithmetic", "of it", ...Object.keys(devices)]];
  const parts: Record<string, unknown> = { compiled, loaded, invariance: engine.core.invariance };
  const measured: Record<string, number> = {};
  const told = (what: string, ms: number, work: Work): void => {
    const least = predicted(work, rates);
    measured[what] = ms;
    const elsewhere = Object.fromEntries(Object.entries(devices).map(([d, r]) => [d, predicted(work, r)]));
    parts[what] = { ms, predicted: least, ...work, elsewhere };
    rows.push([
      what,
      ms.toFixed(2),
      least.toFixed(2),
      (least / ms).toFixed(2),
      ...Object.values(elsewhere).map((x) => x.toFixed(2)),
    ]);
  };
  const arithmetic = new Model(manifest);
  for (const batch of size.batches)
    told(
      `decode, batch ${batch}`,
      await settled(async () => (await decode(engine, batch, size.tokens)).ms),
      arithmetic.decode(batch, 16 + size.tokens / 2),
    );
  let seed = 0;
  for (const n of size.prompts) {
    told(
      `prompt of ${n}`,
      await settled(
        async () => (await timed(() => engine.complete({ prompt: ids(n, ++seed, vocab), maxTokens: 1 })))[0],
      ),
      arithmetic.prefill(n),
    );
  }
  const train = (engine: Engine, method: string, steps: number) =>
    engine.finetune({
      ...{ name: "bench", method, steps, batchSize: 1, shuffle: false, learningRate: 1e-4 },
      ...(method === "lora" && { rank: 16 }),
      data: [{ input_ids: ids(size.rows, 7, vocab) }],
    });
  for (const method of ["lora", "s2ft"])
    told(
      `${method} step of ${size.rows}`,
      await settled(async () => {
        const job = await train(engine, method, 4);
        return (await timed(() => job.done))[0] / 4;
      }),
      arithmetic.step(size.rows, method),
    );
  table(rows);

  // Serving beside a job: what the streams lose, and what the job gets.
  const batch = size.batches.at(-2)!;
  const alone = await decode(engine, batch, size.tokens);
  const job = await train(engine, "lora", 1000);
  await decode(engine, batch, 4);
  const from = job.step;
  const [ms, beside] = await timed(() => decode(engine, batch, size.tokens));
  const steps = job.step - from;
  job.cancel();
  await job.done.catch(() => {});
  parts.beside = {
    ...{ batch, p99: quantile(beside.gaps, 0.99), alone: quantile(alone.gaps, 0.99) },
    ...{ tokens: (batch * size.tokens * 1000) / ms, learned: (steps * size.rows * 1000) / ms },
  };
  console.log(
    `batch ${batch} beside a job: p99 ${quantile(beside.gaps, 0.99).toFixed(1)} ms (alone ` +
      `${quantile(alone.gaps, 0.99).toFixed(1)}), ${((steps * size.rows * 1000) / ms).toFixed(0)} ` +
      "tokens/s learned\n",
  );

  await engine.dispose();
  // Each kernel in its place: a list of passes takes longer, so nothing else is measured there.
  const heard: StepTrace[] = [];
  if (clock) {
    const apart = await load(bundle, { device, timestamps: true, onStep: (t) => void heard.push(t) });
    const n = size.prompts[0]!;
    const plays: Record<string, readonly [() => Promise<unknown>, number, (t: StepTrace) => boolean]> = {
      decode: [() => decode(apart, 1, size.tokens), 1, (t) => t.rows.generate === 1],
      prompt: [
        () => apart.complete({ prompt: ids(n, ++seed, vocab), maxTokens: 1 }),
        n,
        (t) => t.rows.generate > 1,
      ],
      lora: [async () => (await train(apart, "lora", 1)).done, size.rows, () => true],
    };
    for (const [what, [play, rows, counts]] of Object.entries(plays)) {
      await play();
      heard.length = 0;
      for (let i = 0; i < PLAYS; i++) await play();
      const counted = heard.filter(counts);
      const times = what === "decode" ? counted.length : PLAYS;
      const all = launched(manifest, counted, times, rows, rates);
      parts[`kernels of ${what}`] = all;
      const sum = all.reduce((s, k) => s + k.us * k.times, 0);
      const share = (x: number | null): string => (x === null ? "" : x.toFixed(2));
      table([
        [
          `${what}: ${(sum / 1000).toFixed(2)} ms of kernels`,
          "µs",
          "times",
          "of step",
          "of copy",
          "of fma",
          "TFLOP/s",
        ],
        ...all
          .slice(0, 12)
          .map((k) => [
            ...[k.kernel.slice(0, 60), k.us.toFixed(1), k.times.toFixed(0)],
            ...[((k.us * k.times) / sum).toFixed(2), share(k.memory)],
            share(k.arithmetic) + (k.units ? " of units" : ""),
            k.reached?.toPrecision(3) ?? "",
          ]),
      ]);
    }
    await apart.dispose();
  } else console.log("this adapter has no timestamp-query: what its kernels take is not known");
  rmSync(bundle, { recursive: true });
  return { ...parts, ms: measured };
}
