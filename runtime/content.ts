/**
 * What an adapter is on the host: its configuration, which branches it has in each layer, and its tensors in
 * slot layout.
 */
import {
  type BranchEntry,
  type BranchTensor,
  type Manifest,
  type ParamEntry,
  type SiteEntry,
  WeftError,
} from "./bundle.ts";
import { channelOrder } from "./order.ts";
import { pattern, steps } from "./pattern.ts";
import { mix, shuffled } from "./random.ts";
import { show } from "./schema.ts";

/** One branch in one layer: rows in use and scale; rank 0 where the adapter has nothing. */
export interface BranchState {
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
}
/**
 * How S2FT chooses channels (paper §3.2): at random, or by a score of each unit, the largest or the smallest.
 * ‖W‖₂ of its rows and columns, ‖A‖₂ of its activations over the first thousand tokens of the data (or more,
 * by whole rows), their product, or the norm of the loss's gradient: √Σ ‖gradient of a token's part‖². Single
 * entries of sparse adapters are chosen by their weight, or by what a full fine-tuning made of them
 * (`difference`).
 */
export const selectors = [
  "random",
  "weight-large",
  "weight-small",
  "activation-large",
  "activation-small",
  "product-large",
  "product-small",
  "gradient-large",
  "gradient-small",
  "difference",
] as const;
export type Selector = (typeof selectors)[number];
export interface AdapterConfig {
  readonly method: string;
  /** Rows of its tensors (LoRA's rank, S2FT's channels); null: all that the bundle has room for. */
  readonly rank: number | null;
  readonly alpha: number;
  readonly rslora: boolean;
  readonly dropout: number;
  /** As given: module suffixes, a regular expression, or `all-linear`. */
  readonly targetModules: readonly string[] | string;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly selector: Selector;
}
export const defaultConfig = (manifest: Manifest, method: string): AdapterConfig => ({
  method,
  rank: manifest.methods[method]?.rank ?? null,
  alpha: 16,
  rslora: false,
  dropout: 0,
  targetModules: manifest.methods[method]?.targets ?? "all-linear",
  rankPattern: {},
  alphaPattern: {},
  selector: "random",
});
export interface AdapterContent {
  readonly config: AdapterConfig;
  /** [layer][branch of the bundle]. */
  readonly branches: readonly (readonly BranchState[])[];
  /** [layer]: one slot's words. */
  readonly tensors: readonly Float32Array[];
  /**
   * Base tensors that the adapter replaces as a whole (PEFT's `modules_to_save`), by checkpoint name: it is
   * served merged, on a base of its own.
   */
  readonly replaces?: ReadonlyMap<string, Float32Array>;
}
/** Tokens of its own that an adapter puts before every sequence. */
export const virtualTokens = (manifest: Manifest, content: AdapterContent | null): number =>
  content && manifest.methods[content.config.method]!.virtual
    ? Math.max(...content.branches.flat().map((s) => s.rank))
    : 0;
const absent: BranchState = { rank: 0, alpha: 0, scale: 0 };

/** A site's module as checkpoints name it. */
export const modulePath = (manifest: Manifest, layer: number, site: SiteEntry): string =>
  manifest.checkpoint.modules.replace("{l}", String(layer)) + site.module;
export const siteOf = (manifest: Manifest, b: BranchEntry): SiteEntry => manifest.sites[b.site]!;
/** Where a branch's tensor lies in a slot. */
export const placeOf = (tensors: readonly ParamEntry[], branch: number, name: string): ParamEntry =>
  tensors.find((f) => f.branch === branch && f.name.endsWith(`.${name}`))!;
export const rowsInUse = (t: BranchTensor, state: BranchState): number =>
  t.rows === "rank" ? state.rank : 1;

/**
 * Which branches of which layers a config names, as PEFT matches modules. `rankOf` overrides the rank where a
 * file decides it. Throws WEFT_ADAPTER_MISMATCH for a module or rank that the bundle has no room for.
 */
