/**
 * A step by arithmetic: the bytes that it must move, the multiply-adds that it must do, the launches that
 * wait for each other. It takes the longer of the first two, and the launches on top.
 */
import type { Manifest, ParamEntry, TargetEntry } from "../../runtime/bundle.ts";
import { BLOCK, isForMany, isForOne, kvBlockWords, storedBytes } from "../../runtime/bundle.ts";
import type { Rates } from "./rates.ts";

/**
 * Round figures of devices: memory, f32 fma and matrix units of the H100 SXM by NVIDIA's data sheet, of the
 * others what their classes have; launches as measured elsewhere, or guessed.
 */
export const devices: Readonly<Record<string, Rates>> = {
  "H100 SXM": { copy: 3350, fma: 67, units: 990, launch: 2 },
  "desktop, 448 GB/s": { copy: 448, fma: 22, units: 44, launch: 3 },
  "laptop, M4 class": { copy: 120, fma: 4, units: null, launch: 5 },
  phone: { copy: 60, fma: 2, units: null, launch: 10 },
};

export interface Work {
  readonly bytes: number;
  /** Multiply-adds, twice each: of f32, and those that matrix units make where there are any. */
  readonly flops: number;
  readonly halves: number;
  readonly launches: number;
}
const bytesOf = (p: ParamEntry): number =>
  p.kind === "weight" ? storedBytes(p.format, p.n, p.k) : 4 * p.n * p.k;

export class Model {
  private readonly plan: TargetEntry;
  /** Bytes, and numbers, of what rows go through: the layers' matrices, and the head's. */
  private readonly layers: { readonly bytes: number; readonly numbers: number };
  private readonly head: { readonly bytes: number; readonly numbers: number };
  constructor(private readonly m: Manifest) {
    this.plan = m.targets.webgpu!;
    const sum = (list: readonly ParamEntry[], times: number) => ({
      bytes: times * list.reduce((n, p) => n + bytesOf(p), 0),
      numbers: times * list.reduce((n, p) => n + (p.kind === "weight" ? p.n * p.k : 0), 0),
    });
    this.layers = sum(this.plan.layerParams, m.model.layers);
    const vocab = this.plan.outerParams.filter((p) => p.kind === "weight" && p.n === m.model.vocab);
    this.head = sum(vocab.slice(-1), 1);
  }
  /** Of two kernels for few rows and for many, a step launches one: `runs` that which it does. */
  private launches(name: string, adapted: boolean, runs = isForMany): number {
    const p = this.plan.programs.find((program) => program.name === name);
    if (!p) return 0;
    const list = p.launches.filter((l) => runs(l) && (adapted || l.bits.length === 0));
    return list.length * (p.region === "layer" ? this.m.model.layers : 1);
  }
  /** Bytes of keys and values that a row at `position` reads; multiply-adds of its attention. */
  private attention(position: number): Work {
    const { layers, heads, headDim } = this.m.model;
    return {
      bytes: ((4 * kvBlockWords(this.m.model, this.m.kv)) / BLOCK) * position * layers,
      flops: 4 * heads * headDim * position * layers,
      halves: 0,
      launches: 0,
    };
  }
  /** A forward's products are of what the bundle has them made of; all else is of f32. */
  private products(forward: number, others: number): Pick<Work, "flops" | "halves"> {
    const units = this.m.products === "matrix";
    return { flops: others + (units ? 0 : forward), halves: units ? forward : 0 };
  }
  /** A token of each of `batch` sequences at `position`. */
  decode(batch: number, position: number): Work {
    const { bytes, flops } = this.attention(position);
    return {
      bytes: this.layers.bytes + this.head.bytes + batch * bytes,
      ...this.products(2 * batch * (this.layers.numbers + this.head.numbers), batch * flops),
      launches: this.outsideTraining(batch > 1 ? isForMany : isForOne),
    };
  }
  private outsideTraining(runs: typeof isForMany): number {
    return ["embed", "forward", "head"].reduce((n, name) => n + this.launches(name, false, runs), 0);
  }
  /** A prompt of `rows` tokens in one step. */
  prefill(rows: number): Work {
    const { flops } = this.attention(rows / 2);
    return {
      bytes: this.layers.bytes + this.head.bytes,
      ...this.products(2 * rows * this.layers.numbers + 2 * this.head.numbers, rows * flops),
      launches: this.outsideTraining(isForMany),
    };
  }
  /** A step of training of an adapter: forward, gradients of activations, the head both ways. */
  step(rows: number, method: string): Work {
    const { flops } = this.attention(rows / 2);
    const all = this.layers.bytes + this.head.bytes;
    return {
      bytes: 2 * all,
      // Gradients are of f32.
      ...this.products(
        2 * rows * (this.layers.numbers + this.head.numbers),
        rows * (2 * (this.layers.numbers + this.head.numbers) + 3 * flops),
      ),
      launches:
        this.launches("forward", true) +
        this.launches(`backward.${method}.all`, true) +
        this.launches("head_train", true),
    };
  }
}
/** Milliseconds. */
export const predicted = (w: Work, r: Rates): number =>
  Math.max(w.bytes / r.copy / 1e6, w.flops / r.fma / 1e9 + w.halves / (r.units ?? r.fma) / 1e9) +
  (w.launches * r.launch) / 1000;
