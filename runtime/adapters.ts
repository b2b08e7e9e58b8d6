/**
 * Adapters and their generations. Content lives on the host; slots on the device are a cache. A generation is immutable: training writes its own
 * slot, `publish` copies it out, requests finish on the generation they were admitted with.
 */
import { type Manifest, type ParamEntry, type SiteEntry, WeftError } from "./bundle.ts";
import type { Device } from "./device.ts";
import type { Host } from "./host.ts";

/** Rank and scale of one site in one layer; rank 0 where the adapter has nothing. */
export interface SiteState {
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
}
export interface AdapterConfig {
  readonly rank: number;
  readonly alpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
  /** As given: module suffixes, a regular expression, or `all-linear`. */
  readonly targetModules: readonly string[] | string;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
}
/** All factors of all layers in slot layout: [layers][slotWords]. */
export interface AdapterContent {
  readonly config: AdapterConfig;
  /** [layer][site]. */
  readonly sites: readonly (readonly SiteState[])[];
  readonly factors: readonly Float32Array[];
}
export interface Generation {
  readonly name: string;
  readonly number: number;
  readonly content: AdapterContent;
  slot: number | null;
  pins: number;
  used: number;
}
/** Generations kept by name before the oldest unpinned one is dropped. */
const KEPT_GENERATIONS = 4;

/** Which sites of which layers a config names, as PEFT matches them. */
export function resolveSites(manifest: Manifest, config: AdapterConfig): SiteState[][] {
  const { targetModules } = config;
  const path = (l: number, s: SiteEntry): string => `model.layers.${l}.${s.module}`;
  let regex: RegExp | null = null;
  if (typeof targetModules === "string" && targetModules !== "all-linear") {
    try {
      regex = new RegExp(`^(?:${targetModules})$`);
    } catch (cause) {
      throw new WeftError({ code: "WEFT_ADAPTER", where: "target_modules", expected: "a regular expression", found: targetModules, cause });
    }
  }
  const matches = (p: string): boolean =>
    targetModules === "all-linear" || (regex ? regex.test(p) : (targetModules as readonly string[]).some((t) => p === t || p.endsWith(`.${t}`)));
  const pattern = (map: Readonly<Record<string, number>>, p: string, fallback: number): number => {
    for (const [key, v] of Object.entries(map)) if (new RegExp(`^(?:.*\\.)?(?:${key})$`).test(p)) return v;
    return fallback;
  };
  const found = Array.from({ length: manifest.model.layers }, (_, l) =>
    manifest.sites.map((s): SiteState => {
      const p = path(l, s);
      if (!matches(p)) return { rank: 0, alpha: 0, scale: 0 };
      const rank = pattern(config.rankPattern, p, config.rank);
      const alpha = pattern(config.alphaPattern, p, config.alpha);
      if (!Number.isInteger(rank) || rank < 1 || rank > manifest.capacities.rank)
        throw new WeftError({
          code: "WEFT_ADAPTER_MISMATCH",
          where: p,
          expected: `a rank from 1 to ${manifest.capacities.rank}, the largest this bundle's adapter class holds`,
          found: String(rank),
          hint: "compile the bundle with a larger rank",
        });
      return { rank, alpha, scale: alpha / (config.rslora ? Math.sqrt(rank) : rank) };
    }),
  );
  if (Array.isArray(targetModules))
    for (const t of targetModules) {
      if (!found.some((_, l) => manifest.sites.some((s) => path(l, s) === t || path(l, s).endsWith(`.${t}`))))
        throw new WeftError({ code: "WEFT_ADAPTER_MISMATCH", where: "target_modules", expected: manifest.sites.map((s) => s.module.split(".").pop()).join(", "), found: t });
    }
  if (!found.some((layer) => layer.some((s) => s.rank > 0)))
    throw new WeftError({ code: "WEFT_ADAPTER_MISMATCH", where: "target_modules", expected: "at least one linear layer", found: JSON.stringify(targetModules) });
  return found;
}
export const siteMask = (sites: readonly (readonly SiteState[])[]): number => sites.reduce((m, layer) => layer.reduce((k, s, i) => (s.rank ? k | (1 << i) : k), m), 0);
export const factorOf = (factors: readonly ParamEntry[], site: number, side: "a" | "b"): ParamEntry => factors.find((f) => f.site === site && f.name.endsWith(`.${side}`))!;