export function resolveBranches(
  manifest: Manifest,
  config: AdapterConfig,
  rankOf?: (path: string, b: BranchEntry) => number | null,
): BranchState[][] {
  const { targetModules } = config;
  const method = Object.hasOwn(manifest.methods, config.method) ? manifest.methods[config.method] : undefined;
  if (!method)
    throw new WeftError({
      code: "WEFT_ADAPTER_MISMATCH",
      where: "method",
      expected: Object.keys(manifest.methods).join(", ") || "a bundle compiled for adapters",
      found: config.method,
      hint: `compile with --methods ${config.method}`,
    });
  const budget = steps();
  const regex =
    typeof targetModules === "string" && targetModules !== "all-linear"
      ? pattern(targetModules, false, { code: "WEFT_ADAPTER", where: "target_modules" })
      : null;
  const matches = (p: string): boolean =>
    targetModules === "all-linear" ||
    (regex
      ? regex(p, budget)
      : (targetModules as readonly string[]).some((t) => p === t || p.endsWith(`.${t}`)));
  /** A number by module: that of the first key which matches, as PEFT has it. */
  const byModule = (
    where: string,
    map: Readonly<Record<string, number>>,
  ): ((p: string) => number | undefined) => {
    const keys = Object.entries(map).map(
      ([key, v]) =>
        [pattern(key, true, { code: "WEFT_ADAPTER", where: `${where}[${show(key)}]` }), v] as const,
    );
    return (p) => keys.find(([key]) => key(p, budget))?.[1];
  };
  const rankAt = byModule("rank_pattern", config.rankPattern);
  const alphaAt = byModule("alpha_pattern", config.alphaPattern);
  const ours = manifest.branches.filter((b) => b.method === config.method);
  const paths = Array.from({ length: manifest.model.layers }, (_, l) =>
    ours.map((b) => modulePath(manifest, l, siteOf(manifest, b))),
  ).flat();
  if (Array.isArray(targetModules))
    for (const t of targetModules)
      if (!paths.some((p) => p === t || p.endsWith(`.${t}`)))
        throw new WeftError({
          code: "WEFT_ADAPTER_MISMATCH",
          where: "target_modules",
          expected: ours.map((b) => siteOf(manifest, b).module.split(".").pop()).join(", "),
          found: t,
        });
  const found = Array.from({ length: manifest.model.layers }, (_, l) =>
    manifest.branches.map((b): BranchState => {
      if (b.method !== config.method || (l > 0 && method.layers === "first")) return absent;
      const site = siteOf(manifest, b);
      const p = modulePath(manifest, l, site);
      if (!matches(p)) return absent;
      const asked = rankAt(p) ?? config.rank;
      const own =
        asked === null
          ? b.capacity
          : method.counts === "entries"
            ? Math.min(asked * (site.inFeatures + site.outFeatures), site.inFeatures * site.outFeatures)
            : asked;
      const rank = rankOf ? rankOf(p, b) : own;
      if (rank === null) return absent;
      const alpha = alphaAt(p) ?? config.alpha;
      if (!Number.isInteger(rank) || rank < 1 || rank > b.capacity)
        throw new WeftError({
          code: "WEFT_ADAPTER_MISMATCH",
          where: p,
          expected: `a rank from 1 to ${b.capacity}, the largest this bundle's adapter class holds`,
          found: String(rank),
          hint: "compile the bundle with a larger rank",
        });
      const scale = method.scale === "one" ? 1 : alpha / (config.rslora ? Math.sqrt(rank) : rank);
      if (!Number.isFinite(Math.fround(scale)))
        throw new WeftError({
          code: "WEFT_ADAPTER",
          where: p,
          expected: "a scale, alpha over rank, that is finite in f32",
          found: `${alpha} over ${rank}`,
        });
      return { rank, alpha, scale };
    }),
  );
  if (!found.some((layer) => layer.some((s) => s.rank > 0)))
    throw new WeftError({
      code: "WEFT_ADAPTER_MISMATCH",
      where: "target_modules",
      expected: "at least one linear layer",
      found: JSON.stringify(targetModules),
    });
  return found;
}
/** Numbers that training moves. */
export const trainableCount = (manifest: Manifest, branches: readonly (readonly BranchState[])[]): number =>
  branches.reduce(
    (n, layer) =>
      n +
      layer.reduce(
        (m, s, i) =>
          m +
          (s.rank
            ? manifest.branches[i]!.tensors.reduce(
                (k, t) => k + (t.trained ? rowsInUse(t, s) * t.cols : 0),
                0,
              )
            : 0),
        0,
      ),
    0,
  );

/**
 * Write a selection into a slot: the chosen channels, then each channel's place among them plus one (0: not
 * chosen), as exact floats.
 */
export function writeSelection(
  slot: Float32Array,
  at: ParamEntry,
  capacity: number,
  channels: readonly number[],
): void {
  slot.fill(0, at.offset, at.offset + at.k);
  channels.forEach((c, r) => {
    slot[at.offset + r] = c;
    slot[at.offset + capacity + c] = r + 1;
  });
}
export const readSelection = (slot: Float32Array, at: ParamEntry, rank: number): number[] =>
  Array.from(slot.subarray(at.offset, at.offset + rank));

