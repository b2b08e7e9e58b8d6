/**
 * What compiler, host and runtime agree on, each written once; the compiler generates the host's constants
 * from it.
 */
import { updateWords } from "./optimizers/index.ts";

/** Tokens of a cache block, and of a key tile. */
export const BLOCK = 32;
/** Blocks that hold `tokens`. */
export const cacheBlocks = (tokens: number): number => Math.ceil(tokens / BLOCK);
/** Ids that end an answer, at most. */
export const MAX_STOPS = 16;
/** The label of a token that teaches nothing. */
export const IGNORE = -100;
/** No sequence, row, run or request. */
export const NONE = -1;

/** What a sequence is, where there is one. */
export const FREE = 0;
export const KIND = { generate: 1, score: 2, train: 3 } as const;
/** What a step says: [event, a, b, c]. */
export const EVENT = { token: 1, finished: 2, scored: 3, microDone: 4 } as const;
export const EVENT_WORDS = 4;
/** Why an answer ended. */
export const FINISH = { stop: 1, length: 2 } as const;

/** Command lists that may be on their way at once: of requests, and of jobs. */
export const LANES = 2;
/** A command: kernel, group, byte offset of the metadata block, x, y, z. */
export const COMMAND_WORDS = 6;
/** The host's own counters, then those of a lane's step. */
export const COUNTER = {
  /** Free cache blocks; sequences that came; rows from which a step has many, for its device; lanes. */
  free: 0,
  arrival: 1,
  many: 2,
  lanes: 3,
  /** Of the step: rows granted, logits rows, units, commands, events, words of metadata, rows in training. */
  rows: 16,
  head: 17,
  units: 18,
  commands: 19,
  events: 20,
  meta: 21,
  trainRows: 22,
  steps: 23,
  /** Row-equivalents that fine-tuning may still use; negative after a unit that was larger. */
  credit: 24,
} as const;

/** Header words of a metadata block, the same in every block; only updates have the last. */
export const headerWords: readonly string[] = [
  "n_rows",
  "n_head",
  "job",
  "slot",
  "n_keys",
  "n_segments",
  "table_words",
  "mask_0",
  "mask_1",
  "mask_2",
  "mask_3",
  "mask_4",
  "zero",
  ...updateWords,
];
export const HEADER = Math.ceil(headerWords.length / 32) * 32;
/**
 * Bits of the mask words: an adapter branch each, set when some row of the block has it; the last word holds
 * flags. A body whose bit is not set has nothing to do; a launch none of whose bits is set is skipped.
 */
export const MASK_WORDS = 5;
export const MAX_BRANCHES = 128;
/** Some row of the block has dropout. */
export const DROPOUT_BIT = 128;
/** Some row of the step is being trained: what only saves activations runs then. */
export const TRAIN_BIT = 129;

/** Memory of a device, in the order of the bind record and of the storage bindings. */
export const memoryClasses = [
  "weights",
  "meta",
  "arena",
  "kv",
  "saved",
  "adapters",
  "accum",
  "tables",
] as const;
export type MemoryClass = (typeof memoryClasses)[number];
