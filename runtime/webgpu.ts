/**
 * The WebGPU target: one bind group a group of chambers, one compute pass a step, metadata by dynamic offset.
 */
import {
  type Limits,
  type Manifest,
  type Measure,
  type Plan,
  planOf,
  type Sizes,
  sizesFor,
} from "./bundle.ts";
import { destroyAtExit, openAdapter, settled } from "./dawn.ts";
import {
  chamberWords,
  type Device,
  isShared,
  type LoadProgress,
  type MemoryClass,
  memoryClasses,
  planProgress,
  type Range,
  type RoomOptions,
} from "./device.ts";
import { WeftError } from "./errors.ts";
import { formatOf, planeBytes } from "./formats.ts";

const READ_ONLY: readonly MemoryClass[] = ["weights", "meta", "tables"];
/** Bytes that are read back at once, unless one range is larger. */
const STAGING = 64 * 2 ** 20;
const STAGING_STEP = 65536;
/** Read-back buffers kept for the next reads. */
const STAGINGS = 2;

type FileOf = (name: string) => Promise<Uint8Array>;

/**
 * Open the bundle's `webgpu` plan; null when there is no adapter of the wanted kind. Throws WEFT_CAPACITY
 * when the adapter cannot hold the plan, WEFT_DEVICE when it refuses a kernel or the device, WEFT_DEVICE_LOST
 * when it goes away meanwhile; the device is destroyed then.
 */
export async function openWebGpu(
  manifest: Manifest,
  file: FileOf,
  kind: "hardware" | "software",
  options: RoomOptions & { readonly onProgress?: ((p: LoadProgress) => void) | undefined } = {},
): Promise<Device | null> {
  const adapter = await openAdapter(kind);
  if (!adapter) return null;
  const { info, limits } = adapter;
  const software =
    Boolean((info as { isFallbackAdapter?: boolean }).isFallbackAdapter) ||
    /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(
      `${info.vendor} ${info.architecture} ${info.device} ${info.description}`,
    );
  if (software !== (kind === "software")) return null;

  const { layers, format } = manifest.model;
  const where = `adapter ${info.description || info.device}`;
  const chamber = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const room = { ...webGpuLimits, chamber };
  const sizes = sizesFor(manifest, "webgpu", options, room, measureWebGpu(layers));
  const plan = planOf(manifest, "webgpu", sizes);
  // Kernels count the numbers of a matrix in an i32.
  const weights = largestOf(plan, layers, "weights");
  const least = Math.min(...formatOf(format).planes.map(planeBytes));
  if (weights > 2 ** 31 * least)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where,
      expected: `${format} weights of at most ${2 * least} GiB a layer`,
      found: `${weights} bytes`,
      hint: "compile with --format f16",
    });
  const device = await adapter
    .requestDevice({
      requiredLimits: {
        maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
        maxBufferSize: limits.maxBufferSize,
      },
    })
    .catch((cause: Error) => {
      throw new WeftError({
        code: "WEFT_DEVICE",
        where,
        expected: "a device",
        found: cause.message,
        cause,
      });
    });
  const watch = new Watch(device);
  try {
    const bytes = sizesOf(plan, layers);
    options.onProgress?.(planProgress(bytes));
    const memory = await watch.scoped(Object.values(bytes), () => allocate(device, plan, layers));
    const kernels = await compileKernels(watch, plan, memory.layouts, file);
    watch.loaded();
    return play(watch, plan, memory, kernels, {
      info: {
        target: "webgpu",
        numerics: "webgpu",
        name: info.description || info.device || info.vendor || "WebGPU adapter",
        software,
      },
      bytes,
      sizes,
    });
  } catch (e) {
    // Whatever failed after the device was gone failed because of that.
    const { lost } = watch;
    watch.destroy();
    throw lost ?? e;
  }
}

/**
 * A device, and what it says unasked: that it is lost, and errors that no scope caught, each of which is told
 * once.
 */
