/**
 * What is asked of a job while it runs and done between two optimizer steps, when its weights are at rest.
 */
import { WeftError } from "./errors.ts";

/** What is asked of a job that ended is rejected with. */
export const jobEnded = (name: string): WeftError =>
  new WeftError({
    code: "WEFT_CONFLICT",
    where: `job ${name}`,
    expected: "a running job",
    found: "one that ended",
  });

interface Task {
  readonly run: () => Promise<void>;
  readonly reject: (reason: unknown) => void;
}

export class AtRest {
  private tasks: Task[] = [];
  private closed: { readonly reason: unknown } | null = null;

  /**
   * What `f` gives, once the job is at rest. Rejects with the reason of `close` when that comes first: `f`
   * never runs then.
   */
  ask<T>(f: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.closed) reject(this.closed.reason);
      else this.tasks.push({ run: () => f().then(resolve, reject), reject });
    });
  }
  /**
   * The job is at rest: do what was asked for until now. What the tasks ask for themselves has its turn next
   * time.
   */
  async run(): Promise<void> {
    const now = this.tasks;
    this.tasks = [];
    for (const [i, task] of now.entries()) {
      if (this.closed) {
        for (const t of now.slice(i)) t.reject(this.closed.reason);
        return;
      }
      await task.run();
    }
  }
  /** The job rests no more: everything that waits, or comes, is rejected. The first reason stays. */
  close(reason: unknown): void {
    this.closed ??= { reason };
    for (const t of this.tasks.splice(0)) t.reject(this.closed.reason);
  }
}