/**
 * Write chosen entries (flat, row-major, ascending) of a matrix [outs, ins] into a slot, as exact floats:
 * their rows, their columns, where each row begins, their order by columns, where each column begins
 * (`sparseIndex` of the compiler's ops/sparse.ts).
 */
export function writeEntries(
  slot: Float32Array,
  at: ParamEntry,
  capacity: number,
  outs: number,
  ins: number,
  entries: readonly number[],
): void {
  const index = slot.subarray(at.offset, at.offset + at.k).fill(0);
  const starts = (from: number, n: number, of: (e: number) => number): void => {
    for (const e of entries) index[from + of(e) + 1] = index[from + of(e) + 1]! + 1;
    for (let i = 0; i < n; i++) index[from + i + 1] = index[from + i + 1]! + index[from + i]!;
  };
  const [rowStart, byColumn] = [2 * capacity, 2 * capacity + outs + 1];
  entries.forEach((e, k) => {
    index[k] = Math.floor(e / ins);
    index[capacity + k] = e % ins;
  });
  starts(rowStart, outs, (e) => Math.floor(e / ins));
  [...entries.keys()]
    .sort((a, b) => (entries[a]! % ins) - (entries[b]! % ins) || a - b)
    .forEach((k, i) => {
      index[byColumn + i] = k;
    });
  starts(byColumn + capacity, ins, (e) => e % ins);
}
export const readEntries = (
  slot: Float32Array,
  at: ParamEntry,
  capacity: number,
  ins: number,
  rank: number,
): number[] =>
  Array.from({ length: rank }, (_, k) => slot[at.offset + k]! * ins + slot[at.offset + capacity + k]!);

/** What a fresh adapter takes from the model it begins on. */
export interface ModelView {
  /**
   * Σ of squares behind a score, of each channel of a site in a layer: of its weights, activations or
   * gradients; `row`: of each row of its matrix.
   */
  readonly scores: (
    what: "weight" | "activation" | "gradient" | "row",
    layer: number,
    site: SiteEntry,
  ) => Promise<Float64Array>;
  /** Channels of a site's coupled group that other adapters have, and this one may not. */
  readonly taken: (layer: number, site: SiteEntry) => ReadonlySet<number>;
  /** A site's matrix [out, in]. */
  readonly matrix: (layer: number, site: SiteEntry) => Promise<Float32Array>;
  /** A site's bias [out]. */
  readonly bias: (layer: number, site: SiteEntry) => Promise<Float32Array>;
  /** The matrix of a model that was fine-tuned in full from this one; null where none was given. */
  readonly tuned: ((layer: number, site: SiteEntry) => Promise<Float32Array>) | null;
  /** A token's embedding [hidden]. */
  readonly embedding: (id: number) => Promise<Float32Array>;
}

/**
 * Channels of a site: the first of one ranking that all matrices of its coupled group share, so that an
 * adapter's rows of gate and up and columns of down are the same channels (under grouped queries v, which has
 * fewer heads than o, has a ranking of its own). Ascending.
 */
async function chooseChannels(
  site: SiteEntry,
  layer: number,
  rank: number,
  selector: Selector,
  seed: number,
  model: ModelView,
): Promise<number[]> {
  const { group, axis, unit } = site.coupling!;
  const channels = axis === "in" ? site.inFeatures : site.outFeatures;
  // A count that is no whole number of heads chooses single channels.
  const size = rank % unit ? 1 : unit;
  const units = channels / size;
  let order: number[];
  if (selector === "difference")
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selector",
      expected: "a selector of channels",
      found: selector,
    });
  if (selector === "random") order = shuffled(units, mix(mix(seed, layer), group === "ffn" ? 0 : 1));
  else {
    const [what, end] = selector.split("-") as [
      "weight" | "activation" | "product" | "gradient",
      "large" | "small",
    ];
    const norms = async (kind: "weight" | "activation" | "gradient"): Promise<Float64Array> => {
      const squares = await model.scores(kind, layer, site);
      return Float64Array.from({ length: units }, (_, u) =>
        Math.sqrt(squares.subarray(u * size, (u + 1) * size).reduce((a, b) => a + b, 0)),
      );
    };
    let score = await norms(what === "product" ? "weight" : what);
    if (what === "product") {
      const a = await norms("activation");
      score = score.map((w, u) => w * a[u]!);
    }
    const sign = end === "large" ? -1 : 1;
    order = Array.from({ length: units }, (_, i) => i).sort(
      (a, b) => sign * (score[a]! - score[b]!) || a - b,
    );
  }
  const taken = model.taken(layer, site);
  const free = order.filter(
    (u) => !Array.from({ length: size }, (_, i) => u * size + i).some((c) => taken.has(c)),
  );
  if (free.length < rank / size)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "disjointFrom",
      expected: `${rank} channels of ${site.module} that no other adapter has`,
      found: String(free.length * size),
    });
  return free
    .slice(0, rank / size)
    .flatMap((u) => Array.from({ length: size }, (_, i) => u * size + i))
    .sort((a, b) => a - b);
}