class Watch {
  lost: WeftError | null = null;
  /** Resolves when the device is lost, not when it is destroyed here. */
  readonly whenLost: Promise<WeftError>;
  private failure: string | null = null;
  private destroyed = false;
  private forget = (): void => {};
  private readonly hear = (e: GPUUncapturedErrorEvent): void => {
    this.failure ??= e.error.message;
  };
  constructor(readonly device: GPUDevice) {
    device.addEventListener("uncapturederror", this.hear);
    this.whenLost = new Promise((resolve) => {
      void device.lost.then((reason) => {
        if (this.destroyed) return;
        this.lost = new WeftError({
          code: "WEFT_DEVICE_LOST",
          where: "webgpu device",
          expected: "a device",
          found: reason.message || reason.reason,
          hint: "load the model again",
          retryable: true,
        });
        resolve(this.lost);
      });
    });
  }
  /** Kernels have been compiled: from here on a process that exits waits for what the device is at. */
  loaded(): void {
    this.check();
    this.forget = destroyAtExit(this.device);
  }
  /** Throws when the device is lost or was let go, and for an error since the last check. */
  check = (): void => {
    if (this.lost) throw this.lost;
    if (this.destroyed)
      throw new WeftError({
        code: "WEFT_DISPOSED",
        where: "webgpu device",
        expected: "a device in use",
        found: "dispose() was called",
      });
    if (this.failure === null) return;
    const found = this.failure;
    this.failure = null;
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "webgpu step",
      expected: "commands that validate",
      found,
    });
  };
  /** Wait for work of the device; what it cannot do because it is lost throws that. */
  async until<T>(work: Promise<T>, where: string): Promise<T> {
    try {
      return await settled(work, () => {
        if (this.lost) throw this.lost;
      });
    } catch (cause) {
      if (cause instanceof WeftError) throw cause;
      this.check();
      throw new WeftError({
        code: "WEFT_DEVICE_LOST",
        where,
        expected: "a device that answers",
        found: (cause as Error)?.message ?? String(cause),
        retryable: true,
        cause,
      });
    }
  }
  /** What `make` allocates; throws WEFT_CAPACITY or WEFT_DEVICE when the device refuses some of it. */
  async scoped<T>(bytes: readonly number[], make: () => T): Promise<T> {
    const { device } = this;
    device.pushErrorScope("out-of-memory");
    device.pushErrorScope("validation");
    let made: T;
    let scopes: Promise<GPUError | null>[];
    try {
      made = make();
    } finally {
      scopes = [device.popErrorScope(), device.popErrorScope()];
    }
    const [invalid, full] = await this.until(Promise.all(scopes), "webgpu memory");
    if (full || invalid)
      throw new WeftError({
        code: full ? "WEFT_CAPACITY" : "WEFT_DEVICE",
        where: "webgpu device",
        expected: `${bytes.reduce((a, b) => a + b, 0)} bytes of buffers`,
        found: (full ?? invalid)!.message,
      });
    return made;
  }
  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.device.removeEventListener("uncapturederror", this.hear);
    this.forget();
    this.device.destroy();
  }
}

/**
 * Adapters do not say how much memory they have: what they refuse is told when it is taken. The smallest
 * bindings are of 128 MiB.
 */
export const webGpuLimits: Limits = { memory: Number.MAX_SAFE_INTEGER, chamber: 128 * 2 ** 20 };
export const measureWebGpu =
  (layers: number): Measure =>
  (plan) => {
    const bytes = sizesOf(plan, layers);
    return {
      bytes,
      total: Object.values(bytes).reduce((a, b) => a + b, 0),
      largest: Math.max(...memoryClasses.map((cls) => largestOf(plan, layers, cls))),
    };
  };
/** Bytes of the largest chamber of a class. */
const largestOf = (plan: Plan, layers: number, cls: MemoryClass): number =>
  Math.max(...[0, layers].map((g) => chamberWords(plan, layers, cls, g) * 4));
function sizesOf(plan: Plan, layers: number): Record<string, number> {
  const bytes: Record<string, number> = {};
  for (const cls of memoryClasses)
    for (let g = 0; g <= (isShared(cls) ? 0 : layers); g++)
      bytes[cls] = (bytes[cls] ?? 0) + chamberWords(plan, layers, cls, g) * 4;
  return bytes;
}

