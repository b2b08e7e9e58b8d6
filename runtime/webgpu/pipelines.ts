/** Kernels as pipelines. */
import type { Plan } from "../bundle.ts";
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
/**
 * Compile every kernel, by index; those of one module share a pipeline. All have ended when this does,
 * also when one fails.
 */
export async function compileKernels(
  watch: Watch,
  plan: Plan,
  layouts: Memory["layouts"],
  file: FileOf,
): Promise<Kernel[]> {
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
  const all = Object.entries(plan.kernels).map(async ([name, kernel], i): Promise<Kernel> => {
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