/**
 * `rank` entries of a site's matrix, flat and ascending: at random, or those whose weight, or change in a
 * full fine-tuning, is largest or smallest.
 */
async function chooseEntries(
  site: SiteEntry,
  layer: number,
  rank: number,
  selector: Selector,
  seed: number,
  model: ModelView,
): Promise<number[]> {
  const all = site.inFeatures * site.outFeatures;
  let order: Uint32Array | readonly number[];
  if (selector === "random") order = shuffled(all, mix(mix(seed, layer), site.index));
  else {
    const score = (await model.matrix(layer, site)).slice();
    if (selector === "difference") {
      if (!model.tuned)
        throw new WeftError({
          code: "WEFT_OPTION",
          where: "selector",
          expected: "a fine-tuned model to compare with",
          found: "none",
          hint: "give `tuned`, a model folder",
        });
      const moved = await model.tuned(layer, site);
      for (let i = 0; i < all; i++) score[i] = moved[i]! - score[i]!;
    } else if (!selector.startsWith("weight-"))
      throw new WeftError({
        code: "WEFT_OPTION",
        where: "selector",
        expected: "random, weight-large, weight-small or difference for single entries",
        found: selector,
      });
    const sign = selector === "weight-small" ? 1 : -1;
    order = Uint32Array.from(score, (_, i) => i).sort(
      (a, b) => sign * (Math.abs(score[a]!) - Math.abs(score[b]!)) || a - b,
    );
  }
  return [...order.slice(0, rank)].sort((a, b) => a - b);
}

/** A fresh adapter, which starts as the base: tensors as their method says, from the seed. */
export async function initialContent(
  manifest: Manifest,
  places: readonly ParamEntry[],
  slotWords: number,
  config: AdapterConfig,
  seed: number,
  model: ModelView,
): Promise<AdapterContent> {
  if (!selectors.includes(config.selector))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "selector",
      expected: selectors.join(", "),
      found: String(config.selector),
    });
  const branches = resolveBranches(manifest, config);
  const tensors: Float32Array[] = [];
  for (const [l, layer] of branches.entries()) {
    const data = new Float32Array(slotWords);
    for (const [i, state] of layer.entries()) {
      if (!state.rank) continue;
      const b = manifest.branches[i]!;
      const site = siteOf(manifest, b);
      for (const t of b.tensors) {
        const at = placeOf(places, i, t.name);
        const words = rowsInUse(t, state) * t.cols;
        if (t.init === "ones") data.fill(1, at.offset, at.offset + words);
        if (t.init === "uniform")
          for (let x = 0; x < words; x++)
            data[at.offset + x] =
              ((mix(mix(seed, l * 64 + site.index), x) >>> 8) / 8388608 - 1) / Math.sqrt(t.cols);
        if (t.init === "norm") data.set((await model.scores("row", l, site)).map(Math.sqrt), at.offset);
        if (t.init === "tokens")
          for (let r = 0; r < state.rank; r++)
            data.set(
              await model.embedding(mix(mix(seed, 8), r) % manifest.model.vocab),
              at.offset + r * t.cols,
            );
        if (t.init === "entries")
          writeEntries(
            data,
            at,
            b.capacity,
            site.outFeatures,
            site.inFeatures,
            await chooseEntries(site, l, state.rank, config.selector, mix(seed, 9), model),
          );
        if (t.init === "bias") data.set(await model.bias(l, site), at.offset);
        if (t.init === "leading")
          writeSelection(
            data,
            at,
            b.capacity,
            channelOrder(manifest, l, site.axes[site.coupling!.axis])!.slice(0, state.rank),
          );
        if (t.init === "selection")
          writeSelection(
            data,
            at,
            b.capacity,
            await chooseChannels(site, l, state.rank, config.selector, mix(seed, 7), model),
          );
      }
    }
    tensors.push(data);
  }
  return { config, branches, tensors };
}
