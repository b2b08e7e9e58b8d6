/** What an engine that survives is asked for beside what `load` is. */
import * as v from "valibot";
import type { WeftError } from "../../runtime/errors.ts";
import { atLeast0, callback, type Of, object, positive } from "../../runtime/schema.ts";

/** What happens to an engine under those who use it. */
export type RecoverEvent =
  /** It ended; all that runs waits. `attempt`: losses within the time that counts, this one too. */
  | { readonly type: "lost"; readonly why: WeftError; readonly attempt: number }
  /** Another one goes on, `ms` after the loss. */
  | { readonly type: "recovered"; readonly ms: number; readonly attempt: number };

export const replayEntries = {
  /** When to give up, and how often jobs keep what they are. */
  recover: v.optional(
    object({
      /** So many losses end it. Default 3. */
      losses: v.exactOptional(positive),
      /** Seconds within which they count. Default 60. */
      within: v.exactOptional(positive),
      /**
       * Seconds between two checkpoints of a job, kept in memory. Default 30; 0: only behind the last step.
       */
      checkpoint: v.exactOptional(atLeast0),
    }),
  ),
  /** Hears of losses and recoveries. */
  onRecover: v.optional(callback<(e: RecoverEvent) => void>()),
};
export const ReplayOptions = object(replayEntries);
export type ReplayOptions = Of<typeof ReplayOptions>;
