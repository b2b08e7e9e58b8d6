/** Kernels as pipelines, each compiled when it is first needed, or ahead of that. */
import { FIRST_BODY, type Plan } from "../bundle.ts";
import type { Families } from "../device.ts";
import type { ProgramEntry } from "../manifest.ts";
import type { Memory } from "./memory.ts";
import { gone, type Watch } from "./watch.ts";

/** A pipeline, and of so many bodies of a kernel, in turn; null: of all. */
interface Part {
  readonly pipeline: GPUComputePipeline;
  readonly bodies: number | null;
}
export interface Kernel {
  readonly parts: readonly Part[];
  /** Which layout it has: 1 where it writes weights. */
  readonly layout: 0 | 1;
  readonly shards: Plan["kernels"][string]["shards"];
}
interface Wanted {
  readonly families: Families;
  readonly picks: boolean;
  readonly software: boolean;
  /** Do lanes exchange what they read? */
  readonly quads: boolean;
}
type File = Plan["kernels"][string];
const fileOf = ({ file, quads }: File, inQuads: boolean): string => (inQuads && quads) || file;
/** Counts of rows that are always 0 there: what would be launched over them is never run. */
const idle = ({ families: { fewRows }, picks }: Wanted): RegExp =>
  new RegExp(
    `^(${fewRows === null ? "tile|rest|few|lone|more|wide" : "plain"}${picks ? "" : "|candidate"})_`,
  );

/** WGSL of a plan's kernels, by file. */
export async function readKernels(
  plan: Plan,
  quads: boolean,
  file: (name: string) => Promise<Uint8Array>,
): Promise<ReadonlyMap<string, string>> {
  const names = [...new Set(Object.values(plan.kernels).map((k) => fileOf(k, quads)))];
  const texts = await Promise.all(names.map(async (name) => new TextDecoder().decode(await file(name))));
  return new Map(names.map((name, i) => [name, texts[i]!]));
}

/**
 * Pipelines that are compiled at once, on a software device and on others. A browser compiles what was asked
 * of a device also when that is gone or its worker has ended, and the next adapter is not given before.
 */
const atOnce = (software: boolean): number => (software ? 2 : 8);

export class Kernels {
  private readonly names: readonly string[];
  private readonly ready: (Kernel | undefined)[] = [];
  /** Those of one module share a pipeline. */
  private readonly made = new Map<string, Promise<GPUComputePipeline>>();
  private readonly layouts: readonly GPUPipelineLayout[];
  private readonly never: RegExp;
  private ended = false;
  /** Pipelines that may begin, and what lets those begin that wait. */
  private free: number;
  private readonly queue: (() => void)[] = [];
  constructor(
    private readonly watch: Watch,
    private readonly plan: Plan,
    layouts: Memory["layouts"],
    private readonly texts: ReadonlyMap<string, string>,
    private readonly wanted: Wanted,
  ) {
    this.free = atOnce(wanted.software);
    this.names = Object.keys(plan.kernels);
    this.layouts = layouts.map((l) => watch.device.createPipelineLayout({ bindGroupLayouts: [l] }));
    this.never = idle(wanted);
  }
  at(index: number): Kernel | undefined {
    return this.ready[index];
  }
  /**
   * Compile what programs launch; all have ended when this does, also when one fails. Throws WEFT_DEVICE for
   * a kernel that the device refuses, now and whenever it is asked for.
   */
  prepare(programs: readonly ProgramEntry[]): Promise<void> {
    const launches = programs.flatMap((p) => p.launches);
    const run = launches.filter((l) => !l.grid.some((g) => this.never.test(g.count)));
    return this.compile(new Set(run.map((l) => this.names.indexOf(l.kernel))));
  }
  async compile(indices: ReadonlySet<number>): Promise<void> {
    const missing = [...indices].filter((i) => !this.ready[i]);
    if (!missing.length) return;
    const ended = await this.watch.until(
      Promise.allSettled(missing.map((i) => this.make(i))),
      "webgpu kernels",
    );
    for (const e of ended) if (e.status === "rejected") throw e.reason;
  }
  /** One program after another, so that what is needed at once does not wait behind all of them. */
  async ahead(programs: readonly ProgramEntry[]): Promise<void> {
    for (const p of programs) {
      if (this.ended || this.watch.lost) return;
      // Whoever needs what was refused is told.
      await this.prepare([p]).catch(() => {});
    }
  }
  /** No compilation begins any more; resolves when none is under way. */
  async end(): Promise<void> {
    this.ended = true;
    await Promise.allSettled(this.made.values());
  }
  private async make(index: number): Promise<void> {
    const name = this.names[index]!;
    const kernel = this.plan.kernels[name]!;
    const { weights, shards, runs } = kernel;
    const { quads, software } = this.wanted;
    const file = fileOf(kernel, quads);
    const layout = weights === "written" ? 1 : 0;
    // A CPU behind WebGPU goes through all that a pipeline has, and throws away what a body is not of: there
    // a kernel has a pipeline for each text of its bodies.
    const parts = software && runs.length > 1 ? runs : [null];
    let from = 0;
    const made = parts.map(async (bodies): Promise<Part> => {
      const first = bodies && from;
      from += bodies!;
      const key = `${first} ${file}`;
      const known =
        this.made.get(key) ??
        this.pipeline(first ? `${name}.${first}` : name, this.texts.get(file)!, layout, first);
      this.made.set(key, known);
      return { pipeline: await known, bodies };
    });
    // All have ended when this does, also when one fails.
    await Promise.allSettled(made);
    this.ready[index] = { parts: await Promise.all(made), layout, shards };
  }
  /** Wait for a place among those that are compiled at once. */
  private async pipeline(...of: Parameters<Kernels["compiled"]>): Promise<GPUComputePipeline> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.queue.push(resolve));
    try {
      this.watch.living();
      if (this.ended) throw gone();
      return await this.compiled(...of);
    } finally {
      const next = this.queue.shift();
      if (next) next();
      else this.free++;
    }
  }
  private async compiled(
    label: string,
    code: string,
    layout: number,
    first: number | null,
  ): Promise<GPUComputePipeline> {
    const { device } = this.watch;
    // The scope is for the module's own errors, which the pipeline's tell again.
    device.pushErrorScope("validation");
    const module = device.createShaderModule({ label, code });
    const scope = device.popErrorScope();
    try {
      return await device.createComputePipelineAsync({
        label,
        layout: this.layouts[layout]!,
        compute: {
          module,
          entryPoint: "main",
          ...(first !== null && { constants: { [FIRST_BODY]: first } }),
        },
      });
    } catch (cause) {
      throw await (await import("../refused.ts")).noKernel(label, module, cause as Error);
    } finally {
      await scope;
    }
  }
}
