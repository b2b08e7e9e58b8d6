/** Chambers as buffers: what they take, and bind groups over them, one a group. */
import { LAUNCH_BINDING, LAUNCH_VECTORS, type Limits, type Measure, type Plan } from "../bundle.ts";
import { chamberWords, isShared, type MemorySpace, memorySpaces } from "../device.ts";

const READ_ONLY: readonly MemorySpace[] = ["weights", "meta", "tables"];
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
      largest: Math.max(...memorySpaces.map((space) => largestOf(plan, layers, space))),
    };
  };
/** Bytes of the largest chamber of a class. */
export const largestOf = (plan: Plan, layers: number, space: MemorySpace): number =>
  Math.max(...[0, layers].map((g) => chamberWords(plan, layers, space, g) * 4));
export function sizesOf(plan: Plan, layers: number): Record<string, number> {
  const bytes: Record<string, number> = {};
  for (const space of memorySpaces)
    for (let g = 0; g <= (isShared(space) ? 0 : layers); g++)
      bytes[space] = (bytes[space] ?? 0) + chamberWords(plan, layers, space, g) * 4;
  return bytes;
}

export interface Memory {
  readonly of: (space: MemorySpace, group: number) => GPUBuffer;
  readonly meta: GPUBuffer;
  /** Weights are read-only everywhere but in the update of full training, which has the second layout. */
  readonly layouts: readonly [GPUBindGroupLayout, GPUBindGroupLayout];
  /** Of each layout, by group. */
  readonly groups: readonly ReadonlyMap<number, GPUBindGroup>[];
  /** Let go of the buffers that were made for it. */
  readonly destroy: () => void;
}
/** Memory of the outer group and of all layers, or of the `first`, with the weights of another. */
export function allocate(
  device: GPUDevice,
  plan: Plan,
  layers: number,
  apart?: { readonly first: number; readonly weights: Memory },
): Memory {
  const buffers = new Map<string, GPUBuffer>();
  const key = (space: MemorySpace, group: number): string => `${space}.${isShared(space) ? 0 : group}`;
  const numbersOf = [...Array(apart?.first ?? layers).keys(), layers];
  const own: GPUBuffer[] = [];
  const create = (descriptor: GPUBufferDescriptor): GPUBuffer => {
    const buffer = device.createBuffer(descriptor);
    own.push(buffer);
    return buffer;
  };
  for (const g of numbersOf)
    for (const space of memorySpaces)
      if (!buffers.has(key(space, g)))
        buffers.set(
          key(space, g),
          apart && space === "weights"
            ? apart.weights.of(space, g)
            : create({
                label: key(space, g),
                size: chamberWords(plan, layers, space, g) * 4,
                usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
              }),
        );
  const of = (space: MemorySpace, group: number): GPUBuffer => buffers.get(key(space, group))!;
  const blockBytes = 4 * Math.max(plan.stepWords, plan.blocks.unit.words, plan.blocks.update.words);
  const layoutFor = (writable: boolean): GPUBindGroupLayout =>
    device.createBindGroupLayout({
      entries: [
        ...memorySpaces.map((space, binding) => ({
          binding,
          visibility: GPUShaderStage.COMPUTE,
          buffer: {
            type:
              READ_ONLY.includes(space) && !(writable && space === "weights")
                ? ("read-only-storage" as const)
                : ("storage" as const),
            hasDynamicOffset: space === "meta",
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
  const meta = create({
    label: "metadata of the step",
    size: plan.metaWords * 4 + blockBytes,
    usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST,
  });
  const kernels = Object.values(plan.kernels);
  const launches = create({
    label: "numbers of launches",
    size: kernels.length * LAUNCH_BYTES,
    usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
  });
  const numbers = new Int32Array((kernels.length * LAUNCH_BYTES) / 4);
  for (const [i, { launch }] of kernels.entries()) numbers.set(launch, (i * LAUNCH_BYTES) / 4);
  device.queue.writeBuffer(launches, 0, numbers);
  const groupOf = (layout: GPUBindGroupLayout, g: number): GPUBindGroup =>
    device.createBindGroup({
      layout,
      entries: [
        ...memorySpaces.map((space, binding) => ({
          binding,
          resource:
            space === "meta" ? { buffer: meta, offset: 0, size: blockBytes } : { buffer: of(space, g) },
        })),
        { binding: LAUNCH_BINDING, resource: { buffer: launches, offset: 0, size: LAUNCH_VECTORS * 16 } },
      ],
    });
  const groups = layouts.map((layout) => new Map(numbersOf.map((g) => [g, groupOf(layout, g)])));
  const destroy = (): void => {
    for (const buffer of own) buffer.destroy();
  };
  return { of, meta, layouts, groups, destroy };
}
