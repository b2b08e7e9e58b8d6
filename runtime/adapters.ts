/**
 * Adapters and their generations. Content lives here; slots on the device are a cache, and the host decides
 * which holds what. A generation is immutable: training writes its own slot, `publish` copies it out,
 * requests finish on the generation they were admitted with.
 */
import { type Manifest, SLOT_TABLE, WeftError } from "./bundle.ts";
import type { AdapterConfig, AdapterContent, AdapterShape } from "./content.ts";
import type { Device } from "./device.ts";
import type { Host } from "./host.ts";
import { Contents, type KeptContent } from "./kept.ts";
import { SlotPages } from "./pages.ts";
import { didYouMean } from "./schema.ts";
import type { Sums, WeightedPart } from "./sums.ts";

/**
 * `notes` (its latest generation), `notes@3`, or a weighted sum `{ blue: 0.5, green: 0.5 }` of such names.
 */
export type AdapterRef = string | Readonly<Record<string, number>>;
export interface Generation {
  readonly name: string;
  readonly number: number;
  /** What a response says answered it: `notes@3`. */
  readonly ref: string;
  readonly shape: AdapterShape;
  /** Its tensors too, as they are read from where they are kept. */
  readonly content: AdapterContent;
  /** Why its tensors could not be read from where they are kept; null: nothing is known to be wrong. */
  failed: WeftError | null;
  /** Those whose rows a slot of it consists of; none where it has rows of its own. */
  readonly parts: readonly WeightedPart[];
  /** Identity of the base weights that it was trained on. */
  readonly base: string;
  /** What whoever uses it should know. */
  readonly warnings: readonly string[];
  /** The host's number for it: from 1 up, each once. */
  readonly id: number;
  readonly kept: KeptContent;
  /** Requests that asked for it, waiting or running: it is kept. */
  pins: number;
}
/** What must be known of a generation to have it in another engine. */
export interface Published {
  readonly name: string;
  readonly number: number;
  readonly content: AdapterContent;
  readonly base: string;
  readonly warnings: readonly string[];
  /** Numbers that its name has from then on. */
  readonly kept: readonly number[];
}
/** A content whose layers come one after another. */
type LayeredContent = AdapterShape & { readonly tensors: Iterable<Float32Array> };
/** A generation as it is made. */
export type Made = Omit<Generation, "id" | "pins" | "content" | "failed"> & { readonly kept: KeptContent };
/** What reorders slots: of bundles with an order of their own, which are few. */
let slots: typeof import("./slots.ts") | null = null;
/** To be waited for before adapters of a bundle go into slots. */
export async function readyForSlots({ selection }: Manifest): Promise<void> {
  if (selection) slots ??= await import("./slots.ts");
}
/** Generations kept by name before the oldest unpinned one is dropped. */
const KEPT_GENERATIONS = 4;
/** Numbers kept of names that were removed. */
const KEPT_NUMBERS = 4096;

