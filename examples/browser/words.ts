/** Numbers and errors as a visitor reads them. */
import { type ErrorCode, WeftError } from "../../sdk/index.ts";

export const bytes = (n: number): string =>
  n < 1e6
    ? `${Math.ceil(n / 1e3)} kB`
    : n < 1e9
      ? `${(n / 1e6).toFixed(1)} MB`
      : `${(n / 1e9).toFixed(1)} GB`;
export const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;
/** `lessons@3` → 3; the base is 0. */
export const generationOf = (ref: string): number => Number(/@(\d+)$/.exec(ref)?.[1] ?? 0);

const sentences: Partial<Record<ErrorCode, (e: WeftError) => string>> = {
  WEFT_IO: (e) =>
    e.where.startsWith("storage")
      ? `There is too little room in this browser to keep the model: it needs ${e.expected}, ` +
        `and there are ${e.found}. Delete something that is kept here, or make room on the ` +
        "disk."
      : `A file could not be read or written (${e.where}: ${e.found}). ` +
        `${e.retryable ? "Check the network and try again." : "Check the address."}`,
  WEFT_BUNDLE: (e) => `The model is damaged, or is no model of weft's (${e.where}: ${e.found}).`,
  WEFT_BUNDLE_VERSION: () => "The model was made for another version of weft. Compile it again.",
  WEFT_CAPACITY: (e) =>
    e.retryable
      ? "Too much is going on at once. Try again in a moment."
      : `This device has too little memory for the model: it needs ${e.expected}, and there ` +
        `is ${e.found}.`,
  WEFT_CONTEXT_OVERFLOW: () => "That is more text than this model can read at once. Try less.",
  WEFT_DEVICE: (e) =>
    `There is nothing here that the model was to run on: it needs ${e.expected}. Open the page ` +
    "without ?device= to let it choose.",
  WEFT_DEVICE_LOST: () => "The device stopped computing, again and again. Reload the page to try once more.",
  WEFT_DATA: (e) => `That cannot be learned. ${e.where}: expected ${e.expected}, found ${e.found}.`,
  WEFT_TOKENIZER: () => "This model has no text of its own, so nobody can talk to it here.",
  WEFT_NUMERICS: () => "The numbers ran away while it learned. What it knew before is still there.",
  WEFT_ADAPTER_MISMATCH: () => "What was kept belongs to another model.",
};
/** One sentence for whatever was thrown. */
export function sentence(e: unknown): string {
  const error = WeftError.from(e);
  if (!error) return `Something went wrong: ${e instanceof Error ? e.message : String(e)}.`;
  return sentences[error.code]?.(error) ?? `Something went wrong: ${error.message}.`;
}
