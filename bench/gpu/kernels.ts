/** Each kernel of a step on its own, as often as it takes to time it, against what the device gives. */
import type { Engine } from "../../sdk/index.ts";
import type { Rates } from "./rates.ts";

export interface Launched {
  readonly kernel: string;
  /** Microseconds of a launch. */
  readonly us: number;
  /** Launches in the step. */
  readonly times: number;
  /** Of matrices that it reads: GB/s, as a share of a copy; TFLOP/s, as a share of fma. */
  readonly memory: number | null;
  readonly arithmetic: number | null;
}
interface Step {
  readonly commands: Int32Array;
  readonly meta: Uint32Array;
}
/** Milliseconds of launches that a measurement is made of. */
const LONG = 20;

/** What the device was given while `play` ran, the longest list of it. */
export async function recorded(engine: Engine, play: () => Promise<unknown>): Promise<Step> {
  const { device } = engine.core;
  const run = device.run.bind(device);
  let longest: Step | null = null;
  device.run = (lane, commands, meta, reads) => {
    if (!longest || commands.length > longest.commands.length)
      longest = { commands: commands.slice(), meta: meta.slice() };
    return run(lane, commands, meta, reads);
  };
  try {
    await play();
  } finally {
    device.run = run;
  }
  if (!longest) throw new Error("no step was played");
  return longest;
}
/** The engine must be at rest; what it has computed is no more after this. */
export async function launches(
  engine: Engine,
  { commands, meta }: Step,
  rows: number,
  rates: Rates,
): Promise<Launched[]> {
  const { device, manifest } = engine.core;
  const plan = manifest.targets.webgpu!;
  const names = Object.keys(plan.kernels);
  const params = [...plan.layerParams, ...plan.outerParams].filter((p) => p.kind === "weight");
  const head = plan.outerParams.filter((p) => p.kind === "weight" && p.n === manifest.model.vocab);
  const byKernel = new Map<number, { list: number[]; times: number }>();
  for (let i = 0; i < commands.length; i += 6) {
    const known = byKernel.get(commands[i]!);
    if (known) known.times++;
    else byKernel.set(commands[i]!, { list: [...commands.subarray(i, i + 6)], times: 1 });
  }
  const time = async (list: readonly number[], n: number): Promise<number> => {
    const many = Int32Array.from(Array.from({ length: n }, () => list).flat());
    const t0 = performance.now();
    await device.run(0, many, meta, []);
    return performance.now() - t0;
  };
  const out: Launched[] = [];
  for (const [index, { list, times }] of byKernel) {
    await time(list, 1);
    const one = await time(list, 1);
    const n = Math.max(3, Math.min(500, Math.ceil(LONG / Math.max(0.02, one))));
    const us = (1000 * ((await time(list, n + 1)) - (await time(list, 1)))) / n;
    const kernel = names[index]!;
    const words = kernel.replace(/^backward_\w+?_(all|boundary)_/, "");
    const named = (p: (typeof params)[number]): boolean =>
      words.includes(p.name.replace(/\.weight$/, "").replace(/[^a-z0-9]+/gi, "_"));
    // Of adapters' own products the names are of what they belong to; a head that is tied is the embedding.
    const read = /shrink|_lora_|_s2ft_|sumsq|adam/.test(words)
      ? []
      : /lm_head/.test(words)
        ? head.slice(-1)
        : params.filter(named);
    const numbers = read.reduce((sum, p) => sum + p.n * p.k, 0);
    const bytes = read.reduce((sum, p) => sum + p.words * 4, 0);
    out.push({
      kernel,
      us,
      times,
      memory: bytes ? bytes / us / 1000 / rates.copy : null,
      arithmetic: numbers ? (2 * rows * numbers) / us / 1e6 / rates.fma : null,
    });
  }
  return out.sort((a, b) => b.us * b.times - a.us * a.times);
}
