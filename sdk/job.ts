import type { Job as CoreJob, TrainEvent, TrainResult, TrainState } from "../runtime/trainer.ts";
import { Autosave } from "./autosave.ts";
import { claimCheckpoints, saveCheckpoint } from "./checkpoint.ts";
import type { Engine } from "./engine.ts";
import type { FinetuneOptions } from "./options.ts";

/** A running job: `done` resolves with its result; `publish` makes what it knows available to requests. */
export class Job {
  private readonly auto: Autosave | null;
  /**
   * Rejects when the job fails or is cancelled, and when its last automatic checkpoint could not be kept:
   * what it learned is published then.
   */
  readonly done: Promise<TrainResult>;
  constructor(
    private readonly core: CoreJob,
    private readonly engine: Engine,
    /** What its results depend on. */
    private readonly identity: Readonly<Record<string, unknown>>,
    private readonly o: Pick<FinetuneOptions, "name" | "checkpoint" | "onEvent">,
  ) {
    const { checkpoint } = o;
    this.auto = checkpoint
      ? new Autosave(
          checkpoint.every,
          () => core.checkpoint(),
          (state) => this.write(checkpoint.dir, state),
          engine.core.reporting.guard(`onEvent of job ${o.name}`, o.onEvent),
        )
      : null;
    this.done = this.finish();
    this.done.catch(() => {});
  }
  private async finish(): Promise<TrainResult> {
    try {
      const result = await this.core.done;
      await this.auto?.settled;
      return result;
    } finally {
      await this.auto?.quiet();
    }
  }
  /** What happens to it, before others hear of it. */
  hear(e: TrainEvent): void {
    this.auto?.hear(e);
  }
  private write(dir: string, state: TrainState): Promise<void> {
    const { numerics } = this.engine.core.info;
    return saveCheckpoint(dir, state, this.core.base, numerics, this.identity, this.o.checkpoint?.about);
  }
  get name(): string {
    return this.core.name;
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
    await this.write(dir, await state);
  }
}
