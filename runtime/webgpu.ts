/** The WebGPU target: one bind group a group of chambers, one compute pass a step, metadata by dynamic offset. */
import { type Manifest, WeftError } from "./bundle.ts";
import { openGpu, settled } from "./dawn.ts";
import {
  chamberWords,
  type Device,
  isShared,
  type LoadProgress,
  type MemoryClass,
  memoryClasses,
  planProgress,
  type Range,
} from "./device.ts";

const READ_ONLY: readonly MemoryClass[] = ["weights", "meta", "tables"];

/** Open the bundle's `webgpu` plan; null when there is no adapter of the wanted kind. Throws when the adapter cannot hold the plan. */
export async function openWebGpu(
  manifest: Manifest,
  file: (name: string) => Promise<Uint8Array>,
  kind: "hardware" | "software",
  onProgress?: (p: LoadProgress) => void,
): Promise<Device | null> {
  const plan = manifest.targets.webgpu;
  if (!plan)
    throw new WeftError({
      code: "WEFT_DEVICE",
      where: "target",
      expected: "a bundle compiled for webgpu",
      found: Object.keys(manifest.targets).join(", "),
    });
  const gpu = await openGpu(kind);
  const adapter = await gpu?.requestAdapter(
    kind === "hardware" ? { powerPreference: "high-performance" } : {},
  );
  if (!adapter) return null;
  const info = adapter.info;
  const software =
    Boolean((info as { isFallbackAdapter?: boolean }).isFallbackAdapter) ||
    /swiftshader|llvmpipe|lavapipe|software|basic render/i.test(
      `${info.vendor} ${info.architecture} ${info.device} ${info.description}`,
    );
  if (software !== (kind === "software")) return null;

  const layers = manifest.model.layers;
  const largest = Math.max(
    ...memoryClasses.flatMap((cls) => [0, layers].map((g) => chamberWords(plan, layers, cls, g) * 4)),
  );
  const limits = adapter.limits;
  if (largest > limits.maxStorageBufferBindingSize || largest > limits.maxBufferSize)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: `adapter ${info.description || info.device}`,
      expected: `bindings of ${largest} bytes`,
      found: `at most ${Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize)}`,
      hint: "compile with smaller capacities, or --format f16",
    });
  const device = await adapter.requestDevice({
    requiredLimits: {
      maxStorageBufferBindingSize: Math.max(limits.maxStorageBufferBindingSize, largest),
      maxBufferSize: limits.maxBufferSize,
    },
  });
  let lost: WeftError | null = null;
  void device.lost.then((reason) => {
    lost = new WeftError({
      code: "WEFT_DEVICE_LOST",
      where: "webgpu device",
      expected: "a device",
      found: reason.message || reason.reason,
      retryable: true,
    });
  });

  const bytes: Record<string, number> = {};
  for (const cls of memoryClasses)
    for (let g = 0; g <= (isShared(cls) ? 0 : layers); g++)
      bytes[cls] = (bytes[cls] ?? 0) + chamberWords(plan, layers, cls, g) * 4;
  onProgress?.(planProgress(bytes));
  device.pushErrorScope("out-of-memory");
  device.pushErrorScope("validation");
  const buffers = new Map<string, GPUBuffer>();
  const make = (cls: MemoryClass, group: number): void => {
    const size = chamberWords(plan, layers, cls, group) * 4;
    buffers.set(
      `${cls}.${group}`,
      device.createBuffer({
        label: `${cls}.${group}`,
        size,
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
      }),
    );
  };
  for (const cls of memoryClasses) if (isShared(cls)) make(cls, 0);
  for (let g = 0; g <= layers; g++) for (const cls of memoryClasses) if (!isShared(cls)) make(cls, g);
  const bufferOf = (cls: MemoryClass, group: number): GPUBuffer =>
    buffers.get(`${cls}.${isShared(cls) ? 0 : group}`)!;

  // Two layouts: weights are read-only everywhere but in the update of full training.
  const blockBytes = Math.max(...Object.values(plan.blocks).map((b) => b.words * 4));
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
  const metaBuffer = device.createBuffer({
    label: "meta",
    size: plan.metaWords * 4 + blockBytes,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
  });
  const groups = layouts.map((layout) =>
    Array.from({ length: layers + 1 }, (_, g) =>
      device.createBindGroup({
        layout,
        entries: memoryClasses.map((cls, binding) => ({
          binding,
          resource:
            cls === "meta"
              ? { buffer: metaBuffer, offset: 0, size: blockBytes }
              : { buffer: bufferOf(cls, g) },
        })),
      }),
    ),
  );
  const names = Object.keys(plan.kernels);
  const pipelineLayouts = layouts.map((l) => device.createPipelineLayout({ bindGroupLayouts: [l] }));
  const writable = names.map((n) => /^(adamw|sgd)_full/.test(n));
  // Kernels with the same text share a pipeline.
  const cache = new Map<string, Promise<GPUComputePipeline>>();
  const compiled = Promise.all(
    names.map(async (name, i) => {
      const code = new TextDecoder().decode(await file(plan.kernels[name]!.file));
      const key = `${writable[i]}${code.slice(code.indexOf("\n"))}`;
      let p = cache.get(key);
      if (!p) {
        const module = device.createShaderModule({ label: name, code });
        p = device
          .createComputePipelineAsync({
            label: name,
            layout: pipelineLayouts[writable[i] ? 1 : 0]!,
            compute: { module, entryPoint: "main" },
          })
          .catch(async (cause: Error) => {
            const { messages } = await module.getCompilationInfo();
            const found = messages.map((m) => `line ${m.lineNum}: ${m.message}`).join("; ") || cause.message;
            throw new WeftError({
              code: "WEFT_DEVICE",
              where: `kernel ${name}`,
              expected: "WGSL that this adapter compiles",
              found,
              cause,
            });
          });
        cache.set(key, p);
      }
      return p;
    }),
  );
  const pipelines = await settled(compiled);
  const invalid = await device.popErrorScope();
  const memoryError = await device.popErrorScope();
  if (invalid || memoryError) {
    device.destroy();
    const what = (memoryError ?? invalid)!;
    throw new WeftError({
      code: memoryError ? "WEFT_CAPACITY" : "WEFT_DEVICE",
      where: "webgpu device",
      expected: `${Object.values(bytes).reduce((a, b) => a + b, 0)} bytes of buffers`,
      found: what.message,
    });
  }

  let failure: string | null = null;
  device.addEventListener("uncapturederror", (e) => {
    failure ??= e.error.message;
  });
  let staging = device.createBuffer({
    size: 65536,
    usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
  });
  // One read-back at a time: the staging buffer is shared, and a job may read between two steps.
  let last: Promise<unknown> = Promise.resolve();
  const fetchAll = (ranges: readonly Range[], encode: () => GPUCommandEncoder): Promise<Float32Array[]> => {
    const next = last.then(() => fetchNow(ranges, encode()));
    last = next.catch(() => {});
    return next;
  };
  const fetchNow = async (ranges: readonly Range[], encoder: GPUCommandEncoder): Promise<Float32Array[]> => {
    const total = ranges.reduce((n, r) => n + r.words * 4, 0);
    if (total > staging.size) {
      staging.destroy();
      staging = device.createBuffer({
        size: Math.ceil(total / 65536) * 65536,
        usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
      });
    }
    let at = 0;
    for (const r of ranges) {
      encoder.copyBufferToBuffer(bufferOf(r.cls, r.group), r.offset * 4, staging, at, r.words * 4);
      at += r.words * 4;
    }
    device.queue.submit([encoder.finish()]);
    if (!total) {
      await settled(device.queue.onSubmittedWorkDone());
      check();
      return [];
    }
    await settled(staging.mapAsync(GPUMapMode.READ, 0, total)).catch((cause: Error) => {
      check();
      throw new WeftError({
        code: "WEFT_DEVICE_LOST",
        where: "read back",
        expected: "a mapped buffer",
        found: cause.message,
        retryable: true,
        cause,
      });
    });
    const all = new Float32Array(staging.getMappedRange(0, total).slice(0));
    staging.unmap();
    check();
    at = 0;
    return ranges.map((r) => {
      const out = all.subarray(at, at + r.words);
      at += r.words;
      return out;
    });
  };
  const check = (): void => {
    if (lost) throw lost;
    if (failure)
      throw new WeftError({
        code: "WEFT_DEVICE",
        where: "webgpu step",
        expected: "commands that validate",
        found: failure,
      });
  };

  const stats = { launches: 0, encodeMs: 0 };
  return {
    stats,
    info: {
      target: "webgpu",
      numerics: "webgpu",
      name: info.description || info.device || info.vendor || "WebGPU adapter",
      software,
    },
    plan,
    // A CPU behind WebGPU has few lanes and pays for every barrier: kernels without them, however few the rows.
    manyRows: software ? 1 : 64,
    lanes: 1,
    memory: bytes,
    write: (to, data) => {
      device.queue.writeBuffer(
        bufferOf(to.cls, to.group),
        to.offset * 4,
        data.buffer as ArrayBuffer,
        data.byteOffset,
        data.byteLength,
      );
    },
    clear: (r) => {
      const encoder = device.createCommandEncoder();
      encoder.clearBuffer(bufferOf(r.cls, r.group), r.offset * 4, r.words * 4);
      device.queue.submit([encoder.finish()]);
    },
    run: (_lane, commands, meta, reads) =>
      fetchAll(reads, () => {
        check();
        const t0 = performance.now();
        device.queue.writeBuffer(metaBuffer, 0, meta.buffer as ArrayBuffer, meta.byteOffset, meta.byteLength);
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        let group = -1;
        let offset = -1;
        let rw = -1;
        for (let i = 0; i < commands.length; i += 6) {
          const kernel = commands[i]!;
          const w = writable[kernel] ? 1 : 0;
          pass.setPipeline(pipelines[kernel]!);
          if (commands[i + 1] !== group || commands[i + 2] !== offset || w !== rw) {
            group = commands[i + 1]!;
            offset = commands[i + 2]!;
            rw = w;
            pass.setBindGroup(0, groups[w]![group]!, [offset]);
          }
          pass.dispatchWorkgroups(commands[i + 3]!, commands[i + 4]!, commands[i + 5]!);
        }
        pass.end();
        stats.launches += commands.length / 6;
        stats.encodeMs += performance.now() - t0;
        return encoder;
      }),
    read: async (r) => (await fetchAll([r], () => device.createCommandEncoder()))[0]!,
    rest: () => {},
    dispose: () => {
      for (const b of buffers.values()) b.destroy();
      metaBuffer.destroy();
      staging.destroy();
      device.destroy();
    },
  };
}
