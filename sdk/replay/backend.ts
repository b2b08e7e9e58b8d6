/**
 * What a replay plays on: an engine that may end, in this thread (local.ts) or in a worker
 * (worker/client.ts). What is asked of one may be asked again of the next.
 */

import type { Published } from "../../runtime/adapters.ts";
import type { Manifest, WeftError } from "../../runtime/bundle.ts";
import type { Place } from "../../runtime/folders.ts";
import type { Checkpoint } from "../checkpoint.ts";
import type { Asked, Engine, Piece, TrainEvent, TrainResult } from "../engine.ts";
import type { Again } from "../keeping.ts";
import type { FinetuneOptions, GenerateOptions } from "../options.ts";
import type { ArgsOf, CallName, ResultOf } from "./calls.ts";

/**
 * What never changes of an engine, but for the base, which full training changes, and what is known of its
 * invariance when a class is first trained.
 */
export interface Facts {
  readonly manifest: Manifest;
  readonly device: Engine["device"];
  readonly invariance: Engine["core"]["invariance"];
  readonly base: string;
}
export const factsOf = ({ manifest, device, core: { invariance, base } }: Engine): Facts => ({
  ...{ manifest, device, invariance, base },
});

/** Hears what a job does. What it throws is nobody's. */
export interface JobEars {
  readonly event: (e: TrainEvent) => void;
  /** Before any request is served by it. */
  readonly published: (p: Published, step: number) => void;
  readonly kept: (c: Checkpoint) => void;
}
/** What it learned, and the base and the invariance that there are then. */
export interface Learned {
  readonly invariance: Facts["invariance"];
  readonly result: TrainResult;
  readonly base: string;
}
export interface BackendJob {
  /** The generations that it began from, as references that stay. */
  readonly learnsFrom: Pick<FinetuneOptions, "from" | "disjointFrom">;
  readonly done: Promise<Learned>;
  publish(): Promise<string>;
  checkpoint(dir: Place): Promise<void>;
  cancel(): void;
}
export interface Backend {
  readonly facts: Facts;
  /** Why it ended, before anything that it was asked for is rejected for that; null while it lives. */
  readonly ended: WeftError | null;
  /** Resolves with that. Never rejects. */
  readonly closed: Promise<WeftError>;
  call<K extends CallName>(name: K, ...args: ArgsOf<K>): Promise<ResultOf<K>>;
  generate(o: GenerateOptions, hear: (asked: Asked) => void): AsyncGenerator<Piece, void, void>;
  finetune(o: FinetuneOptions, again: Omit<Again, "keep">, ears: JobEars): Promise<BackendJob>;
  /** Resolves when its threads and memory are free. */
  dispose(): Promise<void>;
}
