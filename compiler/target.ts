/** A target: limits and capacities, plain data. Capacities are baked into the bundle; nothing on the hot path allocates. */
import { STORED_PANEL, WeftError } from "../runtime/bundle.ts";

export interface Capacities {
  /** Rows of one step's forward. */
  readonly tokens: number;
  /** Live sequences (requests and training sequences). */
  readonly sequences: number;
  /** Longest sequence, tokens. */
  readonly context: number;
  /** Logits rows per step, and per chunk of the training head. */
  readonly headRows: number;
  /** Cache blocks of 32 tokens. */
  readonly blocks: number;
  /** Adapter slots, beside slot 0 which is the base. */
  readonly slots: number;
  /** Fine-tuning jobs at once. */
  readonly jobs: number;
  /** Largest adapter rank; a multiple of 4. */
  readonly rank: number;
  /** Rows of training sequences that can be in flight at once (all jobs): their boundary activations. */
  readonly savedRows: number;
  /** Rows whose full kept set fits as well; a micro-batch beyond that recomputes inside its units. */
  readonly keptRows: number;
  /** Rows in which gradients are summed: a sequence's backward goes quantum by quantum. */
  readonly quantum: number;
  /** Most rows of one backward unit: as many quanta as fit and as a step may carry. */
  readonly unitRows: number;
  /** Backward and head units that one step can carry. */
  readonly units: number;
  /** Sites whose channels S2FT adapters may choose, and their parameters a layer; null: the paper's sites, parameters as LoRA of `rank`. */
  readonly s2ft: { readonly sites: readonly string[]; readonly parameters?: number } | null;
}
export interface Target {
  readonly name: "wasm" | "webgpu";
  /** Largest storage binding, bytes. */
  readonly bindingBytes: number;
  readonly workgroupInvocations: number;
  /** Columns of a weight panel: lanes run over them. */
  readonly panel: number;
}

export const targets: Readonly<Record<Target["name"], Target>> = {
  wasm: { name: "wasm", bindingBytes: 2 ** 31, workgroupInvocations: 1, panel: STORED_PANEL },
  webgpu: { name: "webgpu", bindingBytes: 128 * 2 ** 20, workgroupInvocations: 256, panel: 16 },
};

export function defaultCapacities(context: number): Capacities {
  const ctx = Math.min(context, 1024);
  return {
    tokens: 256,
    sequences: 64,
    context: ctx,
    headRows: 32,
    blocks: Math.max(256, 8 * Math.ceil(ctx / 32)),
    slots: 8,
    jobs: 2,
    rank: 16,
    savedRows: 1024,
    keptRows: 1024,
    quantum: 32,
    unitRows: 128,
    units: 16,
    s2ft: null,
  };
}

export function checkCapacities(c: Capacities): Capacities {
  for (const [name, v] of Object.entries(c)) {
    if (name === "s2ft") continue;
    if (!Number.isInteger(v) || v < 1)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: `capacities.${name}`,
        expected: "a positive integer",
        found: String(v),
      });
  }
  if (c.rank % 4)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.rank",
      expected: "a multiple of 4",
      found: String(c.rank),
    });
  if (c.blocks * 32 < c.context)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.blocks",
      expected: `at least ${Math.ceil(c.context / 32)} blocks to hold one context`,
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
