/**
 * AssemblyScript in memory: sources in, wasm out; what was compiled before comes from the user's cache.
 * Options are those of asconfig.json, a target for each kind of module.
 */
import { createRequire } from "node:module";
import { Worker } from "node:worker_threads";
import { cached } from "../cache.ts";
import { readBeside } from "../files.ts";

/**
 * Targets of asconfig.json. Kernels may have no state: any number of threads instantiate them on one shared
 * memory of at most 4 GiB, so there is no data section that would be written again, no start function, no
 * table, no mutable global, no memory of their own.
 */
const targets = {
  host: { stateless: false },
  kernels: { stateless: true },
  "kernels-relaxed": { stateless: true },
} as const;
type Target = keyof typeof targets;

/** How modules are made. */
export interface Making {
  /** Take what was compiled before from the user's cache, and keep it there. */
  readonly cache: boolean;
  /** Optimise little: compiled four times as fast, and slower. The same bits: Wasm rounds as it says. */
  readonly quick: boolean;
}
const asShipped: Making = { cache: true, quick: false };

export const compileKernels = (source: string, how = asShipped): Promise<Uint8Array> =>
  compileAssembly("kernels", { "kernels.ts": source }, "kernels.ts", how);

/**
 * The same kernels with fused multiply-adds, where a machine has them: relaxed SIMD leaves it to the machine
 * whether a product is rounded before it is added, so this is a class of numerics of its own.
 */
export function compileRelaxed(source: string, how = asShipped): Promise<Uint8Array> {
  const exact = "return f32x4.add(f32x4.mul(a, b), c);";
  if (source.split(exact).length !== 2) throw new Error("the kernels have one multiply-add");
  const fused = source.replace(exact, "return f32x4.relaxed_madd(a, b, c);");
  return compileAssembly("kernels-relaxed", { "kernels.ts": fused }, "kernels.ts", how);
}

/**
 * Compile `entry` of `sources` (path → text). Throws with the compiler's own diagnostics, and for a module
 * that breaks the rules of its target: generated text that does not compile is a bug of ours.
 */
export function compileAssembly(
  target: Target,
  sources: Readonly<Record<string, string>>,
  entry: string,
  { cache, quick }: Making,
): Promise<Uint8Array> {
  const config = readBeside(import.meta.url, "../../asconfig.json");
  const make = (): Promise<Uint8Array> =>
    assembler.compile({
      ...{ target, entry, quick, stateless: targets[target].stateless },
      sources: { ...sources, "asconfig.json": config },
    });
  if (!cache) return make();
  const making = readBeside(import.meta.url, "./assemble.mjs");
  return cached(JSON.stringify([versions(), making, config, target, quick, entry, sources]), make);
}
const versions = (): string[] => {
  const require = createRequire(import.meta.url);
  return ["assemblyscript", "binaryen"].map(
    (name) => (require(`${name}/package.json`) as { version: string }).version,
  );
};

export interface Ask {
  readonly target: Target;
  readonly entry: string;
  readonly sources: Readonly<Record<string, string>>;
  readonly quick: boolean;
  readonly stateless: boolean;
}
type Answer = { readonly id: number } & ({ readonly wasm: Uint8Array } | { readonly error: string });
interface Waiting {
  readonly resolve: (wasm: Uint8Array) => void;
  readonly reject: (e: Error) => void;
}
/** Most of what it makes dies with the module; with Node's 48 MB a quarter of its time is collecting. */
const YOUNG_MB = 192;
/** Milliseconds without work after which the thread goes. */
const IDLE_MS = 5000;

/** The thread that compiles, while there is something to compile. */
export class Assembler {
  private worker: Worker | null = null;
  private readonly waiting = new Map<number, Waiting>();
  private asked = 0;
  private idle: ReturnType<typeof setTimeout> | undefined;
  /** `kept`: the thread stays when it has no work. A new one takes three seconds to be as fast. */
  constructor(private readonly kept = false) {}

  compile(ask: Ask): Promise<Uint8Array> {
    clearTimeout(this.idle);
    this.worker ??= this.start();
    const id = this.asked++;
    this.worker.ref();
    this.worker.postMessage({ id, ask });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
  private start(): Worker {
    const worker = new Worker(new URL("./assemble.mjs", import.meta.url), {
      // Without the loaders of this process: the thread is plain JavaScript.
      execArgv: [],
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB },
    });
    worker.on("message", (answer: Answer) => {
      const { resolve, reject } = this.waiting.get(answer.id)!;
      this.waiting.delete(answer.id);
      if ("wasm" in answer) resolve(answer.wasm);
      else reject(new Error(answer.error));
      if (this.waiting.size) return;
      worker.unref();
      if (!this.kept) this.idle = setTimeout(() => this.end(worker, null), IDLE_MS).unref();
    });
    worker.on("error", (e) => this.end(worker, e));
    worker.on("exit", (code) => this.end(worker, new Error(`the assembler's thread ended (${code})`)));
    return worker;
  }
  private end(worker: Worker, why: Error | null): void {
    if (this.worker !== worker) return;
    this.worker = null;
    void worker.terminate();
    for (const { reject } of this.waiting.values()) reject(why!);
    this.waiting.clear();
  }
}
let assembler: Pick<Assembler, "compile"> = new Assembler();
/** Have modules compiled elsewhere, not by a thread of this process. */
export function assembleBy(compile: Assembler["compile"]): void {
  assembler = { compile };
}
