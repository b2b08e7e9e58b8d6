/**
 * Chambers as buffers: what they take, and bind groups over them, one a group. Those of a single matrix are a
 * buffer a shard; a bind group of a shard has the outer group's buffers beside it.
 */
import {
  groupsOf,
  LAUNCH_BINDING,
  LAUNCH_VECTORS,
  type Limits,
  type Measure,
  mostStates,
  type Plan,
  type Run,
  runsOf,
  shardsOf,
} from "../bundle.ts";
import { chamberWords, isShared, type MemorySpace, memorySpaces, type Range } from "../device.ts";

const READ_ONLY: readonly MemorySpace[] = ["weights", "meta", "tables"];
/** From the numbers of one kernel to those of the next: what any device takes as an offset. */
export const LAUNCH_BYTES = 16 * (LAUNCH_VECTORS + 1);

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
      largest: memorySpaces
        .map((space) => [largestOf(plan, layers, space), space] as const)
        .reduce((a, b) => (b[0] > a[0] ? b : a)),
    };
  };
/** The matrices that are groups of their own, in order, with their shards of at most `bytes`. */
export const shardsFor = (plan: Plan, bytes: number) =>
  plan.outerParams.flatMap(({ name, n, own }) =>
    own === null ? [] : [{ name, own, shards: shardsOf(n, plan.own[own]!, bytes) }],
  );
/** Bytes of the largest chamber of a class, beside those in shards. */
export const largestOf = (plan: Plan, layers: number, space: MemorySpace): number =>
  Math.max(...[0, layers].map((g) => chamberWords(plan, layers, space, g) * 4));
export function sizesOf(plan: Plan, layers: number): Record<string, number> {
  const bytes: Record<string, number> = {};
  for (const space of memorySpaces)
    for (let g = 0; g < (isShared(space) ? 1 : groupsOf(plan, layers)); g++)
      bytes[space] = (bytes[space] ?? 0) + chamberWords(plan, layers, space, g) * 4;
  return bytes;
}

/** Words of a buffer, which are a range or a part of one. */
export interface Part {
  readonly buffer: GPUBuffer;
  readonly at: number;
  readonly words: number;
}
/** A shard, as launches over it are played. */
interface Bound {
  /** Of all panels of the matrix, those that are here. */
  readonly part: number;
  /** Of each layout. */
  readonly groups: readonly GPUBindGroup[];
}
export interface Memory {
  readonly chamber: (space: MemorySpace, group: number) => Chamber;
  /** Where a range lies, in order. */
  readonly parts: (range: Omit<Range, "lane">) => readonly Part[];
  readonly meta: GPUBuffer;
  /** Of metadata, what a launch sees from its offset on. */
  readonly blockBytes: number;
  /** Weights are read-only everywhere but in the update of full training, which has the second layout. */
  readonly layouts: readonly [GPUBindGroupLayout, GPUBindGroupLayout];
  /** Of each layout, by group. */
  readonly groups: readonly ReadonlyMap<number, GPUBindGroup>[];
  /** Of the matrices that are groups of their own. */
  readonly shards: readonly (readonly Bound[])[];
  /** By kernel, where the numbers lie that it brings: bytes; those of each shard are `LAUNCH_BYTES` apart. */
  readonly launches: readonly number[];
  /** Let go of the buffers that were made for it. */
  readonly destroy: () => void;
}
/** The buffers of a chamber: one, or one a shard, and where its words are in them. */
interface Chamber {
  readonly buffers: readonly GPUBuffer[];
  readonly runs: readonly Run[];
}
/**
 * Memory of the outer group and of all layers, or of the `first`, with the weights of another; shards of at
 * most `most` bytes.
 */
