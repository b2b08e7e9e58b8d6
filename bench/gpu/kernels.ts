/** Each kernel of a step, by the device's own clock, against what the device gives. */
import type { StepTrace } from "../../runtime/loops.ts";
import type { Manifest } from "../../sdk/index.ts";
import type { Rates } from "./rates.ts";

export interface Launched {
  readonly kernel: string;
  /** Microseconds of a launch. */
  readonly us: number;
  /** Launches each time. */
  readonly times: number;
  /**
   * Of matrices that it reads: GB/s, as a share of a copy; TFLOP/s, as a share of fma, or of what units give.
   */
  readonly memory: number | null;
  readonly arithmetic: number | null;
  /** Is that share one of what matrix units give? And what it reaches, TFLOP/s. */
  readonly units: boolean;
  readonly reached: number | null;
}
/** What `steps` took that played the same `plays` times, over so many rows each time. */
export function launched(
  { model, products, targets }: Manifest,
  steps: readonly StepTrace[],
  plays: number,
  rows: number,
  rates: Rates,
): Launched[] {
  const { layerParams, outerParams } = targets.webgpu!;
  const params = [...layerParams, ...outerParams].filter((p) => p.kind === "weight");
  const head = outerParams.filter((p) => p.kind === "weight" && p.n === model.vocab);
  const all = new Map<string, { us: number; launches: number }>();
  for (const { kernel, launches, ms } of steps.flatMap((s) => s.kernels!)) {
    const known = all.get(kernel) ?? { us: 0, launches: 0 };
    all.set(kernel, { us: known.us + 1000 * ms, launches: known.launches + launches });
  }
  const out = [...all].map(([kernel, { us, launches }]): Launched => {
    const words = kernel.replace(/^backward_\w+?_(all|boundary)_/, "");
    const named = (p: (typeof params)[number]): boolean =>
      words.includes(p.name.replace(/\.weight$/, "").replace(/[^a-z0-9]+/gi, "_"));
    // Of adapters' own products the names are of what they belong to; a head that is tied is the embedding.
    const read = /shrink|_lora_|_s2ft_|sumsq|adam/.test(words)
      ? []
      : /lm_head/.test(words)
        ? head.slice(-1)
        : params.filter(named);
    const bytes = read.reduce((sum, p) => sum + p.words * 4, 0);
    const numbers = read.reduce((sum, p) => sum + p.n * p.k, 0);
    // A launch reads its matrices once; each row meets every layer's once, however many launches that takes.
    // Of a prompt the head has the last row alone.
    const met = /^head_(?!train)/.test(kernel) ? 1 : rows;
    // Gradients pass through matrices in f32.
    const units = products === "matrix" && rates.units !== null && !/(^|_)d_/.test(words);
    const layers = read.some((p) => outerParams.includes(p)) ? 1 : model.layers;
    const reached = numbers ? (2 * met * numbers * layers * plays) / us / 1e6 : null;
    return {
      kernel,
      us: us / launches,
      times: launches / plays,
      memory: bytes ? (bytes * launches) / us / 1000 / rates.copy : null,
      arithmetic: reached && reached / (units ? rates.units! : rates.fma),
      units,
      reached,
    };
  });
  return out.sort((a, b) => b.us * b.times - a.us * a.times);
}
