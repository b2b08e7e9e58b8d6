import type { Job as CoreJob, TrainResult } from "../runtime/trainer.ts";
import { claimCheckpoints, saveCheckpoint } from "./checkpoint.ts";
import type { Engine } from "./engine.ts";

/** A running job: `done` resolves with its result; `publish` makes what it knows available to requests. */
export class Job {
  constructor(
    private readonly core: CoreJob,
    private readonly engine: Engine,
    /** What its results depend on. */
    private readonly identity: Readonly<Record<string, unknown>>,
  ) {}
  get name(): string {
    return this.core.name;
  }
  get done(): Promise<TrainResult> {
    return this.core.done;
  }
  get step(): number {
    return this.core.step;
  }
  cancel(): void {
    this.core.cancel();
  }
  /** Resolves with the generation (`name@n`) that new requests get from now on. */
  publish(): Promise<string> {
    return this.core.publish();
  }
  /**
   * Make what the job is now the current version in `dir`, from which `finetune({ resume })` goes on, bit for
   * bit on the same device and bundle. Durable when it resolves; the version before is kept too. Throws
   * WEFT_IO, before anything is written, when `dir` holds anything else.
   */
  async checkpoint(dir: string): Promise<void> {
    // Asked for at once: the job may end, or be cancelled, while the folder is looked at.
    const state = this.core.checkpoint();
    await Promise.all([claimCheckpoints(dir), state]);
    await saveCheckpoint(dir, await state, this.core.base, this.engine.core.info.numerics, this.identity);
  }
}
