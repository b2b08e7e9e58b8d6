/**
 * Adapters and their generations. Content lives here; slots on the device are a cache, and the host decides
 * which holds what. A generation is immutable: training writes its own slot, `publish` copies it out,
 * requests finish on the generation they were admitted with.
 */
import { otherBase } from "./base.ts";
import { type Manifest, WeftError } from "./bundle.ts";
import { combine } from "./combine.ts";
import type { AdapterConfig, AdapterContent, BranchState } from "./content.ts";
import type { Device } from "./device.ts";
import type { Host } from "./host.ts";
import { reorderSlot } from "./slots.ts";

/**
 * `notes` (its latest generation), `notes@3`, or a weighted sum `{ blue: 0.5, green: 0.5 }` of such names.
 */
export type AdapterRef = string | Readonly<Record<string, number>>;
export interface Generation {
  readonly name: string;
  readonly number: number;
  /** What a response says answered it: `notes@3`. */
  readonly ref: string;
  readonly content: AdapterContent;
  /** Identity of the base weights that it was trained on. */
  readonly base: string;
  /** What whoever uses it should know. */
  readonly warnings: readonly string[];
  /** The host's number for it: from 1 up, each once. */
  readonly id: number;
  /** Requests that asked for it, waiting or running: it is kept. */
  pins: number;
}
/** Generations kept by name before the oldest unpinned one is dropped. */
const KEPT_GENERATIONS = 4;
/** Weighted sums kept ready, and in use at once. */
const KEPT_SUMS = 32;
/** Numbers kept of names that were removed. */
const KEPT_NUMBERS = 4096;

