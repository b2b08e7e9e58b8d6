/** The one error class. `code` is stable and survives structuredClone and HTTP; `where`, `expected`, `found` and `hint` say what to fix. */
export type ErrorCode =
  | "WEFT_CONFIG"
  | "WEFT_CAPACITY"
  | "WEFT_WEIGHTS"
  | "WEFT_TOKENIZER"
  | "WEFT_BUNDLE"
  | "WEFT_BUNDLE_VERSION"
  | "WEFT_DEVICE"
  | "WEFT_DEVICE_LOST"
  | "WEFT_ADAPTER"
  | "WEFT_ADAPTER_MISMATCH"
  | "WEFT_DATA"
  | "WEFT_OPTION"
  | "WEFT_CONTEXT_OVERFLOW"
  | "WEFT_CONFLICT"
  | "WEFT_NOT_FOUND"
  | "WEFT_NUMERICS"
  | "WEFT_DISPOSED"
  | "WEFT_IO"
  | "WEFT_CLI";

export interface ErrorFields {
  readonly code: ErrorCode;
  /** Which file, tensor, option or line. */
  readonly where: string;
  readonly expected: string;
  readonly found: string;
  readonly hint?: string;
  readonly retryable?: boolean;
  readonly cause?: unknown;
}

export class WeftError extends Error {
  readonly code: ErrorCode;
  readonly where: string;
  readonly expected: string;
  readonly found: string;
  readonly hint: string | undefined;
  readonly retryable: boolean;
  constructor(f: ErrorFields) {
    super(
      `${f.code} at ${f.where}: expected ${f.expected}, found ${f.found}${f.hint ? ` (${f.hint})` : ""}`,
      { cause: f.cause },
    );
    this.name = "WeftError";
    this.code = f.code;
    this.where = f.where;
    this.expected = f.expected;
    this.found = f.found;
    this.hint = f.hint;
    this.retryable = f.retryable ?? false;
  }
  toJSON(): Record<string, unknown> {
    return {
      code: this.code,
      where: this.where,
      expected: this.expected,
      found: this.found,
      hint: this.hint,
      retryable: this.retryable,
    };
  }
}
