/**
 * What model files share: named parameters, adapter sites, attention. A site declares itself while the model
 * is being built.
 */
import {
  type Attending,
  add,
  attend,
  type Domain,
  experts,
  type Graph,
  headNorm,
  kvWrite,
  layerNorm,
  linear,
  rmsNorm,
  rope,
  sameValue,
  type Type,
  type Value,
  valueKey,
} from "../ops/index.ts";
import type { BranchTensor, ChannelAxis, Format, KvName, RopeEntry } from "../runtime/bundle.ts";
import type { AdapterMethod, BranchContext } from "./adapters/adapter.ts";
import { finest } from "./formats.ts";

export interface ParamSpec {
  /** Name inside its region: `self_attn.q_proj.weight`. */
  readonly name: string;
  readonly kind: "weight" | "vector";
  readonly n: number;
  readonly k: number;
  /** How it is stored: of a vector, f32. */
  readonly format: Format;
  /** Of a layer: the kinds of layers that have it, where not all do. */
  readonly kinds?: readonly number[];
}
/** How each matrix of a region is stored, by its name there. */
export type FormatOf = (region: string, name: string) => Format;
/** How what a region reads is stored. */
export interface Stored {
  readonly format: FormatOf;
  /** Numbers of the cache. */
  readonly kv: KvName;
}
/**
 * Channels that several matrices share, so that one order serves all (S2FT §3.1): the rows of gate and up and
 * the columns of down; the rows of v and the columns of o. `unit` channels belong together (a head, or 1);
 * `shared`: several query heads read one key head. Of a matrix that is several, one after another, they are
 * slices of the axis: `at` is where each begins, `channels` how many each has. Each of the experts has its
 * own.
 */
export interface Coupling {
  readonly group: "ffn" | "heads" | "experts";
  readonly axis: "in" | "out";
  readonly unit: number;
  readonly shared: boolean;
  readonly channels: number;
  readonly at: readonly number[];
}
export interface SiteSpec {
  readonly index: number;
  /**
   * A linear layer; those of experts, of which a row has some; what enters the layer; the keys and values
   * that enter the cache.
   */
  readonly kind: SiteKind;
  /** Module path inside the layer: `self_attn.q_proj`; of experts with `{e}` for the expert. */
  readonly module: string;
  /** How many there are. */
  readonly experts?: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly bias: boolean;
  readonly axes: { readonly in: ChannelAxis | null; readonly out: ChannelAxis | null };
  readonly coupling: Coupling | null;
  /** The kinds of layers that have it, where not all do. */
  readonly kinds?: readonly number[];
}
/** What a linear layer's channels are: the axes they run over, and who shares them. */
export interface SiteRole {
  readonly in?: ChannelAxis;
  readonly out?: ChannelAxis;
  /** Without slices it is of all channels of its axis. */
  readonly coupling?: Omit<Coupling, "channels" | "at"> & Partial<Pick<Coupling, "channels" | "at">>;
}
export type SiteKind = "linear" | "experts" | "entry" | "cache";
/** One adapter method at one site. */
export interface BranchSpec {
  readonly index: number;
  readonly method: AdapterMethod;
  readonly site: SiteSpec;
  /** Most rows of its tensors. */
  readonly capacity: number;
  readonly tensors: readonly BranchTensor[];
}
export const tensorName = (b: BranchSpec, tensor: string): string =>
  `${b.site.module}.${b.method.name}.${tensor}`;

/**
 * Builds one region on one row domain; two builds of the same region make the same nodes in the same order.
 */
export class RegionBuilder {
  readonly params: ParamSpec[] = [];
  readonly sites: SiteSpec[] = [];
  /** What enters and what leaves each site's matrix. */
  readonly entries = new Map<string, Value>();
  readonly exits = new Map<string, Value>();
  /** Where the matrix is one of each expert: those that each row chose. */
  readonly choices = new Map<string, Value>();
  /** What a branch made of a value: for rows whose slot lacks the branch the two are equal, bit for bit. */
  readonly wrapped = new Map<string, { readonly before: Value; readonly method: string }>();
  constructor(
    private readonly graph: Graph,
    readonly region: string,
    readonly domain: Domain,
    private readonly stored: Stored,
    private readonly branches: readonly BranchSpec[],
  ) {}

