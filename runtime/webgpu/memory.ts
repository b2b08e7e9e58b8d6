/** Chambers as buffers: what they take, and bind groups over them, one a group. */
import { LAUNCH_BINDING, LAUNCH_VECTORS, type Limits, type Measure, type Plan } from "../bundle.ts";
import { chamberWords, isShared, type MemoryClass, memoryClasses } from "../device.ts";

const READ_ONLY: readonly MemoryClass[] = ["weights", "meta", "tables"];
/** From the numbers of one kernel to those of the next: what any device takes as an offset. */
export const LAUNCH_BYTES = 256;

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
export const largestOf = (plan: Plan, layers: number, cls: MemoryClass): number =>
  Math.max(...[0, layers].map((g) => chamberWords(plan, layers, cls, g) * 4));
export function sizesOf(plan: Plan, layers: number): Record<string, number> {
  const bytes: Record<string, number> = {};
  for (const cls of memoryClasses)
    for (let g = 0; g <= (isShared(cls) ? 0 : layers); g++)
      bytes[cls] = (bytes[cls] ?? 0) + chamberWords(plan, layers, cls, g) * 4;
  return bytes;
}

export interface Memory {
  readonly of: (cls: MemoryClass, group: number) => GPUBuffer;
  readonly meta: GPUBuffer;
  /** Weights are read-only everywhere but in the update of full training, which has the second layout. */
  readonly layouts: readonly [GPUBindGroupLayout, GPUBindGroupLayout];
  /** Of each layout, by group. */
  readonly groups: readonly (readonly GPUBindGroup[])[];
}
export function allocate(device: GPUDevice, plan: Plan, layers: number): Memory {
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
      entries: [
        ...memoryClasses.map((cls, binding) => ({
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
        {
          binding: LAUNCH_BINDING,
          visibility: GPUShaderStage.COMPUTE,
          buffer: { type: "uniform", hasDynamicOffset: true },
        },
      ],
    });
  const layouts = [layoutFor(false), layoutFor(true)] as const;
  const meta = device.createBuffer({
    label: "metadata of the step",
    size: plan.metaWords * 4 + blockBytes,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
  });
  const kernels = Object.values(plan.kernels);
  const launches = device.createBuffer({
    label: "numbers of launches",
    size: kernels.length * LAUNCH_BYTES,
    usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
  });
  const numbers = new Int32Array((kernels.length * LAUNCH_BYTES) / 4);
  for (const [i, { launch }] of kernels.entries()) numbers.set(launch, (i * LAUNCH_BYTES) / 4);
  device.queue.writeBuffer(launches, 0, numbers);
  const groups = layouts.map((layout) =>
    Array.from({ length: layers + 1 }, (_, g) =>
      device.createBindGroup({
        layout,
        entries: [
          ...memoryClasses.map((cls, binding) => ({
            binding,
            resource: cls === "meta" ? { buffer: meta, offset: 0, size: blockBytes } : { buffer: of(cls, g) },
          })),
          { binding: LAUNCH_BINDING, resource: { buffer: launches, offset: 0, size: LAUNCH_VECTORS * 16 } },
        ],
      }),
    ),
  );
  return { of, meta, layouts, groups };
}
