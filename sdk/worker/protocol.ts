/**
 * What crosses between who uses an engine and the thread that has it: each message is of something that was
 * asked for, by its number.
 */

import type { Published } from "../../runtime/adapters.ts";
import type { LoadProgress } from "../../runtime/device.ts";
import type { Place } from "../../runtime/folders.ts";
import type { LoadOptions } from "../../runtime/loading.ts";
import type { StepTrace } from "../../runtime/loops.ts";
import type { Checkpoint } from "../checkpoint.ts";
import type { Asked, Piece, TrainEvent } from "../engine.ts";
import type { Again } from "../keeping.ts";
import type { FinetuneOptions, GenerateOptions } from "../options.ts";
import type { BackendJob, Facts, Learned } from "../replay/backend.ts";
import type { CallName } from "../replay/calls.ts";
import type { Thrown } from "./wire.ts";

/** Asked of the thread. */
export interface Asks {
  open: {
    readonly location: Place;
    /** What addresses are relative to, in a page. */
    readonly here: string | null;
    readonly options: LoadOptions;
    readonly hears: { readonly progress: boolean; readonly step: boolean };
  };
  /** `abortable`: the last argument is options that take a signal. */
  call: { readonly name: CallName; readonly args: readonly unknown[]; readonly abortable: boolean };
  generate: { readonly options: GenerateOptions; readonly credit: number };
  /** So many pieces more may come. */
  credit: number;
  /** Nobody wants more of it. */
  leave: null;
  abort: Thrown;
  finetune: { readonly options: FinetuneOptions; readonly again: Omit<Again, "keep"> };
  publish: { readonly job: number };
  checkpoint: { readonly job: number; readonly dir: Place };
  cancel: null;
  /** Are you there? */
  ping: null;
  dispose: null;
}
/** Files in memory are filled where they are written: `maps` are what the asked ones are then, in order. */
export interface Answer {
  readonly value: unknown;
  readonly maps: readonly Map<unknown, unknown>[];
}
export const mapsIn = (args: readonly unknown[]): Map<unknown, unknown>[] =>
  args.filter((x) => x instanceof Map);
/** Told by the thread. */
export interface Says {
  /** It runs, and hears. */
  ready: null;
  /** To what is answered once. */
  answer: Answer;
  /** It was refused, or has failed. */
  error: Thrown;
  asked: Asked;
  piece: Piece;
  /** There are no more pieces. */
  end: null;
  /** A job was started. */
  started: BackendJob["learnsFrom"];
  event: TrainEvent;
  published: { readonly p: Published; readonly step: number };
  kept: Checkpoint;
  done: Learned;
  progress: LoadProgress;
  step: StepTrace;
  opened: Facts;
  /** The engine has ended; what it was asked for is rejected after this. */
  ended: Thrown;
}
export type Message<T> = { [K in keyof T]: readonly [id: number, kind: K, value: T[K]] }[keyof T];
/** What does something with each kind of message. */
export type Ears<T> = { readonly [K in keyof T]: (id: number, value: T[K]) => void };
export function dispatch<T>(ears: Partial<Ears<T>>, [id, kind, value]: Message<T>): void {
  (ears[kind] as ((id: number, value: T[keyof T]) => void) | undefined)?.(id, value);
}

/** One end of the line between two threads. */
export interface Port {
  readonly post: (message: unknown, memory?: ArrayBuffer[]) => void;
  readonly hear: (f: (message: unknown) => void) => void;
}
/** A thread, as who started it sees it. */
export interface WorkerPort extends Port {
  /** Resolves with why, once it can say nothing more. Never rejects. */
  readonly lost: Promise<string>;
  /** What may have stopped it for a while is over: it should be asked whether it is still there. */
  readonly thawed: (f: () => void) => void;
  readonly end: () => Promise<void>;
}