  vector(name: string, n: number): Value {
    this.declare({ name, kind: "vector", n, k: 1, format: "f32" });
    return this.graph.input(this.region, name, { kind: "vector", n });
  }
  weight(name: string, n: number, k: number): Value {
    const format = this.stored.format(this.region, name);
    this.declare({ name, kind: "weight", n, k, format });
    return this.graph.input(`${this.region}:${format}`, name, { kind: "weight", n, k, format });
  }
  /**
   * Matrices [n, k] of `count` experts, each a parameter: `name` has `{e}` for the expert. They are stored
   * alike, as what is finest of them.
   */
  private experts(name: string, count: number, n: number, k: number): Value {
    const names = Array.from({ length: count }, (_, e) => name.replace("{e}", String(e)));
    const format = names.map((one) => this.stored.format(this.region, one)).reduce(finest);
    for (const one of names) this.declare({ name: one, kind: "weight", n, k, format });
    return this.graph.input(`${this.region}:${format}`, name, { kind: "experts", count, n, k, format });
  }
  private declare(p: ParamSpec): void {
    if (!this.params.some(({ name }) => name === p.name)) this.params.push(p);
  }
  /** RMSNorm; `onePlus`: its gain is 1 + what the checkpoint has. */
  norm(x: Value, name: string, eps: number, onePlus = false): Value {
    return rmsNorm(x, this.vector(name, (x.type as Type & { kind: "rows" }).cols), eps, onePlus);
  }
  /** LayerNorm, with its gain and bias. */
  layerNorm(x: Value, module: string, eps: number): Value {
    const { cols } = x.type as Type & { kind: "rows" };
    return layerNorm(x, this.vector(`${module}.weight`, cols), this.vector(`${module}.bias`, cols), eps);
  }
  /** RMSNorm of every head of x on its own; all have one gain [headDim], or 1 + gain. */
  headNorm(x: Value, name: string, headDim: number, eps: number, onePlus = false): Value {
    return headNorm(x, this.vector(name, headDim), eps, onePlus);
  }
  /** Declare an adapter site; its branches in this build, each able to change a value. */
  private site(
    kind: SiteKind,
    module: string,
    inFeatures: number,
    outFeatures: number,
    role: SiteRole,
    bias: Value | null = null,
    mixture?: { readonly count: number; readonly chosen: Value },
  ) {
    const { coupling } = role;
    const channels = coupling?.axis === "in" ? inFeatures : outFeatures;
    this.sites.push({
      index: this.sites.length,
      kind,
      module,
      ...(mixture && { experts: mixture.count }),
      inFeatures,
      outFeatures,
      bias: bias !== null,
      axes: { in: role.in ?? null, out: role.out ?? null },
      coupling: coupling ? { channels, at: [0], ...coupling } : null,
    });
    return this.branches
      .filter((b) => b.site.module === module)
      .map((b) => ({
        method: b.method,
        through: (before: Value, change: (c: BranchContext) => Value): Value => {
          const tensor = (name: string): Value => {
            const t = b.tensors.find((s) => s.name === name)!;
            return this.graph.input(this.region, tensorName(b, name), {
              kind: "factor",
              rows: t.rows === "rank" ? b.capacity : 1,
              cols: t.cols,
              branch: b.index,
            });
          };
          const after = change({
            ...{ branch: b.index, site: b.site, tensor, bias },
            chosen: mixture?.chosen ?? null,
          });
          if (!sameValue(after, before)) this.wrapped.set(valueKey(after), { before, method: b.method.name });
          return after;
        },
      }));
  }
  /** What enters the layer, as the branches there leave it. */
  entry(h: Value): Value {
    const { cols } = h.type as Type & { kind: "rows" };
    let x = h;
    for (const b of this.site("entry", "hidden", cols, cols, {}))
      x = b.through(x, (c) => b.method.input!(x, c));
    return x;
  }
  /**
   * A linear layer and its adapter site: y = x·Wᵀ (+ bias), between the branches that change its input and
   * those that change its output.
   */
  linear(x: Value, module: string, outFeatures: number, bias: boolean, role: SiteRole = {}): Value {
    const inFeatures = (x.type as Type & { kind: "rows" }).cols;
    const weight = this.weight(`${module}.weight`, outFeatures, inFeatures);
    const offset = bias ? this.vector(`${module}.bias`, outFeatures) : null;
    const here = this.site("linear", module, inFeatures, outFeatures, role, offset);
    let entry = x;
    for (const b of here) if (b.method.input) entry = b.through(entry, (c) => b.method.input!(entry, c));
    this.entries.set(module, entry);
    let y = linear(entry, weight, module);
    this.exits.set(module, y);
    if (offset) y = add(y, offset);
    for (const b of here) if (b.method.output) y = b.through(y, (c) => b.method.output!(x, y, c));
    return y;
  }
  /**
   * Linear layers of the experts that each row chose (`chosen` [rows, k]): [rows, k · outFeatures], from x
   * that all read, or that has a part for each. `module` has `{e}` for the expert, of `count`.
   */
  mixture(
    x: Value,
    chosen: Value,
    module: string,
    count: number,
    inFeatures: number,
    outFeatures: number,
    role: SiteRole = {},
  ): Value {
    const w = this.experts(`${module}.weight`, count, outFeatures, inFeatures);
    let y = experts(x, chosen, w, module.replace(".{e}", ""));
    this.entries.set(module, x);
    this.exits.set(module, y);
    this.choices.set(module, chosen);
    for (const b of this.site("experts", module, inFeatures, outFeatures, role, null, { count, chosen }))
      y = b.through(y, (c) => b.method.output!(x, y, c));
    return y;
  }
  /** Causal attention of q over the paged cache after appending k and v; `module` has the cache. */
  attention(
    module: string,
    q: Value,
    k: Value,
    v: Value,
    shape: { heads: number; kvHeads: number; headDim: number; ropes: readonly RopeEntry[] },
    positions: number,
    how: Attending = {},
  ): Value {
    const { headDim, ropes } = shape;
    const turn = (x: Value): Value => {
      if (!ropes.length) return x;
      const table = this.graph.input(this.region, "rotary", {
        kind: "table",
        rows: ropes.length * positions,
        cols: 2 * ropes[0]!.inverseFrequencies.length,
      });
      return rope(x, table, headDim, ropes.length > 1 ? positions : undefined);
    };
    const kv = this.graph.input(this.region, "kv", {
      kind: "kv",
      heads: shape.kvHeads,
      headDim: shape.headDim,
      format: this.stored.kv,
    });
    const width = shape.kvHeads * shape.headDim;
    let keys = turn(k);
    let values = v;
    for (const b of this.site("cache", module, width, width, { in: "kvHeads", out: "kvHeads" })) {
      keys = b.through(keys, (c) => b.method.cache!("k", keys, c));
      values = b.through(values, (c) => b.method.cache!("v", values, c));
    }
    const written = kvWrite(kv, keys, values);
    return attend(turn(q), written, shape.heads, how).o;
  }
}