export class AdapterStore {
  private readonly byName = new Map<string, Generation[]>();
  /** The last number of each name, also of names that were removed: a number never comes twice. */
  private readonly latest = new Map<string, number>();
  /** The largest number of names that are no longer in `latest`: names that are new go on from it. */
  private forgotten = 0;
  /** Null until a sum is asked for. */
  private sums: Sums | null = null;
  /** Those that requests wait for or run on, by number. */
  private readonly pinned = new Map<number, Generation>();
  private made = 0;
  private readonly pages: SlotPages;
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly host: Host,
    /** The base weights as they are now. */
    private readonly base: () => string,
    private readonly contents = new Contents(manifest),
  ) {
    this.pages = new SlotPages(manifest, device.plan);
  }
  private make(g: Made): Generation {
    return {
      ...g,
      id: ++this.made,
      pins: 0,
      failed: null,
      get content() {
        return g.kept.read();
      },
    };
  }

  list(): { name: string; generations: number[]; config: AdapterConfig }[] {
    return [...this.byName].map(([name, g]) => ({
      name,
      generations: g.map((x) => x.number),
      config: g[g.length - 1]!.shape.config,
    }));
  }
  has(name: string): boolean {
    return this.byName.has(name);
  }
  /**
   * What is to be waited for before `find` is asked for a reference: what makes sums; null where it is there.
   */
  needs(ref: AdapterRef | null | undefined): Promise<void> | null {
    if (!ref || typeof ref === "string" || this.sums) return null;
    const { manifest, pages, host } = this;
    const make = (g: Made): Generation => this.make(g);
    return import("./sums.ts").then(({ Sums }) => {
      this.sums ??= new Sums(manifest, pages, host, make, (g) => this.drop(g));
    });
  }
  /**
   * The generation a reference means now; a weighted sum becomes one when it is first asked for. Throws
   * WEFT_NOT_FOUND, or WEFT_ADAPTER for what does not add up.
   */
  find(ref: AdapterRef): Generation {
    if (typeof ref === "string") return this.named(ref);
    return this.sums!.find(Object.entries(ref).map(([name, weight]) => ({ g: this.named(name), weight })));
  }
  private named(ref: string): Generation {
    const [name, n] = ref.includes("@")
      ? [ref.slice(0, ref.lastIndexOf("@")), Number(ref.slice(ref.lastIndexOf("@") + 1))]
      : [ref, null];
    const list = this.byName.get(name);
    const g = n === null ? list?.[list.length - 1] : list?.find((x) => x.number === n);
    if (!g) {
      const near = list ? null : didYouMean(name, [...this.byName.keys()]);
      throw new WeftError({
        code: "WEFT_NOT_FOUND",
        where: `adapter ${ref}`,
        expected: list
          ? `one of the generations that are kept, ${list.map((x) => x.ref).join(", ")}`
          : [...this.byName.keys()].join(", ") || "an adapter that was loaded or trained",
        found: list ? "one that is not, or never was" : "no such adapter",
        ...(near && { hint: near }),
      });
    }
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
    const g = this.generation(name, number, content, base, warnings);
    this.latest.delete(name);
    this.latest.set(name, number);
    for (const [old, n] of this.latest) {
      if (this.latest.size <= KEPT_NUMBERS) break;
      if (this.byName.has(old)) continue;
      this.forgotten = Math.max(this.forgotten, n);
      this.latest.delete(old);
    }
    const list = [...(this.byName.get(name) ?? []), g];
    for (let i = 0; i < list.length - 1 && list.length > KEPT_GENERATIONS; ) {
      if (list[i]!.pins === 0) this.drop(list.splice(i, 1)[0]!);
      else i++;
    }
    this.byName.set(name, list);
    return g;
  }
  private generation(
    name: string,
    number: number,
    { tensors, ...shape }: AdapterContent,
    base: string,
    warnings: readonly string[],
  ): Generation {
    const kept = this.contents.keep({ ...shape, tensors });
    return this.make({ name, number, ref: `${name}@${number}`, shape, parts: [], kept, base, warnings });
  }
  /** A name as it was in an engine that ended: its generations, and the last number that was given. */
  bringBack(name: string, last: number, generations: readonly Published[]): void {
    this.latest.set(name, last);
    const list = generations.map((p) => this.generation(name, p.number, p.content, p.base, p.warnings));
    if (list.length) this.byName.set(name, list);
  }
  /** A generation with what it is, and which numbers of its name are kept beside it. */
  published(ref: string): Published {
    const { name, number, content, base, warnings } = this.named(ref);
    return { name, number, content, base, warnings, kept: this.byName.get(name)!.map((g) => g.number) };
  }
  /** A reference whose generations stay those that it means now; as it is where it means none. */
  fixed(ref: AdapterRef): AdapterRef {
    const of = (name: string): string =>
      name.includes("@") ? name : (this.byName.get(name)?.at(-1)?.ref ?? name);
    if (typeof ref === "string") return of(ref);
    return Object.fromEntries(Object.entries(ref).map(([name, weight]) => [of(name), weight]));
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
    g.kept.drop();
  }
  /** Bytes of the host's memory that adapters' numbers take. */
  get bytes(): number {
    return this.contents.bytes;
  }
  /** What was put outside of memory is gone. */
  close(): void {
    this.contents.close();
  }
  /** Keep a generation for a request, and what it is a sum of; `unpin` when it has ended. */
  pin(g: Generation): void {
    g.pins++;
    this.pinned.set(g.id, g);
    for (const part of g.parts) this.pin(part.g);
  }
  unpin(g: Generation): void {
    g.pins--;
    for (const part of g.parts) this.unpin(part.g);
    if (g.pins) return;
    this.pinned.delete(g.id);
    if (!this.byName.get(g.name)?.includes(g) && !this.sums?.has(g)) this.drop(g);
  }
  /** Queue a request with the host: its ticket; NONE where there is no place. */
  submit(
    kind: number,
    length: number,
    limit: number,
    virtual: number,
    g: Generation | null,
    job: number,
    salt: number,
  ): number {
    const { exports } = this.host;
    const staged = g?.parts.flatMap((part) => [part.g.id, this.pages.count(part.g.shape)]) ?? [];
    this.host.parts().set(staged);
    const pages = g && !staged.length ? this.pages.count(g.shape) : 0;
    return exports.submit(kind, length, limit, virtual, g?.id ?? 0, pages, staged.length / 2, job, salt);
  }
  /** A job wants a slot for what it trains. */
  wantSlot(job: number, content: AdapterShape): void {
    this.host.exports.jobSlot(job, this.pages.count(content));
  }
  private get jobLane(): number {
    return this.device.lanes - 1;
  }
  /** The host gives an adapter that is asked for a slot. Where it cannot be read, its requests fail. */
  load(id: number, slot: number, lane: number): void {
    const g = this.pinned.get(id)!;
    if (!g.parts.length) {
      try {
        this.fill(slot, { ...g.shape, tensors: g.kept.layers() }, lane);
      } catch (e) {
        if (!(e instanceof WeftError)) throw e;
        g.failed = e;
      }
    } else
      this.point(
        slot,
        g.parts.map((part) => ({ ...part, ...part.g.shape, slot: this.host.exports.slotOf(part.g.id) })),
        lane,
      );
  }
  /** Put an adapter into a slot that has pages for it, behind what the lane has on its way. */
  fill(slot: number, content: LayeredContent, lane: number): void {
    this.restore(slot, content, lane);
    this.point(slot, [{ ...content, slot, weight: 1 }], lane);
  }
  /** A slot's rows are those of adapters in slots, times their weights. */
  private point(
    slot: number,
    parts: readonly (AdapterShape & { readonly slot: number; readonly weight: number })[],
    lane: number,
  ): void {
    const { manifest, device } = this;
    const masks = new Map<number, number>();
    for (let group = 0; group < parts[0]!.branches.length; group++) {
      const rows = parts.map(({ config, branches, weight, slot: at }) => ({
        ...{ method: config.method, states: branches[group]!, weight },
        pages: this.host.pages(at),
      }));
      const offset = SLOT_TABLE + slot * device.plan.slots.row;
      device.write({ space: "tables", group, offset, lane }, this.pages.row(rows));
      for (const { states } of rows)
        for (const { index: i } of manifest.branches)
          masks.set(i >> 5, (masks.get(i >> 5) ?? 0) | (states[i]!.rank ? 1 << (i & 31) : 0));
    }
    for (const [word, bits] of masks) this.host.exports.setMask(slot, word, bits);
  }
  /** Put content of the same shape into a slot. */
  restore(slot: number, content: LayeredContent, lane = this.jobLane): void {
    const pages = this.host.pages(slot);
    const { page } = this.device.plan.slots;
    let l = 0;
    for (const words of content.tensors) {
      const states = content.branches[l]!;
      const turned = this.reordered(l, states, words);
      this.pages.write(l, states, turned, pages.length).forEach((data, i) => {
        this.device.write({ space: "adapters", group: l, offset: pages[i]! * page, lane }, data);
      });
      l++;
    }
  }
  private reordered(
    layer: number,
    states: AdapterShape["branches"][number],
    words: Float32Array,
    back = false,
  ): Float32Array {
    const { manifest } = this;
    return manifest.selection ? slots!.reorderSlot(manifest, layer, states, words, back) : words;
  }
  /** Copy a training slot out. */
  async download(slot: number, like: AdapterShape): Promise<AdapterContent> {
    const pages = [...this.host.pages(slot)];
    const { page } = this.device.plan.slots;
    const read = await this.device.readAll(
      like.branches.flatMap((_, group) =>
        pages.map((p) => ({
          space: "adapters" as const,
          group,
          offset: p * page,
          words: page,
          lane: this.jobLane,
        })),
      ),
    );
    const tensors = like.branches.map((states, l) => {
      const own = read.slice(l * pages.length, (l + 1) * pages.length);
      return this.reordered(l, states, this.pages.read(l, states, own), true);
    });
    return { ...like, tensors };
  }
}
