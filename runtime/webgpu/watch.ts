import { destroyAtExit, settled } from "../dawn.ts";
import { disposed, WeftError } from "../errors.ts";

export const gone = (): WeftError => disposed("webgpu device");
/**
 * A device, and what it says unasked: that it is lost, and errors that no scope caught, each of which is told
 * once.
 */
export class Watch {
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
    this.living();
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
  /** Throws when the device is lost or was let go. */
  living = (): void => {
    if (this.lost) throw this.lost;
    if (this.destroyed) throw gone();
  };
  /** Wait for work of the device; what it cannot do because it is lost throws that. */
  async until<T>(work: Promise<T>, where: string): Promise<T> {
    try {
      return await settled(work, this.living, this.device.queue);
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
    const refused = full || invalid;
    if (refused) throw (await import("../refused.ts")).noMemory(bytes, Boolean(full), refused.message);
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
