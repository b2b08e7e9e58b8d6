/**
 * What the caller's own functions throw. It is told, and never ends what called them: a step, a job, a load.
 */
import { WeftError } from "./errors.ts";

/** Reports kept for who did not ask to hear them. */
const KEPT = 16;

export class Reports {
  /** The last of them, the newest last. */
  readonly kept: WeftError[] = [];
  constructor(private readonly hear: ((e: WeftError) => void) | undefined) {}

  /**
   * `f` as a function that never throws: what it throws, or rejects with, is reported as an error of `where`.
   */
  guard<A extends unknown[]>(where: string, f: ((...a: A) => unknown) | undefined): (...a: A) => void {
    if (!f) return () => {};
    const failed = (cause: unknown): void => this.report(where, cause);
    return (...a) => {
      try {
        const said = f(...a);
        if (said instanceof Promise) said.catch(failed);
      } catch (e) {
        failed(e);
      }
    };
  }
  private report(where: string, cause: unknown): void {
    const error = new WeftError({
      code: "WEFT_OPTION",
      where,
      expected: "a function that does not throw",
      found: (cause as Error)?.message ?? String(cause),
      cause,
    });
    this.kept.push(error);
    if (this.kept.length > KEPT) this.kept.shift();
    // What hearing throws is kept too: there is nobody left to tell.
    try {
      const said: unknown = this.hear?.(error);
      if (said instanceof Promise) said.catch(() => {});
    } catch {}
  }
}