export function allocate(
  device: GPUDevice,
  plan: Plan,
  layers: number,
  most: number,
  apart?: { readonly first: number; readonly weights: Memory },
): Memory {
  const made: GPUBuffer[] = [];
  const create = (descriptor: GPUBufferDescriptor): GPUBuffer => {
    const buffer = device.createBuffer(descriptor);
    made.push(buffer);
    return buffer;
  };
  const chambers = new Map<string, Chamber>();
  const key = (space: MemorySpace, group: number): string => `${space}.${isShared(space) ? 0 : group}`;
  const chamber = (space: MemorySpace, group: number): Chamber => chambers.get(key(space, group))!;
  const place = (space: MemorySpace, group: number, runs: readonly Run[]): void => {
    const words: number[] = [];
    for (const r of runs) words[r.shard] = (words[r.shard] ?? 0) + r.words;
    const label = key(space, group);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    const of = (): Chamber => ({ buffers: words.map((n) => create({ label, size: n * 4, usage })), runs });
    chambers.set(label, apart && space === "weights" ? apart.weights.chamber(space, group) : of());
  };
  const regions = [...Array(apart?.first ?? layers).keys(), layers];
  for (const g of regions)
    for (const space of memorySpaces)
      if (!chambers.has(key(space, g)))
        place(space, g, [{ shard: 0, from: 0, at: 0, words: chamberWords(plan, layers, space, g) }]);
  const lists = shardsFor(plan, most).map(({ own, shards }) => {
    const { weights, accum } = plan.own[own]!;
    place("weights", layers + 1 + own, runsOf(shards, weights, 1));
    if (accum) place("accum", layers + 1 + own, runsOf(shards, accum, 1 + mostStates));
    return shards;
  });

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
  // A kernel's numbers, once for every shard that it is launched over, with the shard's rows behind them.
  const each = Object.values(plan.kernels).map(({ launch, shards }) => ({
    launch,
    shards,
    over: shards ? lists[shards.of]! : [{ first: 0, rows: 0 }],
  }));
  const slots = each.flatMap(({ launch, over }) => over.map((shard) => ({ launch, shard })));
  const launches = create({
    label: "numbers of launches",
    size: slots.length * LAUNCH_BYTES,
    usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
  });
  const numbers = new Int32Array((slots.length * LAUNCH_BYTES) / 4);
  for (const [i, { launch, shard }] of slots.entries()) {
    numbers.set(launch, (i * LAUNCH_BYTES) / 4);
    numbers.set([shard.first, shard.rows], (i * LAUNCH_BYTES) / 4 + 4 * LAUNCH_VECTORS);
  }
  device.queue.writeBuffer(launches, 0, numbers);
  const groupWith = (layout: GPUBindGroupLayout, of: (space: MemorySpace) => GPUBuffer): GPUBindGroup =>
    device.createBindGroup({
      layout,
      entries: [
        ...memorySpaces.map((space, binding) => ({
          binding,
          resource: space === "meta" ? { buffer: meta, offset: 0, size: blockBytes } : { buffer: of(space) },
        })),
        {
          binding: LAUNCH_BINDING,
          resource: { buffer: launches, offset: 0, size: (LAUNCH_VECTORS + 1) * 16 },
        },
      ],
    });
  const regionOf = (g: number) => (space: MemorySpace) => chamber(space, g).buffers[0]!;
  const shardOf = (own: number, i: number) => (space: MemorySpace) =>
    chambers.get(key(space, layers + 1 + own))?.buffers[i] ?? regionOf(layers)(space);
  let slot = 0;
  return {
    chamber,
    parts: ({ space, group, offset, words }) => {
      const { buffers, runs } = chamber(space, group);
      if (!words) return [];
      // What does not fit the device says.
      if (runs.length === 1) return [{ buffer: buffers[0]!, at: offset, words }];
      if (offset + words > chamberWords(plan, layers, space, group))
        throw new RangeError(`${words} words at ${offset} of ${key(space, group)}`);
      return runs.flatMap((r): Part[] => {
        const [from, to] = [Math.max(offset, r.from), Math.min(offset + words, r.from + r.words)];
        return from < to ? [{ buffer: buffers[r.shard]!, at: r.at + from - r.from, words: to - from }] : [];
      });
    },
    meta,
    blockBytes,
    layouts,
    groups: layouts.map((layout) => new Map(regions.map((g) => [g, groupWith(layout, regionOf(g))]))),
    shards: lists.map((shards, own) => {
      const panels = shards.map(({ rows }) => Math.ceil(rows / plan.panel));
      const all = panels.reduce((a, b) => a + b, 0);
      return panels.map((n, i) => ({
        part: n / all,
        groups: layouts.map((layout) => groupWith(layout, shardOf(own, i))),
      }));
    }),
    // Without numbers the first will do: bind groups are changed less often.
    launches: each.map(({ launch, over, shards }) => {
      const at = launch.length || shards ? slot * LAUNCH_BYTES : 0;
      slot += over.length;
      return at;
    }),
    destroy: () => {
      for (const buffer of made) buffer.destroy();
    },
  };
}
