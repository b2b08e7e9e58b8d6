/** Checkpoints of a job without asking: every so often between two steps, and behind the last one. */
import { WeftError } from "../runtime/bundle.ts";
import type { TrainEvent, TrainState } from "../runtime/trainer.ts";

/** Seconds between two, where nobody says. */
const EVERY = 60;

export class Autosave {
  private last = performance.now();
  private steps = 0;
  /** What is being written. */
  private writing: Promise<void> | null = null;
  /** The last one: a job is done when it is kept. Rejects when it could not be. */
  private final: Promise<void> = Promise.resolve();
  /**
   * `take` asks for the job's state between two steps, `write` makes it durable; `told` hears of each, with
   * what went wrong.
   */
  constructor(
    private readonly every: number | undefined,
    private readonly take: () => Promise<TrainState>,
    private readonly write: (state: TrainState) => Promise<void>,
    private readonly told: (e: TrainEvent) => void,
  ) {}

  hear(e: TrainEvent): void {
    if (e.type === "start") this.steps = e.steps;
    if (e.type !== "step") return;
    const seconds = this.every ?? EVERY;
    const due = seconds > 0 && performance.now() - this.last >= seconds * 1000;
    const ends = e.step === this.steps;
    if (!ends && (!due || this.writing)) return;
    const before = this.writing ?? Promise.resolve();
    // Asked for now: the job goes on with its next step, or ends.
    const state = this.take();
    const saved = before.then(async () => {
      try {
        await this.write(await state);
        this.told({ type: "checkpoint", step: e.step, error: null });
      } catch (cause) {
        const error = WeftError.from(cause);
        // A job that was cancelled says so itself.
        if (error) this.told({ type: "checkpoint", step: e.step, error });
        throw cause;
      } finally {
        this.last = performance.now();
        this.writing = null;
      }
    });
    // One that could not be kept does not end the job: the next one is tried, and the last must be kept.
    this.writing = saved.catch(() => {});
    if (!ends) return;
    this.final = saved;
    saved.catch(() => {});
  }
  /** Resolves when the last one is kept. */
  get settled(): Promise<void> {
    return this.final;
  }
  /** Resolves when nothing is being written. */
  async quiet(): Promise<void> {
    while (this.writing) await this.writing;
  }
}
