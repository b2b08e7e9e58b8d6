/**
 * A device under supervision: what waits for it settles, whether it answers, dies, passes its deadline or is
 * let go.
 */
import type { Device, Range } from "./device.ts";
import { disposed, WeftError } from "./errors.ts";

/**
 * Milliseconds that a step may take; 0: as long as it wants. Generous: it is for devices that never answer,
 * not for slow ones.
 */
export const STEP_TIMEOUT = 300_000;
/** A deadline passes in parts: one in which the machine slept, or the event loop stood still, counts once. */
const PARTS = 4;

export class Supervised implements Device {
  readonly info: Device["info"];
  readonly plan: Device["plan"];
  readonly sizes: Device["sizes"];
  readonly families: Device["families"];
  readonly lanes: number;
  readonly picks: boolean;
  readonly tunes: Device["tunes"];
  readonly memory: Device["memory"];
  readonly stats: Device["stats"];
  /** Resolves when the device died or passed a deadline, not when it was let go. */
  readonly lost: Promise<WeftError>;
  private lose: (e: WeftError) => void = () => {};
  private device: Device | null;
  private ended: WeftError | null = null;
  private readonly pending = new Set<(e: WeftError) => void>();

  constructor(
    device: Device,
    private readonly timeout: number,
  ) {
    this.device = device;
    ({
      info: this.info,
      plan: this.plan,
      sizes: this.sizes,
      families: this.families,
      lanes: this.lanes,
      picks: this.picks,
      tunes: this.tunes,
      memory: this.memory,
      stats: this.stats,
    } = device);
    this.lost = new Promise((resolve) => {
      this.lose = resolve;
    });
    hear(device, new WeakRef(this));
  }
  /** The device ended by itself. */
  died(error: WeftError): void {
    this.lose(error);
    void this.end(error);
  }

  get later(): Device["later"] {
    return this.alive.later;
  }
  private get alive(): Device {
    if (this.ended) throw this.ended;
    return this.device!;
  }
  private until<T>(work: Promise<T>, what: string): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const settled = (): void => {
        this.pending.delete(stop);
        clearTimeout(timer);
      };
      const stop = (e: WeftError): void => {
        settled();
        reject(e);
      };
      let parts = 0;
      const pass = (): void => {
        if (++parts < PARTS) timer = setTimeout(pass, this.timeout / PARTS);
        else
          this.died(
            new WeftError({
              code: "WEFT_DEVICE_LOST",
              where: what,
              expected: `an answer of the device within ${this.timeout} ms`,
              found: "none",
              hint: "load the model again; load({ stepTimeout }) sets the deadline",
              retryable: true,
            }),
          );
      };
      let timer = this.timeout ? setTimeout(pass, this.timeout / PARTS) : undefined;
      this.pending.add(stop);
      work.then(resolve, reject).finally(settled);
    });
  }
  async run(
    lane: number,
    commands: Int32Array,
    meta: Uint32Array,
    reads: readonly Range[],
  ): Promise<Float32Array[]> {
    return this.until(this.alive.run(lane, commands, meta, reads), "step");
  }
  async read(range: Range): Promise<Float32Array> {
    return this.until(this.alive.read(range), "read");
  }
  async readAll(ranges: readonly Range[]): Promise<Float32Array[]> {
    return this.until(this.alive.readAll(ranges), "read");
  }
  write(at: Omit<Range, "words">, data: Float32Array | Uint32Array | Int32Array): void {
    this.alive.write(at, data);
  }
  clear(range: Range): void {
    this.alive.clear(range);
  }
  rest(lane: number): void {
    this.device?.rest(lane);
  }
  /**
   * What waits is rejected with `error`, and so is all that comes; then the device is let go, within the
   * deadline of a step.
   */
  end(error: WeftError): Promise<void> {
    this.ended ??= error;
    const { device } = this;
    this.device = null;
    for (const stop of this.pending) stop(error);
    if (device) this.gone = this.release(device);
    return this.gone;
  }
  private gone: Promise<void> = Promise.resolve();
  private async release(device: Device): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<void>((resolve) => {
      if (this.timeout) timer = setTimeout(resolve, this.timeout);
    });
    await Promise.race([device.dispose(), late]).finally(() => clearTimeout(timer));
  }
  dispose(): Promise<void> {
    return this.end(disposed("device"));
  }
}
/**
 * Weak: threads and adapters live as long as their device, and would keep an engine alive that everybody
 * dropped.
 */
function hear(device: Device, by: WeakRef<Supervised>): void {
  void device.lost.then((e) => by.deref()?.died(e));
}
