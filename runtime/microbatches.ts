/**
 * A job's rows on their way through the host: it is offered the rows of an optimizer step, takes as many as
 * there is room for, and says when their backward (and, for the last, the update) ran.
 */
import { IGNORE } from "./bundle.ts";
import type { Engine } from "./engine.ts";
import type { Item } from "./rows.ts";

/** What the host may do with the rows on offer. */
export interface Offer {
  /** They end the optimizer step. */
  readonly last: boolean;
  /** Most of them in one micro-batch. */
  readonly most: number;
  /** Keep all that the backward reads, where there is room; else what bounds a layer. */
  readonly keep: boolean;
}
/** A micro-batch that ran: its rows, the loss of each label in order, scale and norm of the gradient. */
export interface Ran {
  readonly rows: number;
  readonly losses: readonly number[];
  readonly norms: Float32Array;
}

export class MicroBatches {
  private offered: readonly Item[] = [];
  private waiting: { resolve: (ran: Ran) => void; reject: (e: unknown) => void } | null = null;
  /** Rows that the host took, and where their losses will lie. */
  private taken: { readonly base: number; readonly item: Item }[] = [];
  private failed: { readonly error: unknown } | null = null;
  constructor(
    private readonly engine: Engine,
    private readonly index: number,
    /** Trains the base itself: its norms are those of all tensors. */
    private readonly full: boolean,
  ) {}

  /** Offer rows; resolves when the micro-batch that the host made of the first of them ran. */
  run(items: readonly Item[], { last, most, keep }: Offer): Promise<Ran> {
    const { host } = this.engine;
    const lengths = host.offer(this.index);
    const n = Math.min(items.length, lengths.length);
    for (let i = 0; i < n; i++) lengths[i] = items[i]!.ids.length;
    this.offered = items;
    return new Promise((resolve, reject) => {
      if (this.failed) {
        reject(this.failed.error);
        return;
      }
      this.waiting = { resolve, reject };
      host.exports.jobOffer(this.index, n, most, keep ? 1 : 0, last && n === items.length ? 1 : 0);
      this.engine.kick();
    });
  }
  /** The host begins with the first `n` of them. */
  feed(n: number): void {
    const { host } = this.engine;
    const sequences = host.micro(this.index);
    this.taken = this.offered.slice(0, n).map((item, i) => {
      const seq = sequences[i]!;
      host.tokens(seq).set(item.ids);
      host.labels(seq).set(item.next);
      host.exports.setRow(seq, item.weight, item.dropKey, item.dropP);
      return { base: host.exports.saveBase(seq), item };
    });
  }
  async microDone(): Promise<void> {
    // The last word of a job that was dropped while its step ran is not for its successor.
    if (!this.taken.length) return;
    const { device, manifest, jobLane: lane } = this.engine;
    const { homes, room } = device.plan;
    const taken = this.taken;
    this.taken = [];
    const { layers } = manifest.model;
    const groups = layers + 1;
    const at = { space: "arena", group: 0, lane } as const;
    const norms = homes.norms + (this.full ? 0 : this.index) * (groups + 2) + groups;
    const [nll, ofNorms] = await device.readAll([
      { space: "accum", group: layers, offset: room.accum.outer, words: manifest.capacities.savedRows, lane },
      { ...at, offset: norms, words: 2 },
    ]);
    const losses = taken.flatMap(({ base, item }) =>
      [...nll!.subarray(base, base + item.ids.length)].filter((_, i) => item.next[i] !== IGNORE),
    );
    this.waiting?.resolve({ rows: taken.length, losses, norms: ofNorms! });
    this.waiting = null;
  }
  /** What the host has not taken yet it never gets: rolling back takes longer than the next step. */
  fail(error: unknown): void {
    this.failed ??= { error };
    if (!this.waiting) return;
    if (!this.engine.disposed) this.engine.host.exports.jobOffer(this.index, 0, 0, 0, 0);
    this.waiting.reject(error);
    this.waiting = null;
  }
}
