/** Errors as OpenAI's API has them: a status, and `{ error: { message, type, param, code } }`. */
import { type ErrorCode, WeftError } from "../../runtime/bundle.ts";

/** What a client is told, beside the four fields of OpenAI's the error's own where it is weft's. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
    readonly param: string | null = null,
    readonly weft: WeftError | null = null,
  ) {
    super(message);
  }
  /** Seconds after which to try again; null where that is no use. */
  get retryAfter(): number | null {
    return this.status === 429 || this.status === 503 ? 1 : null;
  }
  private get type(): string {
    if (this.status === 429) return "rate_limit_error";
    return this.status >= 500 ? "server_error" : "invalid_request_error";
  }
  toJSON(): { error: Record<string, unknown> } {
    const { message, type, param, code, weft } = this;
    return { error: { message, type, param, code, ...(weft && { weft: weft.toJSON() }) } };
  }
}

/** Of each code the status, and the code that OpenAI's clients know it by, where there is one. */
const known = {
  WEFT_OPTION: [400, "invalid_value"],
  WEFT_DATA: [400, "invalid_training_data"],
  WEFT_TOKENIZER: [400, null],
  WEFT_CONTEXT_OVERFLOW: [400, "context_length_exceeded"],
  WEFT_ADAPTER: [400, null],
  WEFT_ADAPTER_MISMATCH: [400, null],
  WEFT_CAPACITY: [400, null],
  WEFT_NOT_FOUND: [404, "model_not_found"],
  WEFT_CONFLICT: [409, "conflict"],
  WEFT_NUMERICS: [500, null],
  WEFT_DEVICE_LOST: [503, null],
  WEFT_DISPOSED: [503, null],
  WEFT_CONFIG: [500, null],
  WEFT_WEIGHTS: [500, null],
  WEFT_BUNDLE: [500, null],
  WEFT_BUNDLE_VERSION: [500, null],
  WEFT_DEVICE: [500, null],
  WEFT_IO: [500, null],
  WEFT_CLI: [500, null],
} as const satisfies Record<ErrorCode, readonly [number, string | null]>;

/** Options of the engine under the names that the API has for them. */
const params: Readonly<Record<string, string>> = {
  maxTokens: "max_tokens",
  topP: "top_p",
  topK: "top_k",
  minP: "min_p",
  logitBias: "logit_bias",
  presencePenalty: "presence_penalty",
  frequencyPenalty: "frequency_penalty",
  repetitionPenalty: "repetition_penalty",
  batchSize: "hyperparameters.batch_size",
  epochs: "hyperparameters.n_epochs",
};
const snake = (where: string): string => {
  const [, head, rest] = /^(\w+)(.*)$/.exec(where) ?? ["", where, ""];
  return (params[head!] ?? head!) + rest;
};

/** What a client is told of any error. What is not weft's own is not told: it may say where files lie. */
export function apiError(e: unknown): ApiError {
  if (e instanceof ApiError) return e;
  const weft = WeftError.from(e);
  if (!weft) return new ApiError(500, "The server had an error while processing your request");
  const [status, code] = known[weft.code];
  const again = weft.code === "WEFT_CAPACITY" ? 429 : 503;
  return new ApiError(
    weft.retryable ? again : status,
    weft.message,
    weft.retryable && again === 429 ? "rate_limit_exceeded" : (code ?? weft.code.toLowerCase()),
    weft.code === "WEFT_OPTION" || weft.code === "WEFT_CONTEXT_OVERFLOW" ? snake(weft.where) : null,
    weft,
  );
}
