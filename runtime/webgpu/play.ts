import { COMMAND_WORDS, type Plan, type Sizes } from "../bundle.ts";
import type { Device, Families, Later, Range } from "../device.ts";
import { LAUNCH_BYTES, type Memory } from "./memory.ts";
import type { Kernels } from "./pipelines.ts";
import { Stagings } from "./stagings.ts";
import type { Timing } from "./timing.ts";
import type { Watch } from "./watch.ts";

/** Bytes that are read back at once. */
const STAGING = 64 * 2 ** 20;
/** Launches of the first part of a list, on which the device can begin while the rest is on its way. */
const FIRST = 24;

/** A range in pieces that are read back at once. */
function piecesOf(r: Range): Range[] {
  const most = STAGING / 4;
  return Array.from({ length: Math.max(1, Math.ceil(r.words / most)) }, (_, i) => ({
    ...r,
    offset: r.offset + i * most,
    words: Math.min(most, r.words - i * most),
  }));
}
const bytesOf = (ranges: readonly Range[]): number => ranges.reduce((n, r) => n + r.words * 4, 0);
/** Commands, and what is read when they have run. */
interface Asked {
  readonly commands: Int32Array;
  readonly reads: readonly Range[];
}
/** Are two lists launched and read alike? What they are launched over is in the metadata. */
const isSame = (a: Asked, b: Asked): boolean =>
  a.commands.length === b.commands.length &&
  a.reads.length === b.reads.length &&
  a.commands.every((word, i) => word === b.commands[i]) &&
  a.reads.every((r, i) => {
    const { space, group, offset, words } = b.reads[i]!;
    return r.space === space && r.group === group && r.offset === offset && r.words === words;
  });
