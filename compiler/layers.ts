/** What model files share: named parameters, adapter sites, attention. A site declares itself while the model is being built. */
import { add, attend, type Domain, type Format, input, kvWrite, linear, rmsNorm, rope, sameValue, type Type, type Value, valueKey } from "../ops/index.ts";
import type { BranchTensor } from "../runtime/bundle.ts";
import type { AdapterMethod } from "./adapters/adapter.ts";

export interface ParamSpec {
  /** Name inside its region: `self_attn.q_proj.weight`. */
  readonly name: string;
  readonly kind: "weight" | "vector";
  readonly n: number;
  readonly k: number;
}
/**
 * Channels that several matrices share, so that one order serves all (S2FT §3.1): the rows of gate and up and the columns of down; the rows of v
 * and the columns of o. `unit` channels belong together (a head, or 1); `shared`: several query heads read one key head.
 */
export interface Coupling {
  readonly group: "ffn" | "heads";
  readonly axis: "in" | "out";
  readonly unit: number;
  readonly shared: boolean;
}
export interface SiteSpec {
  readonly index: number;
  /** Module path inside the layer: `self_attn.q_proj`. */
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly coupling: Coupling | null;
}
/** One adapter method at one site. */
export interface BranchSpec {
  readonly index: number;
  readonly method: AdapterMethod;
  readonly site: SiteSpec;
  /** Most rows of its tensors. */
  readonly capacity: number;
  readonly tensors: readonly BranchTensor[];
}
export const tensorName = (b: BranchSpec, tensor: string): string => `${b.site.module}.${b.method.name}.${tensor}`;

/** Builds one region on one row domain; two builds of the same region make the same nodes in the same order. */
export class RegionBuilder {
  readonly params: ParamSpec[] = [];
  readonly sites: SiteSpec[] = [];
  /** What enters each site's matrix. */
  readonly entries = new Map<string, Value>();
  /** What a branch made of a value: for rows whose slot lacks the branch the two are equal, bit for bit. */
  readonly wrapped = new Map<string, { readonly before: Value; readonly method: string }>();
  constructor(
    readonly region: string,
    readonly domain: Domain,
    readonly format: Format,
    private readonly branches: readonly BranchSpec[],
  ) {}

  vector(name: string, n: number): Value {
    if (!this.params.some((p) => p.name === name)) this.params.push({ name, kind: "vector", n, k: 1 });
    return input(this.region, name, { kind: "vector", n });
  }
  weight(name: string, n: number, k: number): Value {
    if (!this.params.some((p) => p.name === name)) this.params.push({ name, kind: "weight", n, k });
    return input(`${this.region}:${this.format}`, name, { kind: "weight", n, k, format: this.format });
  }
  norm(x: Value, name: string, eps: number): Value {
    return rmsNorm(x, this.vector(name, (x.type as Type & { kind: "rows" }).cols), eps);
  }
  /** A linear layer and its adapter site: y = x·Wᵀ (+ bias), between the branches that change its input and those that change its output. */
  linear(x: Value, module: string, outFeatures: number, bias: boolean, coupling: Coupling | null = null): Value {
    const inFeatures = (x.type as Type & { kind: "rows" }).cols;
    this.sites.push({ index: this.sites.length, module, inFeatures, outFeatures, coupling });
    const here = this.branches.filter((b) => b.site.module === module);
    const through = (b: BranchSpec, before: Value, change: (c: Parameters<NonNullable<AdapterMethod["input"]>>[1]) => Value): Value => {
      const tensor = (name: string): Value => {
        const t = b.tensors.find((s) => s.name === name)!;
        return input(this.region, tensorName(b, name), { kind: "factor", rows: t.rows === "rank" ? b.capacity : 1, cols: t.cols, branch: b.index });
      };
      const after = change({ branch: b.index, site: b.site, tensor, bias: offset });
      if (!sameValue(after, before)) this.wrapped.set(valueKey(after), { before, method: b.method.name });
      return after;
    };
    const weight = this.weight(`${module}.weight`, outFeatures, inFeatures);
    const offset = bias ? this.vector(`${module}.bias`, outFeatures) : null;
    let entry = x;
    for (const b of here) if (b.method.input) entry = through(b, entry, (c) => b.method.input!(entry, c));
    this.entries.set(module, entry);
    let y = linear(entry, weight, module);
    if (offset) y = add(y, offset);
    for (const b of here) if (b.method.output) y = through(b, y, (c) => b.method.output!(x, y, c));
    return y;
  }
  /** Causal attention of q over the paged cache after appending k and v. */
  attention(q: Value, k: Value, v: Value, shape: { heads: number; kvHeads: number; headDim: number; positions: number }): Value {
    const table = input(this.region, "rotary", { kind: "table", rows: shape.positions, cols: shape.headDim });
    const kv = input(this.region, "kv", { kind: "kv", heads: shape.kvHeads, headDim: shape.headDim });
    const written = kvWrite(kv, rope(k, table, shape.headDim), v);
    return attend(rope(q, table, shape.headDim), written, shape.heads).o;
  }
}
