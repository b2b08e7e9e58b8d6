/**
 * The one error class. `code`, `where`, `expected`, `found` and `hint` say what to fix, also after
 * structuredClone, postMessage and JSON.
 */
const codes = [
  "WEFT_CONFIG",
  "WEFT_CAPACITY",
  "WEFT_WEIGHTS",
  "WEFT_TOKENIZER",
  "WEFT_BUNDLE",
  "WEFT_BUNDLE_VERSION",
  "WEFT_DEVICE",
  "WEFT_DEVICE_LOST",
  "WEFT_ADAPTER",
  "WEFT_ADAPTER_MISMATCH",
  "WEFT_DATA",
  "WEFT_OPTION",
  "WEFT_CONTEXT_OVERFLOW",
  "WEFT_CONFLICT",
  "WEFT_NOT_FOUND",
  "WEFT_NUMERICS",
  "WEFT_DISPOSED",
  "WEFT_IO",
  "WEFT_CLI",
] as const;
export type ErrorCode = (typeof codes)[number];

export interface ErrorFields {
  readonly code: ErrorCode;
  /** Which file, tensor, option or line. */
  readonly where: string;
  readonly expected: string;
  readonly found: string;
  readonly hint?: string;
  readonly retryable?: boolean;
  /** What led to it, in this process; a clone keeps it where it can be cloned. */
  readonly cause?: unknown;
}

/**
 * A structured clone of an Error keeps its message and `cause` and drops everything else, so the fields live
 * in `cause`, with what led to the error as `cause.cause`. `WeftError.from` brings an instance back.
 */
export class WeftError extends Error {
  /** Bundlers rename classes; who reads a console shall not see it. */
  static override readonly name = "WeftError";
  declare readonly cause: ErrorFields;
  static {
    // Not of each error: a stack begins with the name that there is when it is taken.
    Object.defineProperty(WeftError.prototype, "name", { value: "WeftError" });
  }
  constructor({ code, where, expected, found, hint, retryable, cause }: ErrorFields) {
    const said = hint ? ` (${hint})` : "";
    const fields = { code, where, expected, found, ...(hint && { hint }), ...(retryable && { retryable }) };
    // What cannot be cloned is not enumerable: it stays here, and the error still travels.
    if (cause !== undefined)
      Object.defineProperty(fields, "cause", { value: cause, enumerable: travels(cause) });
    super(`${code} at ${where}: expected ${expected}, found ${found}${said}`, { cause: fields });
  }
  get code(): ErrorCode {
    return this.cause.code;
  }
  get where(): string {
    return this.cause.where;
  }
  get expected(): string {
    return this.cause.expected;
  }
  get found(): string {
    return this.cause.found;
  }
  get hint(): string | undefined {
    return this.cause.hint;
  }
  get retryable(): boolean {
    return this.cause.retryable ?? false;
  }
  /** The error that `e` is, or of which it is a clone or the JSON; null for anything else. */
  static from(e: unknown): WeftError | null {
    if (e instanceof WeftError) return e;
    const fields: unknown = e instanceof Error ? e.cause : e;
    if (!isFields(fields)) return null;
    const back = new WeftError(fields);
    if (e instanceof Error && e.stack) back.stack = e.stack;
    return back;
  }
  toJSON(): Record<string, unknown> {
    const { code, where, expected, found, hint, retryable } = this;
    return { code, where, expected, found, hint, retryable };
  }
}

const isFields = (x: unknown): x is ErrorFields => {
  if (typeof x !== "object" || x === null) return false;
  const f = x as Record<string, unknown>;
  return (
    codes.includes(f.code as ErrorCode) &&
    [f.where, f.expected, f.found].every((s) => typeof s === "string") &&
    ["string", "undefined"].includes(typeof f.hint) &&
    ["boolean", "undefined"].includes(typeof f.retryable)
  );
};
/** Is a structured clone of it sure to succeed? */
const travels = (cause: unknown): boolean =>
  cause instanceof Error
    ? cause instanceof WeftError || cause.cause === undefined || travels(cause.cause)
    : (typeof cause !== "object" || cause === null) &&
      typeof cause !== "function" &&
      typeof cause !== "symbol";
/** What `where` names was let go, or is. */
export const disposed = (where: string): WeftError =>
  new WeftError({ code: "WEFT_DISPOSED", where, expected: "one in use", found: "dispose() was called" });
