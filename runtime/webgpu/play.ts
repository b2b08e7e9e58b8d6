import type { Plan, Sizes } from "../bundle.ts";
import type { Device, Families, Later, Range } from "../device.ts";
import { LAUNCH_BYTES, type Memory } from "./memory.ts";
import type { Kernels } from "./pipelines.ts";
import type { Watch } from "./watch.ts";

/** Bytes that are read back at once. */
const STAGING = 64 * 2 ** 20;
const STAGING_STEP = 65536;
/** Read-back buffers kept for the next reads. */
const STAGINGS = 2;

/** A range in pieces that are read back at once. */
function piecesOf(r: Range): Range[] {
  const most = STAGING / 4;
  return Array.from({ length: Math.max(1, Math.ceil(r.words / most)) }, (_, i) => ({
    ...r,
    offset: r.offset + i * most,
    words: Math.min(most, r.words - i * most),
  }));
}
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
    for (const p of ranges.flatMap(memory.parts)) {
      encoder.copyBufferToBuffer(p.buffer, p.at * 4, staging!, at, p.words * 4);
      at += p.words * 4;
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
    let [bound, offset, launch] = [null as GPUBindGroup | null, -1, -1];
    const dispatch = (group: GPUBindGroup, i: number, numbers: number, x: number, y: number): void => {
      if (group !== bound || commands[i + 2] !== offset || numbers !== launch) {
        [bound, offset, launch] = [group, commands[i + 2]!, numbers];
        pass.setBindGroup(0, group, [offset, launch]);
      }
      pass.dispatchWorkgroups(x, y, commands[i + 5]!);
      stats.launches++;
    };
    for (let i = 0; i < commands.length; i += 6) {
      const [index, x, y] = [commands[i]!, commands[i + 3]!, commands[i + 4]!];
      const { pipeline, layout, shards } = kernels.at(index)!;
      pass.setPipeline(pipeline);
      const numbers = memory.launches[index]!;
      if (!shards) dispatch(memory.groups[layout]!.get(commands[i + 1]!)!, i, numbers, x, y);
      else
        for (const [s, { part, groups }] of memory.shards[shards.of]!.entries()) {
          const of = (dim: "x" | "y", n: number): number => (shards.over === dim ? Math.ceil(n * part) : n);
          dispatch(groups[layout]!, i, numbers + s * LAUNCH_BYTES, of("x", x), of("y", y));
        }
    }
    pass.end();
    stats.encodeMs += performance.now() - t0;
    return encoder;
  };
  /** What a list launches and nobody has compiled yet is compiled first. */
  const run = async (commands: Int32Array, meta: Uint32Array, reads: readonly Range[]) => {
    const missing = new Set<number>();
    for (let i = 0; i < commands.length; i += 6) if (!kernels.at(commands[i]!)) missing.add(commands[i]!);
    if (missing.size) {
      await kernels.compile(missing);
      watch.check();
    }
    return submit(encode(commands, meta), reads);
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
      read.push(...(await submit(device.createCommandEncoder(), pieces.slice(from, to))));
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
        for (const buffer of idle) buffer.destroy();
        await about.release();
      })();
      return disposed;
    },
  };
}
