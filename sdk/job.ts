import type { Place } from "../runtime/folders.ts";
import type { Job as CoreJob, TrainEvent, TrainResult } from "../runtime/trainer.ts";
import type { Autosave } from "./autosave.ts";
import type { Grounds } from "./checkpoint.ts";
import type { Engine } from "./engine.ts";
import type { Keeping } from "./keeping.ts";
import type { FinetuneOptions } from "./options.ts";

/** A running job: `done` resolves with its result; `publish` makes what it knows available to requests. */
export class Job {
  /** Bundlers rename classes; who looks at one in a console shall not see it. */
  static readonly name = "Job";
  private readonly autos: readonly Autosave[];
  /**
   * Rejects when the job fails or is cancelled, and when its last automatic checkpoint could not be kept:
   * what it learned is published then.
   */
  readonly done: Promise<TrainResult>;
  constructor(
    private readonly core: CoreJob,
    engine: Engine,
    /** What its results depend on, when it is asked for: who keeps no checkpoints need not hash the rows. */
    private readonly grounds: () => Promise<Grounds>,
    private readonly o: Pick<FinetuneOptions, "name" | "checkpoint" | "onEvent">,
    /** The generations that it began from. */
    readonly learnsFrom: Pick<FinetuneOptions, "from" | "disjointFrom">,
    keepings: readonly Keeping[],
  ) {
    this.autos = keepings.map(
      ({ Autosave, every, keep, told }) =>
        new Autosave(
          every,
          () => core.checkpoint(),
          async (state) => keep({ ...(await grounds()), state }),
          engine.core.reporting.guard(`onEvent of job ${o.name}`, told),
        ),
    );
    this.done = this.finish();
    this.done.catch(() => {});
  }
  private async finish(): Promise<TrainResult> {
    try {
      const result = await this.core.done;
      for (const auto of this.autos) await auto.settled;
      return result;
    } finally {
      for (const auto of this.autos) await auto.quiet();
    }
  }
  /** What happens to it, before others hear of it. */
  hear(e: TrainEvent): void {
    for (const auto of this.autos) auto.hear(e);
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
    const kept = import("./checkpoint.ts");
    const claimed = kept.then((m) => m.claimCheckpoints(place));
    const wanted = [kept, claimed, taken, this.grounds()] as const;
    const [{ saveCheckpoint }, folder, state, grounds] = await Promise.all(wanted);
    await saveCheckpoint(folder, { ...grounds, state }, this.o.checkpoint?.about);
  }
}
