/**
 * Options of the SDK's calls, each described once: the engine's own, and what text, files and devices add.
 */
import * as v from "valibot";
import { formats } from "../runtime/bundle.ts";
import { adapterEntries, requestEntries, scoreEntries, trainEntries } from "../runtime/options.ts";
import type { Place } from "../runtime/reader.ts";
import {
  adapterName,
  atLeast0,
  boolean,
  number,
  type Of,
  object,
  oneOf,
  positive,
  record,
  text,
  tokenIds,
} from "../runtime/schema.ts";
import type { DataRow } from "./data.ts";
import type { Message } from "./text.ts";

export { LoadOptions } from "../runtime/loading.ts";

const nonEmpty = v.custom<string>((x) => typeof x === "string" && x !== "", "a text that is not empty");
export const GenerateOptions = v.pipe(
  object({
    ...requestEntries,
    /** Text, or token ids. */
    prompt: v.optional(v.union([text, tokenIds], "text or token ids")),
    /** A conversation, for models with a chat template; instead of a prompt. */
    messages: v.optional(v.custom<readonly Message[]>(Array.isArray, "a list of messages")),
    /** With messages: tools that the model may call, as the OpenAI API has them; its template spells them. */
    tools: v.optional(v.array(v.custom<object>((x) => typeof x === "object" && x !== null, "a tool"))),
    /** With messages: more that the model's chat template knows, as `{ enable_thinking: false }`. */
    templateArguments: v.optional(record(v.unknown())),
    /**
     * Spell the special tokens that the model says, but for the mark that ends its answer, as a template may
     * want of calls of tools. Default false.
     */
    marks: v.optional(boolean),
    /** Texts that end the answer, or one; they are not part of it. */
    stop: v.optional(v.union([nonEmpty, v.array(nonEmpty)], "texts that are not empty, or one")),
  }),
  v.check(
    (o) => (o.prompt === undefined) !== (o.messages === undefined),
    "a prompt (text or token ids), or messages",
  ),
  v.check(
    (o) => o.messages !== undefined || (o.tools === undefined && o.templateArguments === undefined),
    "messages beside tools and templateArguments, which a chat template takes",
  ),
);
export type GenerateOptions = Of<typeof GenerateOptions>;

export const ScoreOptions = object(scoreEntries);
export type ScoreOptions = Of<typeof ScoreOptions>;

const rows = v.union(
  [text, v.custom<Blob>((x) => x instanceof Blob), v.custom<readonly DataRow[]>(Array.isArray)],
  "the path of a JSONL file, such a file, or a list of rows",
);
const place = v.custom<Place>(
  (x) => typeof x === "string" || (typeof x === "object" && x !== null),
  "a folder: a path, an address, a directory handle, or a map of blobs",
);
export const FinetuneOptions = object({
  ...trainEntries,
  ...adapterEntries,
  /**
   * An adapter method that the bundle was compiled to train (`lora`, `s2ft`, …), or `full`. Default: that of
   * `from`, else the first of the bundle.
   */
  method: v.optional(text),
  /** A JSONL file, or rows. */
  data: rows,
  /** What is evaluated, and never trained on. Default: nothing. */
  evalData: v.optional(rows),
  /** Adapters by name whose channels this S2FT adapter may not choose. Default: none. */
  disjointFrom: v.optional(v.array(text)),
  /**
   * A folder of the same model, fine-tuned in full: the selector `difference` of sparse adapters takes the
   * entries that moved most (LT-SFT).
   */
  tuned: v.optional(text),
  /**
   * Go on from an adapter that is loaded, instead of a fresh one. Default of LoRA: the bundle's correction,
   * where it has one.
   */
  from: v.optional(text),
  /**
   * A checkpoint folder to go on from; options and data must be the same, `epochs` or `steps` may be more.
   */
  resume: v.optional(place),
  /** Checkpoints by themselves, while the job runs and behind its last step. Default: none. */
  checkpoint: v.optional(
    object({
      /** Their folder, in a page `storage:NAME` or a directory handle: the last two are kept. */
      dir: place,
      /** Seconds between two. Default 60; 0: only behind the last step. */
      every: v.optional(atLeast0),
      /** What is kept with them, for who goes on. */
      about: v.optional(record(v.unknown())),
    }),
  ),
});
export type FinetuneOptions = Of<typeof FinetuneOptions>;

export const SaveOptions = object({
  /**
   * `lora`: as the LoRA that is exactly the same, for what is one. `target_parameters`: a LoRA on experts as
   * PEFT has it on parameters that hold them all, as transformers 5 does. Default: as it is.
   */
  as: v.optional(oneOf(["lora", "target_parameters"])),
});
export type SaveOptions = Of<typeof SaveOptions>;
export const CompressOptions = object({
  /** Share of the numbers that are kept. Default 0.1. */
  density: v.optional(number("a number above 0, at most 1", (x) => x > 0 && x <= 1)),
});
export type CompressOptions = Of<typeof CompressOptions>;
/** A name that requests can ask for: `name@n` is a generation's. */
export const AdapterName = adapterName;
/** Finite weights by name, for `combine`. */
export { adapterRef as AdapterRefSchema } from "../runtime/options.ts";

/** What `compile` corrects rounding by, and chooses the channels of S2FT's class `permuted`. */
export const Calibrate = object({
  /** A JSONL file or rows, as jobs take them; the first thousand tokens or so are looked at. */
  data: rows,
  /** Default `activation-small`: the smallest activations, which the paper found best. */
  selector: adapterEntries.selector,
  /** Default 0. */
  seed: trainEntries.seed,
});
export type Calibrate = Of<typeof Calibrate>;
/** What `compile` takes beside the compiler's own options, which get what comes of it. */
export const calibrateEntries = {
  calibrate: v.optional(Calibrate),
  /** A way of `compiler/corrections/`. */
  correct: v.optional(text),
};
export const MemoryOptions = object({
  /** Tokens a step. Default 512. */
  tokens: v.optional(positive),
  /** Default 16. */
  rank: v.optional(positive),
  /** Of frozen weights. Default f16. */
  format: v.optional(oneOf(formats)),
});
export type MemoryOptions = Of<typeof MemoryOptions>;
