/** Signals to a run of `weft finetune`. */
import type { Job } from "../index.ts";

/** What a process that a signal ends exits with: 128 and the signal's number. */
const signals = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
type Signal = keyof typeof signals;
/** A terminal signals every process of its group, and npm sends the signal on: one key press, not two. */
const SAME_SIGNAL_MS = 500;

/**
 * The first signal takes a checkpoint at rest, if there is a place for one, tells how to go on, and cancels
 * the job; once the training has ended it waits until the result is saved. A second one exits at once: what
 * is being written stays whole.
 */
export class Stop {
  /** The exit code of a job that a signal ended; null while none did. Rejects when the checkpoint failed. */
  code: Promise<number | null> = Promise.resolve(null);
  saving = false;
  private at: number | null = null;
  constructor(
    private readonly job: Job,
    private readonly checkpoint: string | null,
    /** The command that goes on from the checkpoint. */
    private readonly again: string,
    private readonly endLine: () => void,
  ) {
    for (const s of Object.keys(signals)) process.on(s, this.heard);
  }
  end(): void {
    for (const s of Object.keys(signals)) process.off(s, this.heard);
  }
  private readonly heard = (signal: Signal): void => {
    const now = performance.now();
    if (this.at !== null && now - this.at < SAME_SIGNAL_MS) return;
    if (this.at !== null) process.exit(signals[signal]);
    this.at = now;
    this.endLine();
    if (this.saving) return void console.error(`${signal}: saving the result; again to stop at once`);
    this.code = this.keep(signal).then(() => signals[signal]);
    this.code.catch(() => {}).finally(() => this.job.cancel());
  };
  private async keep(signal: Signal): Promise<void> {
    if (!this.checkpoint)
      return console.error(
        `${signal}: stopped at step ${this.job.step}; --checkpoint DIR keeps what is learned`,
      );
    console.error(`${signal}: taking a checkpoint; again to stop at once`);
    await this.job.checkpoint(this.checkpoint);
    this.endLine();
    console.error(`checkpoint in ${this.checkpoint}; go on with\n  ${this.again}`);
  }
}
