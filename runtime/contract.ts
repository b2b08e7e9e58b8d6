/**
 * What compiler, host and runtime agree on, each written once; the compiler generates the host's constants
 * from it.
 */
import { updateWords } from "./optimizers/index.ts";

/** What a bundle tells its host, as host.json: numbers by name, and tables of words, one after another. */
export interface HostConfig {
  readonly numbers: Readonly<Record<string, number>>;
  readonly tables: readonly number[];
}
/** Tokens of a cache block, and of a key tile. */
export const BLOCK = 32;
/** Keys that attention sums on their own before it folds them into what came before. */
export const SPLIT = 256;
/** Rows of a tile of a product on WebGPU. */
export const ROW_TILE = 64;
/** Blocks that hold `tokens`. */
export const cacheBlocks = (tokens: number): number => Math.ceil(tokens / BLOCK);
/** Ids that end an answer, at most. */
export const MAX_STOPS = 16;
/** Tokens whose logits a request may add to, as many as OpenAI's API takes. */
export const MAX_BIASES = 300;
/**
 * Of these, those that a device reads one by one beside what it picked out of a logits row, at most: what is
 * added may lift them above any other.
 */
export const MAX_RAISED = 16;
/**
 * What a device picks out of a logits row, so that not all of it is read back: the largest logits, as many as
 * are wanted, of at most so many. In words: how many there are (0: not told), the largest logit,
 * Σ exp(x - largest) (0: some logit is not finite), Σ exp((x - largest) / temperature); then each as its
 * logit and its id, in order, of equal ones the lower id first.
 */
export const CANDIDATES = 256;
export const CANDIDATE_WORDS = 4 + 2 * CANDIDATES;
/** Rows of at most 4 KiB are read whole. */
export const hasCandidates = (vocab: number): boolean => vocab > 1024;
/** The label of a token that teaches nothing. */
export const IGNORE = -100;
/** The folder of a bundle with the adapter that corrects its rounding, and that adapter's name. */
export const CORRECTION = "correction";
/** No sequence, row, run or request. */
export const NONE = -1;

/** What a sequence is, where there is one. */
export const FREE = 0;
export const KIND = { generate: 1, score: 2, train: 3 } as const;
/** What the host says, each time [event, a, b, c]. */
export const EVENT = {
  // What a step gave: (sequence, id, logits row), (sequence, why), (sequence, position, logits row), (job).
  token: 1,
  finished: 2,
  scored: 3,
  microDone: 4,
  // What to do before the next one. An adapter into a slot: (adapter, slot).
  load: 5,
  /** A request's tokens into a sequence: (ticket, sequence). */
  start: 6,
  /** A job has a slot of its own: (job, slot). */
  hold: 7,
  /** A micro-batch begins with the first rows on offer: (job, how many). */
  feed: 8,
  /** A request that was paused gave its place to others: (sequence). It is asked for again to go on. */
  preempt: 9,
} as const;
export const EVENT_WORDS = 4;
/** Why a request ended: of its own, or because it was given up. */
export const FINISH = { stop: 1, length: 2, givenUp: 3 } as const;

/** Weighted sums of adapters that requests may be for at once, and adapters in one. */
export const MOST_SUMS = 32;
export const MOST_PARTS = 16;
/** Command lists that may be on their way at once: of requests, and of jobs. */
export const LANES = 2;
/** A command: kernel, group, byte offset of the metadata block, x, y, z. */
export const COMMAND_WORDS = 6;
/** The host's own counters, then those of a lane's step. */
export const COUNTER = {
  /**
   * Cache blocks with nothing in them, free rows of the table of sequences; how often either was given back.
   */
  free: 0,
  freeSequences: 1,
  given: 2,
  /** Lanes; requests that run. */
  lanes: 4,
  requests: 5,
  /** Rows that kernels for a few take at most, beside whole tiles. */
  few: 6,
  /** Does the device pick candidates out of logits rows? */
  picks: 7,
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
  /** Tokens that requests of the lane found computed, since it planned its step. */
  found: 25,
  /** Row-equivalents that the step was granted. */
  spent: 26,
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
  // Rows at the end of n_rows, and of n_head, that kernels for a few take.
  "rest_rows",
  "rest_head",
  // Items of attention on WebGPU: tiles of rows, splits of single rows, and of these rows that have several.
  "n_tiles",
  "n_splits",
  "n_merges",
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

/** Integers that differ between layers of one graph: in a layer's table, after its group. */
export const layerConstants = ["window", "rope"] as const;
export const layerWord = (name: (typeof layerConstants)[number]): number => 1 + layerConstants.indexOf(name);

/**
 * Rows of an adapter's factors that lie side by side: a quad. Slots have quads, as many as their rank takes;
 * what a row of a kernel reads of its slot, it finds by the slot's row of the table: of each branch its rank,
 * where its vectors are, and of each quad where it is and its scale.
 */
export const QUAD = 4;
export const quadsOf = (rank: number): number => Math.ceil(rank / QUAD);
/**
 * Has a tensor rows by rank that kernels read as rows? A column of numbers, and what has one row, is a
 * vector: it lies at its branch's home, as long as the branch has room for.
 */
export const ranked = (t: { readonly rows: "rank" | "one"; readonly cols: number }): boolean =>
  t.rows === "rank" && t.cols > 1;
/** Words of a branch in a slot's row of the table. */
export const SLOT_ROW = { rank: 0, home: 1, quads: 2 } as const;
/** Of each quad: where it is, and its scale. */
export const QUAD_WORDS = 2;
/** Words of a group's table before the slots' rows. */
export const SLOT_TABLE = 64;

/**
 * WGSL: a constant that makes a pipeline of bodies of its kernel that go through one text, from that one on;
 * without it a workgroup's z says which body it has.
 */
export const FIRST_BODY = "first_body";

/** Memory of a device, in the order of the bind record and of the storage bindings. */
export const memorySpaces = [
  "weights",
  "meta",
  "arena",
  "kv",
  "saved",
  "adapters",
  "accum",
  "tables",
] as const;
export type MemorySpace = (typeof memorySpaces)[number];
/** WebGPU: where the numbers that a launch brings to its kernel are bound, and how many vectors of four. */
export const LAUNCH_BINDING = memorySpaces.length;
export const LAUNCH_VECTORS = 63;
