/**
 * What of an engine would be lost with it, as the next one needs it: adapters with the generations that
 * requests may name, what is merged, and what full training made of the base.
 */
import type { AdapterRef, Published } from "../../runtime/adapters.ts";
import type { MergeOptions } from "../../runtime/options.ts";
import type { Checkpoint } from "../checkpoint.ts";
import type { FinetuneOptions } from "../options.ts";
import type { Backend } from "./backend.ts";

interface Named {
  /** The last number that was given. */
  last: number;
  /** Numbers that the engine keeps. */
  kept: readonly number[];
  readonly generations: Map<number, Published>;
}

export class Journal {
  private readonly names = new Map<string, Named>();
  /** How many requests, jobs and merges use a generation, by `name@number`. */
  private readonly holders = new Map<string, number>();
  private merge: {
    readonly ref: AdapterRef;
    readonly options: MergeOptions | undefined;
    release: () => void;
  } | null = null;
  /** The full trainings that made the base, in order, each behind its last step. */
  private readonly trained: { readonly options: FinetuneOptions; readonly end: Checkpoint }[] = [];

  published(p: Published): void {
    const named = this.names.get(p.name) ?? { last: 0, kept: [], generations: new Map() };
    this.names.set(p.name, named);
    named.last = Math.max(named.last, p.number);
    named.kept = p.kept;
    named.generations.set(p.number, p);
    this.prune(p.name);
  }
  removed(name: string): void {
    const named = this.names.get(name);
    if (!named) return;
    named.kept = [];
    this.prune(name);
  }
  merged(ref: AdapterRef | null, options: MergeOptions | undefined): void {
    this.merge?.release();
    this.merge = ref === null ? null : { ref, options, release: this.hold(ref) };
  }
  learned({ checkpoint: _, ...options }: FinetuneOptions, end: Checkpoint): void {
    this.trained.push({ options, end });
  }
  /** Somebody uses these generations until what is returned is called. */
  hold(ref: AdapterRef | undefined): () => void {
    const refs = ref === undefined ? [] : typeof ref === "string" ? [ref] : Object.keys(ref);
    for (const r of refs) this.holders.set(r, (this.holders.get(r) ?? 0) + 1);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      for (const r of refs) {
        const n = this.holders.get(r)! - 1;
        if (n) this.holders.set(r, n);
        else {
          this.holders.delete(r);
          this.prune(r.slice(0, r.lastIndexOf("@")));
        }
      }
    };
  }
  private prune(name: string): void {
    const named = this.names.get(name);
    for (const n of named?.generations.keys() ?? [])
      if (!named!.kept.includes(n) && !this.holders.has(`${name}@${n}`)) named!.generations.delete(n);
  }

  /** Make a new engine what the last one was, but for what runs. */
  async bringBack(backend: Backend): Promise<void> {
    for (const { options, end } of this.trained) {
      const ears = { event: () => {}, published: () => {}, kept: () => {} };
      const again = { from: end, published: new Map<number, number>(), every: 0 };
      await (await backend.finetune(options, again, ears)).done;
    }
    for (const [name, { last, generations }] of this.names) {
      const list = [...generations.values()].sort((a, b) => a.number - b.number);
      await backend.call("bringBack", name, last, list);
    }
    if (this.merge) await backend.call("merge", this.merge.ref, this.merge.options);
  }
}