interface Memory {
  readonly of: (cls: MemoryClass, group: number) => GPUBuffer;
  readonly meta: GPUBuffer;
  /** Weights are read-only everywhere but in the update of full training, which has the second layout. */
  readonly layouts: readonly [GPUBindGroupLayout, GPUBindGroupLayout];
  /** Of each layout, by group. */
  readonly groups: readonly (readonly GPUBindGroup[])[];
}
function allocate(device: GPUDevice, plan: Plan, layers: number): Memory {
  const buffers = new Map<string, GPUBuffer>();
  const key = (cls: MemoryClass, group: number): string => `${cls}.${isShared(cls) ? 0 : group}`;
  for (let g = 0; g <= layers; g++)
    for (const cls of memoryClasses)
      if (!buffers.has(key(cls, g)))
        buffers.set(
          key(cls, g),
          device.createBuffer({
            label: key(cls, g),
            size: chamberWords(plan, layers, cls, g) * 4,
            usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
          }),
        );
  const of = (cls: MemoryClass, group: number): GPUBuffer => buffers.get(key(cls, group))!;
  const blockBytes = 4 * Math.max(plan.stepWords, plan.blocks.unit.words, plan.blocks.update.words);
  const layoutFor = (writable: boolean): GPUBindGroupLayout =>
    device.createBindGroupLayout({
      entries: memoryClasses.map((cls, binding) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: {
          type:
            READ_ONLY.includes(cls) && !(writable && cls === "weights")
              ? ("read-only-storage" as const)
              : ("storage" as const),
          hasDynamicOffset: cls === "meta",
        },
      })),
    });
  const layouts = [layoutFor(false), layoutFor(true)] as const;
  const meta = device.createBuffer({
    label: "metadata of the step",
    size: plan.metaWords * 4 + blockBytes,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
  });
  const groups = layouts.map((layout) =>
    Array.from({ length: layers + 1 }, (_, g) =>
      device.createBindGroup({
        layout,
        entries: memoryClasses.map((cls, binding) => ({
          binding,
          resource: cls === "meta" ? { buffer: meta, offset: 0, size: blockBytes } : { buffer: of(cls, g) },
        })),
      }),
    ),
  );
  return { of, meta, layouts, groups };
}

interface Kernel {
  readonly pipeline: GPUComputePipeline;
  /** Which layout it has: 1 where it writes weights. */
  readonly layout: 0 | 1;
}
/**
 * Compile every kernel, by index; those with the same text share a pipeline. All have ended when this does,
 * also when one fails.
 */
async function compileKernels(
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
  const all = Object.entries(plan.kernels).map(async ([name, kernel]): Promise<Kernel> => {
    const code = new TextDecoder().decode(await file(kernel.file));
    const layout = kernel.weights === "written" ? 1 : 0;
    const key = `${layout}${code.slice(code.indexOf("\n"))}`;
    const known = made.get(key) ?? compile(name, code, layout);
    made.set(key, known);
    return { pipeline: await known, layout };
  });
  const ended = await watch.until(Promise.allSettled(all), "webgpu kernels");
  return ended.map((e) => {
    if (e.status === "rejected") throw e.reason;
    return e.value;
  });
}

/**
 * Play command lists. Everything is submitted when it is asked for, so the device's own queue keeps writes,
 * steps and reads in order.
 */
