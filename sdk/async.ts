/**
 * An engine whose every answer is a promise: the same calls as `Engine`, wherever it computes.
 */
import type { Manifest, WeftError } from "../runtime/bundle.ts";
import type { AdapterHandle } from "./adapter.ts";
import type { Engine, Piece } from "./engine.ts";
import type { Job } from "./job.ts";
import type { GenerateOptions } from "./options.ts";
import type { AdapterFacts } from "./replay/calls.ts";

/** A function's answer as a promise. */
type Later<F> = F extends (...a: infer A) => infer R ? (...a: A) => Promise<Awaited<R>> : never;
type Laters<T, K extends keyof T> = { readonly [P in K]: Later<T[P]> };
type Adapters = Engine["adapters"];

/** What an adapter was when it was asked for; what it is saved as is what it is then. */
export interface AsyncAdapter
  extends AdapterFacts,
    Laters<AdapterHandle, "save" | "compress" | "toBlobs" | "download"> {}
/** A running job: `done` resolves with its result; `publish` makes what it knows available to requests. */
export type AsyncJob = Pick<Job, "name" | "step" | "done" | "publish" | "checkpoint" | "cancel">;

export interface AsyncEngine
  extends Laters<
      Engine,
      "encode" | "decode" | "promptIds" | "memory" | "complete" | "score" | "merge" | "saveModel" | "dispose"
    >,
    AsyncDisposable {
  readonly manifest: Manifest;
  readonly generationDefaults: Engine["generationDefaults"];
  readonly device: Engine["device"];
  /** Is a row's result the same bits whatever batch it is in? */
  readonly invariance: Engine["core"]["invariance"];
  readonly base: string;
  /** As of `Engine`; what is not read waits where it is computed. */
  generate(o: GenerateOptions): AsyncGenerator<Piece, void, void>;
  finetune(o: Parameters<Engine["finetune"]>[0]): Promise<AsyncJob>;
  readonly adapters: Laters<Adapters, "list" | "remove"> & {
    [K in "load" | "combine" | "get"]: (...a: Parameters<Adapters[K]>) => Promise<AsyncAdapter>;
  };
  /** Resolves once, with why it ended for good: WEFT_DISPOSED, or too many losses. Never rejects. */
  readonly closed: Promise<WeftError>;
  /** The last errors that functions of the caller threw. */
  readonly reports: readonly WeftError[];
}
