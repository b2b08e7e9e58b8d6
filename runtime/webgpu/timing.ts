/**
 * What kernels take, by the device's own clock. A clock is read where a pass begins and ends, so each launch
 * is a pass of its own here: a list takes longer, and computes the same.
 */
import type { Plan } from "../bundle.ts";
import type { KernelTime } from "../device.ts";
import type { Watch } from "./watch.ts";

/** Queries of a set: the most that there may be. */
const QUERIES = 4096;
/** Of a reading, nanoseconds in 64 bits. */
const BYTES = 8;

/** Readings of some launches: two each. */
interface Readings {
  readonly set: GPUQuerySet;
  readonly resolved: GPUBuffer;
  readonly staging: GPUBuffer;
  /** Of each launch, by number. */
  readonly kernels: number[];
}
/** Of a pass, what playing a list takes. */
interface Pass {
  /** Of a launch of that kernel; null: of the one before. */
  setPipeline(pipeline: GPUComputePipeline, kernel: number | null): void;
  setBindGroup(index: number, group: GPUBindGroup, offsets: number[]): void;
  dispatchWorkgroups(x: number, y: number, z: number): void;
  end(): void;
}

export class Timing {
  private readonly names: readonly string[];
  private readonly idle: Readings[] = [];
  /** Of what was encoded since the last `read`. */
  private taken: Readings[] = [];
  constructor(
    private readonly watch: Watch,
    plan: Plan,
  ) {
    this.names = Object.keys(plan.kernels);
  }
  private take(): Readings {
    const { device } = this.watch;
    const of = (label: string, usage: number): GPUBuffer =>
      device.createBuffer({ label, size: QUERIES * BYTES, usage });
    const readings = this.idle.pop() ?? {
      set: device.createQuerySet({ type: "timestamp", count: QUERIES }),
      resolved: of("timestamps", GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC),
      staging: of("timestamps, read back", GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ),
      kernels: [],
    };
    this.taken.push(readings);
    return readings;
  }

  /** What stands for the one pass of a list: a pass a launch, and the copies of what their clocks say. */
  begin(encoder: GPUCommandEncoder): Pass {
    const from = this.taken.length;
    let pass: GPUComputePassEncoder | null = null;
    let bound: Parameters<Pass["setBindGroup"]> | null = null;
    return {
      setPipeline: (pipeline, kernel) => {
        if (kernel === null) return pass!.setPipeline(pipeline);
        pass?.end();
        let readings = this.taken.length > from ? this.taken.at(-1)! : this.take();
        if (2 * readings.kernels.length === QUERIES) readings = this.take();
        const at = 2 * readings.kernels.push(kernel) - 2;
        pass = encoder.beginComputePass({
          timestampWrites: {
            querySet: readings.set,
            beginningOfPassWriteIndex: at,
            endOfPassWriteIndex: at + 1,
          },
        });
        pass.setPipeline(pipeline);
        if (bound) pass.setBindGroup(...bound);
      },
      setBindGroup: (...to) => {
        bound = to;
        pass!.setBindGroup(...to);
      },
      dispatchWorkgroups: (x, y, z) => pass!.dispatchWorkgroups(x, y, z),
      end: () => {
        pass?.end();
        for (const { set, resolved, staging, kernels } of this.taken.slice(from)) {
          const n = 2 * kernels.length;
          encoder.resolveQuerySet(set, 0, n, resolved, 0);
          encoder.copyBufferToBuffer(resolved, 0, staging, 0, n * BYTES);
        }
      },
    };
  }

  /** By kernel, what was submitted since the last time; resolves when it has run. */
  async read(): Promise<readonly KernelTime[]> {
    const { taken } = this;
    this.taken = [];
    const times = new Map<number, { launches: number; ms: number }>();
    for (const readings of taken) {
      const { kernels, staging } = readings;
      const bytes = 2 * kernels.length * BYTES;
      await this.watch.until(staging.mapAsync(GPUMapMode.READ, 0, bytes), "timestamps");
      const clock = new BigUint64Array(staging.getMappedRange(0, bytes));
      for (const [i, kernel] of kernels.entries()) {
        const { launches, ms } = times.get(kernel) ?? { launches: 0, ms: 0 };
        const took = Number(clock[2 * i + 1]! - clock[2 * i]!) / 1e6;
        times.set(kernel, { launches: launches + 1, ms: ms + took });
      }
      staging.unmap();
      kernels.length = 0;
      this.idle.push(readings);
    }
    return [...times].map(([kernel, time]) => ({ kernel: this.names[kernel]!, ...time }));
  }
}
