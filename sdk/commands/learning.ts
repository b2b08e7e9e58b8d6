/**
 * What a job says while it learns: a line that moves, with what is left of the time, and a table at the
 * end.
 */
import type { TrainEvent } from "../index.ts";
import { duration, endLine, progress, say, table } from "./progress.ts";

/** Rows of the table. */
const ROWS = 12;

export class Learning {
  private readonly losses: { step: number; loss: number }[] = [];
  private readonly evals = new Map<number, number>();
  private total = 0;
  private tokens = 0;
  private begun = performance.now();
  constructor(private readonly device: string) {}

  /** Seconds since it began. */
  get seconds(): number {
    return (performance.now() - this.begun) / 1000;
  }
  hear(e: TrainEvent): void {
    if (e.type === "start") {
      this.total = e.steps;
      this.begun = performance.now();
      const skipped = e.skippedRows ? ` (${e.skippedRows} with nothing to learn skipped)` : "";
      say(
        `${e.steps} steps, ${e.rows} rows${skipped}, ${e.trainable} trainable parameters on ${this.device}`,
      );
    }
    if (e.type === "step") {
      this.losses.push({ step: e.step, loss: e.loss });
      this.tokens += e.tokens;
      const left = (this.seconds / this.losses.length) * (this.total - e.step);
      progress(
        `step ${e.step} of ${this.total}  loss ${e.loss.toFixed(4)}  lr ` +
          `${e.learningRate.toExponential(2)}  ${Math.round(e.tokensPerSecond)} tokens/s  ` +
          `${duration(left)} left`,
      );
    }
    if (e.type === "eval") {
      this.evals.set(e.step, e.loss);
      progress(`eval at step ${e.step}: loss ${e.loss.toFixed(4)}${e.best ? " (best)" : ""}`);
      endLine();
    }
    if (e.type === "checkpoint" && e.error) say(`no checkpoint at step ${e.step}: ${e.error.message}`);
  }
  /** Mean losses of equal parts of the steps, with the last evaluation in each. */
  summary(): string {
    const each = Math.max(1, Math.ceil(this.losses.length / ROWS));
    const rows: string[][] = [];
    for (let i = 0; i < this.losses.length; i += each) {
      const part = this.losses.slice(i, i + each);
      const [first, last] = [part[0]!.step, part.at(-1)!.step];
      const mean = part.reduce((sum, x) => sum + x.loss, 0) / part.length;
      const seen = [...this.evals].filter(([step]) => step >= first && step <= last).at(-1);
      const name = first === last ? `${first}` : `${first}–${last}`;
      rows.push([name, mean.toFixed(4), ...(this.evals.size ? [seen ? seen[1].toFixed(4) : ""] : [])]);
    }
    const head = ["steps", "loss", ...(this.evals.size ? ["eval loss"] : [])];
    const speed = Math.round(this.tokens / Math.max(this.seconds, 1e-3));
    return `${table([head, ...rows])}\n${duration(this.seconds)}, ${this.tokens} tokens, ${speed} tokens/s`;
  }
}
