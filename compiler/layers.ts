/** What model files share: named parameters, adapter sites, attention. A site declares itself while the model is being built. */
import { add, attend, type Domain, type Format, input, kvWrite, linear, rmsNorm, rope, type Type, type Value } from "../ops/index.ts";
import type { AdapterMethod } from "./adapters/adapter.ts";

export interface ParamSpec {
  /** Name inside its region: `self_attn.q_proj.weight`. */
  readonly name: string;
  readonly kind: "weight" | "vector";
  readonly n: number;
  readonly k: number;
}
export interface SiteSpec {
  readonly index: number;
  /** Module path inside the layer: `self_attn.q_proj`. */
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Builds one region on one row domain; two builds of the same region make the same nodes in the same order. */
export class RegionBuilder {
  readonly params: ParamSpec[] = [];
  readonly sites: SiteSpec[] = [];
  constructor(
    readonly region: string,
    readonly domain: Domain,
    readonly format: Format,
    readonly rank: number,
    private readonly methods: readonly AdapterMethod[],
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
  /** A linear layer and its adapter site: y = x·Wᵀ (+ bias), then each adapter method in turn. */
  linear(x: Value, module: string, outFeatures: number, bias: boolean): Value {
    const inFeatures = (x.type as Type & { kind: "rows" }).cols;
    const site: SiteSpec = { index: this.sites.length, module, inFeatures, outFeatures };
    this.sites.push(site);
    let y = linear(x, this.weight(`${module}.weight`, outFeatures, inFeatures), module);
    if (bias) y = add(y, this.vector(`${module}.bias`, outFeatures));
    for (const method of this.methods) {
      y = method.apply({ x, y, site, rank: this.rank, factor: (side, cols) => input(this.region, `${module}.${side}`, { kind: "factor", cols, site: site.index, side }) });
    }
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
