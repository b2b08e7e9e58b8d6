import type { Folder, Place } from "../runtime/folders.ts";
import type { Job as CoreJob, TrainEvent, TrainResult, TrainState } from "../runtime/trainer.ts";
import type { Autosave } from "./autosave.ts";
import type { Engine } from "./engine.ts";
import type { FinetuneOptions } from "./options.ts";

/** Where a job keeps checkpoints by itself: taken before it starts. */
export interface Keeping {
  readonly folder: Folder;
  readonly Autosave: typeof Autosave;
}

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
    keeping: Keeping | null,
  ) {
    this.auto = keeping
      ? new keeping.Autosave(
          o.checkpoint?.every,
          () => core.checkpoint(),
          (state) => this.write(keeping.folder, state),
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
  private async write(folder: Folder, state: TrainState): Promise<void> {
    const { saveCheckpoint } = await import("./checkpoint.ts");
    const { numerics } = this.engine.core.info;
    return saveCheckpoint(folder, state, this.core.base, numerics, this.identity, this.o.checkpoint?.about);
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
   * Make what the job is now the current version in a folder, from which `finetune({ resume })` goes on, bit
   * for bit on the same device and bundle. Durable when it resolves, on a disk; the version before is kept
   * too. Throws WEFT_IO, before anything is written, when the folder holds anything else.
   */
  async checkpoint(place: Place): Promise<void> {
    // Asked for at once: the job may end, or be cancelled, while the folder is looked at.
    const taken = this.core.checkpoint();
    const claimed = import("./checkpoint.ts").then((m) => m.claimCheckpoints(place));
    const [folder, state] = await Promise.all([claimed, taken]);
    await this.write(folder, state);
  }
}