export class AdapterStore {
  private readonly byName = new Map<string, Generation[]>();
  /** The last number of each name, also of names that were removed: a number never comes twice. */
  private readonly latest = new Map<string, number>();
  /** The largest number of names that are no longer in `latest`: names that are new go on from it. */
  private forgotten = 0;
  /** Weighted sums that requests asked for, by what they are sums of; the least recently asked for first. */
  private readonly sums = new Map<string, Generation>();
  private made = 0;
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly host: Host,
    /** The base weights as they are now. */
    private readonly base: () => string,
  ) {}
  private make(g: Omit<Generation, "id" | "pins">): Generation {
    return { ...g, id: ++this.made, pins: 0 };
  }

  list(): { name: string; generations: number[]; config: AdapterConfig }[] {
    return [...this.byName].map(([name, g]) => ({
      name,
      generations: g.map((x) => x.number),
      config: g[g.length - 1]!.content.config,
    }));
  }
  has(name: string): boolean {
    return this.byName.has(name);
  }
  /**
   * The generation a reference means now; a weighted sum is made when it is first asked for. Throws
   * WEFT_NOT_FOUND, or WEFT_ADAPTER for what does not add up.
   */
  find(ref: AdapterRef): Generation {
    return typeof ref === "string" ? this.named(ref) : this.sum(ref);
  }
  private sum(weights: Readonly<Record<string, number>>): Generation {
    const parts = Object.entries(weights)
      .map(([name, weight]) => ({ g: this.named(name), weight }))
      .sort((a, b) => (a.g.ref < b.g.ref ? -1 : 1));
    const ref = parts.map(({ g, weight }) => `${weight}*${g.ref}`).join("+");
    const made = this.sums.get(ref) ?? this.combined(ref, parts);
    this.sums.delete(ref);
    this.sums.set(ref, made);
    for (const [key, old] of this.sums) {
      if (this.sums.size <= KEPT_SUMS) break;
      if (old.pins || old === made) continue;
      this.drop(old);
      this.sums.delete(key);
    }
    return made;
  }
  private combined(ref: string, parts: readonly { g: Generation; weight: number }[]): Generation {
    const base = parts[0]?.g.base ?? this.base();
    const other = parts.find(({ g }) => g.base !== base);
    if (other) throw otherBase(other.g.ref, other.g.base, base);
    if ([...this.sums.values()].filter((s) => s.pins).length >= KEPT_SUMS)
      throw new WeftError({
        code: "WEFT_CAPACITY",
        where: "adapter",
        expected: `at most ${KEPT_SUMS} weighted sums in use at once`,
        found: "one more",
        hint: "adapters.combine makes a sum an adapter of its own",
        retryable: true,
      });
    const content = combine(
      this.manifest,
      this.device.plan,
      parts.map(({ g, weight }) => ({ content: g.content, weight })),
    );
    return this.make({ name: ref, number: 1, ref, content, base, warnings: [] });
  }
  private named(ref: string): Generation {
    const [name, n] = ref.includes("@")
      ? [ref.slice(0, ref.lastIndexOf("@")), Number(ref.slice(ref.lastIndexOf("@") + 1))]
      : [ref, null];
    const list = this.byName.get(name);
    const g = n === null ? list?.[list.length - 1] : list?.find((x) => x.number === n);
    if (!g)
      throw new WeftError({
        code: "WEFT_NOT_FOUND",
        where: `adapter ${ref}`,
        expected: list
          ? `one of the generations that are kept, ${list.map((x) => x.ref).join(", ")}`
          : [...this.byName.keys()].join(", ") || "an adapter that was loaded or trained",
        found: list ? "one that is not, or never was" : "no such adapter",
      });
    return g;
  }
  /**
   * A new immutable generation, of the base as it is now unless another is named. Old unpinned ones beyond
   * the kept number are dropped.
   */
  publish(
    name: string,
    content: AdapterContent,
    { base = this.base(), warnings = [] }: { base?: string; warnings?: readonly string[] } = {},
  ): Generation {
    const number = (this.latest.get(name) ?? this.forgotten) + 1;
    this.latest.delete(name);
    this.latest.set(name, number);
    for (const [old, n] of this.latest) {
      if (this.latest.size <= KEPT_NUMBERS) break;
      if (this.byName.has(old)) continue;
      this.forgotten = Math.max(this.forgotten, n);
      this.latest.delete(old);
    }
    const g = this.make({ name, number, ref: `${name}@${number}`, content, base, warnings });
    const list = [...(this.byName.get(name) ?? []), g];
    for (let i = 0; i < list.length - 1 && list.length > KEPT_GENERATIONS; ) {
      if (list[i]!.pins === 0) this.drop(list.splice(i, 1)[0]!);
      else i++;
    }
    this.byName.set(name, list);
    return g;
  }
  remove(name: string): void {
    const list = this.byName.get(name);
    if (!list)
      throw new WeftError({
        code: "WEFT_NOT_FOUND",
        where: `adapter ${name}`,
        expected: "a loaded adapter",
        found: "none of that name",
      });
    if (list.some((g) => g.pins > 0))
      throw new WeftError({
        code: "WEFT_CONFLICT",
        where: `adapter ${name}`,
        expected: "an adapter no request is using",
        found: "requests in flight",
        retryable: true,
      });
    for (const g of list) this.drop(g);
    this.byName.delete(name);
  }
  private drop(g: Generation): void {
    this.host.exports.forget(g.id);
  }
  /** Keep a generation for a request; `unpin` when it has ended. */
  pin(g: Generation): void {
    g.pins++;
  }
  unpin(g: Generation): void {
    g.pins--;
    if (g.pins === 0 && !this.byName.get(g.name)?.includes(g) && this.sums.get(g.ref) !== g) this.drop(g);
  }
  private get jobLane(): number {
    return this.device.lanes - 1;
  }
  /** Put an adapter into a slot, behind what the lane has on its way. */
  fill(slot: number, content: AdapterContent, lane: number): void {
    const n = this.manifest.branches.length;
    const masks = new Map<number, number>();
    content.tensors.forEach((data, l) => {
      this.write(slot, l, content.branches[l]!, data, lane);
      const table = new Uint32Array(n * 2);
      const scales = new Float32Array(table.buffer);
      content.branches[l]!.forEach((s, i) => {
        table[i * 2] = s.rank;
        scales[i * 2 + 1] = s.scale;
        masks.set(i >> 5, (masks.get(i >> 5) ?? 0) | (s.rank ? 1 << (i & 31) : 0));
      });
      this.device.write({ cls: "tables", group: l, offset: 64 + slot * n * 2, lane }, table);
    });
    for (const [word, bits] of masks) this.host.exports.setMask(slot, word, bits);
  }
  /** Put a layer's tensors into a slot. */
  private write(
    slot: number,
    layer: number,
    branches: readonly BranchState[],
    data: Float32Array,
    lane: number,
  ): void {
    const { plan } = this.device;
    this.device.write(
      { cls: "adapters", group: layer, offset: slot * plan.slotWords, lane },
      reorderSlot(this.manifest, plan.factors, layer, branches, data),
    );
  }
  /** Put content of the same shape into a training slot. */
  restore(slot: number, content: AdapterContent): void {
    content.tensors.forEach((data, l) => this.write(slot, l, content.branches[l]!, data, this.jobLane));
  }
  /** Copy a training slot out. */
  async download(slot: number, like: AdapterContent): Promise<AdapterContent> {
    const { plan } = this.device;
    const slots = await this.device.readAll(
      like.tensors.map((_, l) => ({
        cls: "adapters",
        group: l,
        offset: slot * plan.slotWords,
        words: plan.slotWords,
        lane: this.jobLane,
      })),
    );
    const tensors = slots.map((data, l) =>
      reorderSlot(this.manifest, plan.factors, l, like.branches[l]!, data, true),
    );
    return { ...like, tensors };
  }
}
