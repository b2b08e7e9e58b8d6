/** Abort signals: one listener a signal, however many calls share it, and always an error to throw. */

/**
 * What an abort throws: the reason it was given, or an AbortError where that is nothing to throw
 * (`abort(false)`, `abort(null)`).
 */
export const reasonOf = (reason: unknown): unknown => reason || new DOMException("aborted", "AbortError");

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw reasonOf(signal.reason);
}

interface Listener {
  readonly calls: Set<(reason: unknown) => void>;
  readonly hear: () => void;
}
const listeners = new WeakMap<AbortSignal, Listener>();

/** Call `f` with the reason once the signal aborts, at once where it has; returns how to forget it. */
export function onAbort(signal: AbortSignal | undefined, f: (reason: unknown) => void): () => void {
  if (!signal) return () => {};
  if (signal.aborted) {
    f(reasonOf(signal.reason));
    return () => {};
  }
  let listener = listeners.get(signal);
  if (!listener) {
    const calls: Listener["calls"] = new Set();
    const hear = (): void => {
      listeners.delete(signal);
      for (const call of calls) call(reasonOf(signal.reason));
    };
    listener = { calls, hear };
    listeners.set(signal, listener);
    signal.addEventListener("abort", hear, { once: true });
  }
  const { calls, hear } = listener;
  // A function of its own: the same `f` may be asked for twice.
  const call = (reason: unknown): void => f(reason);
  calls.add(call);
  return () => {
    if (!calls.delete(call) || calls.size) return;
    signal.removeEventListener("abort", hear);
    listeners.delete(signal);
  };
}

/**
 * What `work` gives, or the reason of an abort as soon as there is one; `discard` gets what comes after it.
 */
export async function abortable<T>(
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
  discard: (late: T) => unknown,
): Promise<T> {
  throwIfAborted(signal);
  if (!signal) return work();
  let forget = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    forget = onAbort(signal, reject);
  });
  const working = work();
  try {
    return await Promise.race([working, aborted]);
  } catch (e) {
    if (signal.aborted) working.then(discard).catch(() => {});
    throw e;
  } finally {
    forget();
  }
}
