/** Kernels as pipelines. */
import type { Plan } from "../bundle.ts";
import type { Families } from "../device.ts";
import { WeftError } from "../errors.ts";
import { LAUNCH_BYTES, type Memory } from "./memory.ts";
import type { Watch } from "./watch.ts";

type FileOf = (name: string) => Promise<Uint8Array>;
export interface Kernel {
  readonly pipeline: GPUComputePipeline;
  /** Where the numbers lie that it brings: bytes. */
  readonly launch: number;
  /** Which layout it has: 1 where it writes weights. */
  readonly layout: 0 | 1;
}
/** Counts of rows that are always 0 with such families: what would be launched over them is never run. */
function idle({ manyRows, fewRows }: Families, tokens: number): RegExp {
  const products = fewRows === null ? "tile|rest" : "plain";
  const attention = manyRows <= 1 ? "|few" : manyRows > tokens ? "|many" : "";
  return new RegExp(`^(${products}${attention})_`);
}
/**
 * Compile every kernel that families run, by index, and null for others; those of one module share a
 * pipeline. All have ended when this does, also when one fails.
 */
export async function compileKernels(
  watch: Watch,
  plan: Plan,
  layouts: Memory["layouts"],
  file: FileOf,
  families: Families,
  tokens: number,
): Promise<(Kernel | null)[]> {
  const never = idle(families, tokens);
  const unused = new Set(
    (plan.programs ?? []).flatMap((p) =>
      p.launches.filter((l) => l.grid.some((g) => never.test(g.count))).map((l) => l.kernel),
    ),
  );
  const { device } = watch;
  const pipelineLayouts = layouts.map((l) => device.createPipelineLayout({ bindGroupLayouts: [l] }));
  const made = new Map<string, Promise<GPUComputePipeline>>();
  const compile = async (label: string, code: string, layout: number): Promise<GPUComputePipeline> => {
    // The scope is for the module's own errors, which the pipeline's tell again.
    device.pushErrorScope("validation");
    const module = device.createShaderModule({ label, code });
    const scope = device.popErrorScope();
    try {
      return await device.createComputePipelineAsync({
        label,
        layout: pipelineLayouts[layout]!,
        compute: { module, entryPoint: "main" },
      });
    } catch (cause) {
      const { messages } = await module.getCompilationInfo();
      const found = messages.map((m) => `line ${m.lineNum}: ${m.message}`).join("; ");
      throw new WeftError({
        code: "WEFT_DEVICE",
        where: `kernel ${label}`,
        expected: "WGSL that this adapter compiles",
        found: found || (cause as Error).message,
        cause,
      });
    } finally {
      await scope;
    }
  };
  const all = Object.entries(plan.kernels).map(async ([name, kernel], i): Promise<Kernel | null> => {
    if (unused.has(name)) return null;
    const layout = kernel.weights === "written" ? 1 : 0;
    const key = `${layout} ${kernel.file}`;
    const known =
      made.get(key) ??
      file(kernel.file).then((bytes) => compile(name, new TextDecoder().decode(bytes), layout));
    made.set(key, known);
    return { pipeline: await known, launch: kernel.launch.length ? i * LAUNCH_BYTES : 0, layout };
  });
  const ended = await watch.until(Promise.allSettled(all), "webgpu kernels");
  return ended.map((e) => {
    if (e.status === "rejected") throw e.reason;
    return e.value;
  });
}