function play(
  watch: Watch,
  plan: Plan,
  memory: Memory,
  kernels: readonly Kernel[],
  about: {
    readonly info: Device["info"];
    readonly bytes: Readonly<Record<string, number>>;
    readonly sizes: Sizes;
  },
): Device {
  const { device } = watch;
  const { queue } = device;
  const stats = { launches: 0, encodeMs: 0 };
  const pending = new Set<Promise<unknown>>();
  const idle: GPUBuffer[] = [];
  const takeStaging = (bytes: number): GPUBuffer => {
    const at = idle.findIndex((b) => b.size >= bytes);
    if (at >= 0) return idle.splice(at, 1)[0]!;
    return device.createBuffer({
      label: "read back",
      size: Math.ceil(bytes / STAGING_STEP) * STAGING_STEP,
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
  };
  const giveStaging = (buffer: GPUBuffer): void => {
    idle.push(buffer);
    if (idle.length <= STAGINGS) return;
    // The small ones go: the next step may need a large one again.
    idle.sort((a, b) => b.size - a.size);
    idle.pop()!.destroy();
  };
  /**
   * Submit what is encoded, with copies of `ranges`, in one go; resolves with their words when it has run.
   */
  const submit = async (encoder: GPUCommandEncoder, ranges: readonly Range[]): Promise<Float32Array[]> => {
    const total = ranges.reduce((n, r) => n + r.words * 4, 0);
    const staging = total ? takeStaging(total) : null;
    let at = 0;
    for (const r of ranges) {
      if (r.words)
        encoder.copyBufferToBuffer(memory.of(r.cls, r.group), r.offset * 4, staging!, at, r.words * 4);
      at += r.words * 4;
    }
    queue.submit([encoder.finish()]);
    if (!staging) {
      await watch.until(queue.onSubmittedWorkDone(), "webgpu step");
      watch.check();
      return ranges.map(() => new Float32Array(0));
    }
    let all: Float32Array;
    try {
      await watch.until(staging.mapAsync(GPUMapMode.READ, 0, total), "read back");
      all = new Float32Array(staging.getMappedRange(0, total).slice(0));
      staging.unmap();
    } catch (e) {
      staging.destroy();
      throw e;
    }
    giveStaging(staging);
    watch.check();
    at = 0;
    return ranges.map((r) => {
      const out = all.subarray(at, at + r.words);
      at += r.words;
      return out;
    });
  };
  const tracked = <T>(work: Promise<T>): Promise<T> => {
    const end = work.then(
      () => {},
      () => {},
    );
    pending.add(end);
    void end.then(() => pending.delete(end));
    return work;
  };
  const encode = (commands: Int32Array, meta: Uint32Array): GPUCommandEncoder => {
    const t0 = performance.now();
    queue.writeBuffer(memory.meta, 0, meta.buffer as ArrayBuffer, meta.byteOffset, meta.byteLength);
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    let group = -1;
    let offset = -1;
    let layout = -1;
    for (let i = 0; i < commands.length; i += 6) {
      const kernel = kernels[commands[i]!]!;
      pass.setPipeline(kernel.pipeline);
      if (commands[i + 1] !== group || commands[i + 2] !== offset || kernel.layout !== layout) {
        group = commands[i + 1]!;
        offset = commands[i + 2]!;
        ({ layout } = kernel);
        pass.setBindGroup(0, memory.groups[layout]![group]!, [offset]);
      }
      pass.dispatchWorkgroups(commands[i + 3]!, commands[i + 4]!, commands[i + 5]!);
    }
    pass.end();
    stats.launches += commands.length / 6;
    stats.encodeMs += performance.now() - t0;
    return encoder;
  };
  const readAll = async (ranges: readonly Range[]): Promise<Float32Array[]> => {
    watch.check();
    const out: Float32Array[] = [];
    for (let from = 0; from < ranges.length; ) {
      let to = from;
      for (let bytes = 0; to < ranges.length; to++) {
        bytes += ranges[to]!.words * 4;
        if (bytes > STAGING && to > from) break;
      }
      out.push(...(await submit(device.createCommandEncoder(), ranges.slice(from, to))));
      from = to;
    }
    return out;
  };
  let disposed: Promise<void> | null = null;
  return {
    stats,
    info: about.info,
    plan,
    sizes: about.sizes,
    // A CPU behind WebGPU has few lanes and pays for every barrier: kernels without them, however few the
    // rows.
    manyRows: about.info.software ? 1 : 64,
    lanes: 1,
    memory: about.bytes,
    lost: watch.whenLost,
    write: (to, data) => {
      watch.check();
      queue.writeBuffer(
        memory.of(to.cls, to.group),
        to.offset * 4,
        data.buffer as ArrayBuffer,
        data.byteOffset,
        data.byteLength,
      );
    },
    clear: (r) => {
      watch.check();
      const encoder = device.createCommandEncoder();
      encoder.clearBuffer(memory.of(r.cls, r.group), r.offset * 4, r.words * 4);
      queue.submit([encoder.finish()]);
    },
    run: async (_lane, commands, meta, reads) => {
      watch.check();
      return tracked(submit(encode(commands, meta), reads));
    },
    readAll: (ranges) => tracked(readAll(ranges)),
    read: async (range) => (await tracked(readAll([range])))[0]!,
    rest: () => {},
    dispose: () => {
      disposed ??= (async () => {
        await Promise.all(pending);
        watch.destroy();
      })();
      return disposed;
    },
  };
}