function joined(pieces: readonly Float32Array[]): Float32Array {
  if (pieces.length === 1) return pieces[0]!;
  const out = new Float32Array(pieces.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of pieces) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

/**
 * Play command lists. Everything is submitted when it is asked for, so the device's own queue keeps writes,
 * steps and reads in order.
 */
export function play(
  watch: Watch,
  plan: Plan,
  memory: Memory,
  kernels: Kernels,
  about: {
    readonly later: Later | null;
    /** What is let go at the end, when nothing is on its way any more. */
    readonly release: () => Promise<void>;
    readonly families: Families;
    readonly picks: boolean;
    readonly tunes: Device["tunes"];
    /** Is the list that is expected next encoded while the device works? */
    readonly encodesAhead: boolean;
    /** What measures kernels, where that is wanted. */
    readonly timing: Timing | null;
    readonly info: Device["info"];
    readonly bytes: Readonly<Record<string, number>>;
    readonly sizes: Sizes;
  },
): Device {
  const { device } = watch;
  const { queue } = device;
  const { timing } = about;
  const stats: Device["stats"] = { launches: 0, encodeMs: 0, ahead: 0, kernels: null };
  const pending = new Set<Promise<unknown>>();
  const stagings = new Stagings(device);
  /** Copies of ranges, to be read back when they have been made; null: of none. */
  const copies = (encoder: GPUCommandEncoder, ranges: readonly Range[]): GPUBuffer | null => {
    const total = bytesOf(ranges);
    const staging = total ? stagings.take(total) : null;
    let at = 0;
    for (const p of ranges.flatMap(memory.parts)) {
      encoder.copyBufferToBuffer(p.buffer, p.at * 4, staging!, at, p.words * 4);
      at += p.words * 4;
    }
    return staging;
  };
  /** Resolves with the words of ranges when what was submitted has run. */
  const wordsOf = async (ranges: readonly Range[], staging: GPUBuffer | null): Promise<Float32Array[]> => {
    if (!staging) {
      await watch.until(queue.onSubmittedWorkDone(), "webgpu step");
      watch.check();
      return ranges.map(() => new Float32Array(0));
    }
    let all: Float32Array;
    try {
      const total = bytesOf(ranges);
      await watch.until(staging.mapAsync(GPUMapMode.READ, 0, total), "read back");
      all = new Float32Array(staging.getMappedRange(0, total).slice(0));
      staging.unmap();
    } catch (e) {
      staging.destroy();
      throw e;
    }
    stagings.give(staging);
    watch.check();
    let at = 0;
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
  const launch = (encoder: GPUCommandEncoder, commands: Int32Array): void => {
    const pass = timing?.begin(encoder) ?? encoder.beginComputePass();
    let [bound, offset, launch] = [null as GPUBindGroup | null, -1, -1];
    const dispatch = (
      group: GPUBindGroup,
      i: number,
      numbers: number,
      grid: [number, number, number],
    ): void => {
      if (group !== bound || commands[i + 2] !== offset || numbers !== launch) {
        [bound, offset, launch] = [group, commands[i + 2]!, numbers];
        pass.setBindGroup(0, group, [offset, launch]);
      }
      pass.dispatchWorkgroups(...grid);
      stats.launches++;
    };
    for (let i = 0; i < commands.length; i += COMMAND_WORDS) {
      const [index, x, y] = [commands[i]!, commands[i + 3]!, commands[i + 4]!];
      const { parts, layout, shards } = kernels.at(index)!;
      const numbers = memory.launches[index]!;
      for (const [part, { pipeline, bodies }] of parts.entries()) {
        const z = bodies ?? commands[i + 5]!;
        pass.setPipeline(pipeline, part ? null : index);
        if (!shards) dispatch(memory.groups[layout]!.get(commands[i + 1]!)!, i, numbers, [x, y, z]);
        else
          for (const [s, { part, groups }] of memory.shards[shards.of]!.entries()) {
            const of = (dim: "x" | "y", n: number): number => (shards.over === dim ? Math.ceil(n * part) : n);
            dispatch(groups[layout]!, i, numbers + s * LAUNCH_BYTES, [of("x", x), of("y", y), z]);
          }
      }
    }
    pass.end();
  };
  /** Encode a list, a part after the other; returns what is read with the last. */
  const encode = ({ commands, reads }: Asked, each: (part: GPUCommandBuffer) => void): GPUBuffer | null => {
    const t0 = performance.now();
    const first = FIRST * COMMAND_WORDS;
    const cuts = commands.length < 2 * first ? [0] : [0, first];
    let staging: GPUBuffer | null = null;
    for (const [i, from] of cuts.entries()) {
      const encoder = device.createCommandEncoder();
      launch(encoder, commands.subarray(from, cuts[i + 1]));
      if (i === cuts.length - 1) staging = copies(encoder, reads);
      each(encoder.finish());
    }
    stats.encodeMs += performance.now() - t0;
    return staging;
  };
  /** The list that was played last, and the one that is expected next, which is not submitted yet. */
  let last: Asked | null = null;
  let next: (Asked & { parts: readonly GPUCommandBuffer[]; staging: GPUBuffer | null }) | null = null;
  const drop = (): void => {
    if (next?.staging) stagings.give(next.staging);
    next = null;
  };
  /** What a list launches and nobody has compiled yet is compiled first. */
  const run = async (commands: Int32Array, meta: Uint32Array, reads: readonly Range[]) => {
    const missing = new Set<number>();
    /** The last block of metadata, in bytes. */
    let block = 0;
    for (let i = 0; i < commands.length; i += COMMAND_WORDS) {
      if (!kernels.at(commands[i]!)) missing.add(commands[i]!);
      block = Math.max(block, commands[i + 2]!);
    }
    if (missing.size) {
      await kernels.compile(missing);
      watch.check();
    }
    const asked = { commands: commands.slice(), reads };
    const again = last !== null && isSame(last, asked);
    last = asked;
    if (next && !isSame(next, asked)) drop();
    // What lies behind the last block that it is launched over a list does not read.
    const bytes = Math.min(block + memory.blockBytes, meta.byteLength);
    queue.writeBuffer(memory.meta, 0, meta.buffer as ArrayBuffer, meta.byteOffset, bytes);
    const submit = (part: GPUCommandBuffer): void => queue.submit([part]);
    let staging: GPUBuffer | null;
    if (next) {
      next.parts.forEach(submit);
      ({ staging } = next);
      stats.ahead++;
      next = null;
    } else staging = encode(asked, submit);
    const told = Promise.all([wordsOf(reads, staging), timing?.read()]);
    // What came twice is likely to come again: a token's list is the one before's until a sequence comes,
    // ends, or passes a split.
    if (again && about.encodesAhead) {
      const parts: GPUCommandBuffer[] = [];
      next = { ...asked, staging: encode(asked, (part) => parts.push(part)), parts };
    }
    const [words, times = null] = await told;
    stats.kernels = times;
    return words;
  };
  const readAll = async (ranges: readonly Range[]): Promise<Float32Array[]> => {
    watch.check();
    const all = ranges.map(piecesOf);
    const pieces = all.flat();
    const read: Float32Array[] = [];
    for (let from = 0; from < pieces.length; ) {
      let to = from;
      for (let bytes = 0; to < pieces.length; to++) {
        bytes += pieces[to]!.words * 4;
        if (bytes > STAGING && to > from) break;
      }
      const ranges = pieces.slice(from, to);
      const encoder = device.createCommandEncoder();
      const staging = copies(encoder, ranges);
      queue.submit([encoder.finish()]);
      read.push(...(await wordsOf(ranges, staging)));
      from = to;
    }
    return all.map((pieces) => joined(read.splice(0, pieces.length)));
  };
  let disposed: Promise<void> | null = null;
  return {
    stats,
    info: about.info,
    plan,
    sizes: about.sizes,
    families: about.families,
    picks: about.picks,
    tunes: about.tunes,
    lanes: 1,
    later: about.later,
    memory: about.bytes,
    lost: watch.whenLost,
    write: (to, data) => {
      watch.check();
      let from = data.byteOffset;
      for (const p of memory.parts({ ...to, words: data.length })) {
        queue.writeBuffer(p.buffer, p.at * 4, data.buffer as ArrayBuffer, from, p.words * 4);
        from += p.words * 4;
      }
    },
    clear: (r) => {
      watch.check();
      const encoder = device.createCommandEncoder();
      for (const p of memory.parts(r)) encoder.clearBuffer(p.buffer, p.at * 4, p.words * 4);
      queue.submit([encoder.finish()]);
    },
    run: async (_lane, commands, meta, reads) => {
      watch.check();
      return tracked(run(commands, meta, reads));
    },
    readAll: (ranges) => tracked(readAll(ranges)),
    read: async (range) => (await tracked(readAll([range])))[0]!,
    rest: () => {},
    dispose: () => {
      disposed ??= (async () => {
        await Promise.all(pending);
        drop();
        stagings.destroy();
        await about.release();
      })();
      return disposed;
    },
  };
}
