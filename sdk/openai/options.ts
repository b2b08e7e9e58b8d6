/** Options of the API, described once. */
import * as v from "valibot";
import { callback, type Of, object, positive } from "../../runtime/schema.ts";

const nonEmpty = v.pipe(v.string(), v.nonEmpty("a text that is not empty"));
export const HandlerOptions = object({
  /** What clients call the base; adapters are `model:name`. Default `base`, which it can always be called. */
  model: v.optional(nonEmpty),
  /** What clients must send as `Authorization: Bearer …`. Default: nothing. */
  apiKey: v.optional(nonEmpty),
  /** Tokens of a chat's answer where the client does not say. Default 512. */
  maxTokens: v.optional(positive),
  /** Most bytes of a body of JSON. Default 16 MiB. */
  maxBodyBytes: v.optional(positive),
  /** Most bytes of all uploaded files together. Default 256 MiB. */
  maxFileBytes: v.optional(positive),
  /** Called with the name of what a job trained, before the job has succeeded: to save it, say. */
  onAdapter: v.optional(callback<(name: string) => unknown>()),
  /** Hears errors that are not the client's. */
  onError: v.optional(callback<(e: unknown) => void>()),
});
export type HandlerOptions = Of<typeof HandlerOptions>;