export class AdapterStore {
  private readonly byName = new Map<string, Generation[]>();
  private readonly latest = new Map<string, number>();
  /** What each slot holds: a generation, a job's training slot, or nothing. Slot 0 is the base. */
  private readonly slots: (Generation | "training" | null)[];
  private clock = 0;
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly host: Host,
  ) {
    this.slots = [null, ...Array<null>(manifest.capacities.slots).fill(null)];
  }

  list(): { name: string; generations: number[]; config: AdapterConfig }[] {
    return [...this.byName].map(([name, g]) => ({ name, generations: g.map((x) => x.number), config: g[g.length - 1]!.content.config }));
  }
  has(name: string): boolean {
    return this.byName.has(name);
  }
  /** `notes` → its latest generation; `notes@3` → that one. Throws WEFT_NOT_FOUND. */
  find(ref: string): Generation {
    const [name, n] = ref.includes("@") ? [ref.slice(0, ref.lastIndexOf("@")), Number(ref.slice(ref.lastIndexOf("@") + 1))] : [ref, null];
    const list = this.byName.get(name);
    const g = n === null ? list?.[list.length - 1] : list?.find((x) => x.number === n);
    if (!g)
      throw new WeftError({
        code: "WEFT_NOT_FOUND",
        where: `adapter ${ref}`,
        expected: [...this.byName.keys()].join(", ") || "an adapter that was loaded or trained",
        found: "no such adapter or generation",
      });
    return g;
  }
  /** A new immutable generation. Old unpinned ones beyond the kept number are dropped. */
  publish(name: string, content: AdapterContent): Generation {
    const number = (this.latest.get(name) ?? 0) + 1;
    this.latest.set(name, number);
    const g: Generation = { name, number, content, slot: null, pins: 0, used: 0 };
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
    if (!list) throw new WeftError({ code: "WEFT_NOT_FOUND", where: `adapter ${name}`, expected: "a loaded adapter", found: "none of that name" });
    if (list.some((g) => g.pins > 0))
      throw new WeftError({ code: "WEFT_CONFLICT", where: `adapter ${name}`, expected: "an adapter no request is using", found: "requests in flight", retryable: true });
    for (const g of list) this.drop(g);
    this.byName.delete(name);
  }
  private drop(g: Generation): void {
    if (g.slot !== null) this.slots[g.slot] = null;
    g.slot = null;
  }
  /** Pin a generation into a slot, loading it if need be; null when every slot is in use: the request waits. */
  acquire(g: Generation): number | null {
    if (g.slot === null) {
      const slot = this.freeSlot();
      if (slot === null) return null;
      this.upload(slot, g.content);
      this.slots[slot] = g;
      g.slot = slot;
    }
    g.pins++;
    g.used = ++this.clock;
    return g.slot;
  }
  release(g: Generation): void {
    g.pins--;
    if (g.pins === 0 && !this.byName.get(g.name)?.includes(g)) this.drop(g);
  }
  private freeSlot(): number | null {
    let best: number | null = null;
    for (let i = 1; i < this.slots.length; i++) {
      const s = this.slots[i]!;
      if (s === null) return i;
      if (s !== "training" && s.pins === 0 && (best === null || s.used < (this.slots[best] as Generation).used)) best = i;
    }
    if (best !== null) this.drop(this.slots[best] as Generation);
    return best;
  }
  /** A slot of a job's own, with initial content; null when none is free. */
  acquireTraining(content: AdapterContent): number | null {
    const slot = this.freeSlot();
    if (slot === null) return null;
    this.slots[slot] = "training";
    this.upload(slot, content);
    return slot;
  }
  releaseTraining(slot: number): void {
    this.slots[slot] = null;
  }
  private upload(slot: number, content: AdapterContent): void {
    const { plan } = this.device;
    const sites = this.manifest.sites.length;
    content.factors.forEach((data, l) => {
      this.device.write({ cls: "adapters", group: l, offset: slot * plan.slotWords }, data);
      const table = new Uint32Array(sites * 2);
      const scales = new Float32Array(table.buffer);
      content.sites[l]!.forEach((s, i) => {
        table[i * 2] = s.rank;
        scales[i * 2 + 1] = s.scale;
      });
      this.device.write({ cls: "tables", group: l, offset: 64 + slot * sites * 2 }, table);
    });
    this.host.exports.setSites(slot, siteMask(content.sites));
  }
  /** Copy a training slot out. */
  async download(slot: number, like: AdapterContent): Promise<AdapterContent> {
    const { plan } = this.device;
    const factors: Float32Array[] = [];
    for (let l = 0; l < this.manifest.model.layers; l++) factors.push(await this.device.read({ cls: "adapters", group: l, offset: slot * plan.slotWords, words: plan.slotWords }));
    return { ...like, factors };
  }
  slotsInUse(): number {
    return this.slots.filter((s) => s !== null && (s === "training" || s.pins > 0)).length;
  }
}
