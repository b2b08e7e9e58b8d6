/**
 * A target: limits and capacities, plain data. Capacities are baked into the bundle; nothing on the hot path
 * allocates.
 */
import * as v from "valibot";
import { BLOCK, cacheBlocks, STORED_PANEL, WeftError } from "../runtime/bundle.ts";
import { check, number, type Of, object, positive, text } from "../runtime/schema.ts";

export const capacityEntries = {
  /** Rows of one step's forward. Default 256. */
  tokens: positive,
  /** Live sequences (requests and training sequences). Default 64. */
  sequences: positive,
  /** Longest sequence, tokens. Default: the model's, at most 1024. */
  context: positive,
  /** Logits rows per step, and per chunk of the training head. Default 32. */
  headRows: positive,
  /** Cache blocks of 32 tokens. Default: 256, or eight contexts. */
  blocks: positive,
  /** Adapter slots, beside slot 0 which is the base. Default 16. */
  slots: positive,
  /**
   * Pages of all slots: an adapter takes as many as its rank does. Default null: enough for adapters of the
   * largest rank in all slots that were asked for, or in half of those by default.
   */
  pages: v.nullable(positive),
  /** Fine-tuning jobs at once. Default 2. */
  jobs: positive,
  /** Largest adapter rank; a multiple of 4. Default 16. */
  rank: number("a multiple of 4", (x) => Number.isInteger(x) && x > 0 && x < 2 ** 20 && x % 4 === 0),
  /**
   * Largest rank of LoRA on the matrices of experts; a multiple of 4. Default 0: there are no adapters of
   * experts. One takes as much for each expert as for another matrix.
   */
  experts: number("a multiple of 4", (x) => Number.isInteger(x) && x >= 0 && x < 2 ** 20 && x % 4 === 0),
  /** Rows of training sequences in flight at once (all jobs): their boundary activations. Default 1024. */
  savedRows: positive,
  /**
   * Rows whose full kept set fits as well; a micro-batch beyond that recomputes inside its units. Default
   * 1024.
   */
  keptRows: positive,
  /** Rows in which gradients are summed: a sequence's backward goes quantum by quantum. Default 32. */
  quantum: positive,
  /** Most rows of one backward unit: as many quanta as fit and as a step may carry. Default 128. */
  unitRows: positive,
  /** Backward and head units that one step can carry. Default 16. */
  units: positive,
  /**
   * Sites whose channels S2FT adapters may choose, and their parameters a layer; of experts, of each.
   * Default null: the paper's sites, parameters as LoRA of `rank`, and of `experts`.
   */
  s2ft: v.nullable(object({ sites: v.array(text), parameters: v.exactOptional(positive) })),
};
const Capacities = object(capacityEntries);
export type Capacities = Of<typeof Capacities>;
/** 256-byte alignment, in words. */
export const align = (words: number, to = 64): number => Math.ceil(words / to) * to;

export interface Target {
  readonly name: "wasm" | "webgpu";
  /** Largest storage binding, bytes. */
  readonly bindingBytes: number;
  readonly workgroupInvocations: number;
  /** Columns of a weight panel: lanes run over them. */
  readonly panel: number;
}

/** What indices in kernels reach; how much less a device binds is asked when a bundle is loaded there. */
export const targets: Readonly<Record<Target["name"], Target>> = {
  wasm: { name: "wasm", bindingBytes: 2 ** 31, workgroupInvocations: 1, panel: STORED_PANEL },
  webgpu: { name: "webgpu", bindingBytes: 2 ** 31, workgroupInvocations: 256, panel: 16 },
};

/** Blocks of the cache: eight contexts, or more of small ones. */
export const defaultBlocks = (context: number): number => Math.max(256, 8 * cacheBlocks(context));
export function defaultCapacities(context: number): Capacities {
  const ctx = Math.min(context, 1024);
  return {
    tokens: 256,
    sequences: 64,
    context: ctx,
    headRows: 32,
    blocks: defaultBlocks(ctx),
    slots: 16,
    pages: null,
    jobs: 2,
    rank: 16,
    experts: 0,
    savedRows: 1024,
    keptRows: 1024,
    quantum: 32,
    unitRows: 128,
    units: 16,
    s2ft: null,
  };
}

/** Capacities that fit each other. Throws WEFT_CAPACITY. */
export function checkCapacities(given: Capacities): Capacities {
  const at = { code: "WEFT_CAPACITY", where: "" } as const;
  const { capacities: c } = check(object({ capacities: Capacities }), { capacities: given }, at);
  if (c.blocks * BLOCK < c.context)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.blocks",
      expected: `at least ${cacheBlocks(c.context)} blocks to hold one context`,
      found: String(c.blocks),
    });
  if (c.quantum > c.unitRows)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.quantum",
      expected: `at most unitRows (${c.unitRows})`,
      found: String(c.quantum),
    });
  return c;
}
