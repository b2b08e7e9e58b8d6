/**
 * LoRA on parameters that hold all experts (PEFT's `target_parameters`, since 0.17), which is how
 * transformers 5 has them: `gate_up_proj` [experts, 2 · ffn, hidden] and `down_proj`. A has the rows of one
 * expert after those of another, [experts · r, in]; B, [out, r · experts], has experts innermost. Read, it is
 * a LoRA on single matrices, as `target_modules` names them: gate and up with the same A, or, where each
 * half of the rows is of one of the two alone, each with its own.
 */

import * as v from "valibot";
import { layersWith, type Manifest, type SiteEntry } from "../../runtime/bundle.ts";
import { type AdapterContent, modulePath } from "../../runtime/content.ts";
import { singleSites } from "../../runtime/experts.ts";
import { type Pattern, pattern, steps } from "../../runtime/pattern.ts";
import { decode, encode, parseHeader, type TensorData } from "../../runtime/safetensors.ts";
import { check, finite, foreign, maybe, positive, record, show, text } from "../../runtime/schema.ts";
import { targetsOf } from "../../runtime/targets.ts";
import { fail, type Json, PREFIX } from "./folder.ts";

/** What transformers calls the module of a mixture, whatever a family's checkpoints do. */
const MIXTURE = "mlp";
const Said = foreign({
  r: v.optional(positive, 8),
  lora_alpha: v.optional(finite, 8),
  target_modules: maybe(v.union([text, v.array(text)], "a list of modules, or a regular expression")),
  target_parameters: maybe(v.array(text)),
  layers_to_transform: maybe(v.unknown()),
  rank_pattern: maybe(record(positive)),
  alpha_pattern: maybe(record(finite)),
});

/** A parameter of a mixture, and the sites that it is: of gate and up both, one after the other. */
interface Stacked {
  readonly name: "gate_up_proj" | "down_proj";
  readonly sites: readonly SiteEntry[];
}
interface MixtureSites {
  readonly stacked: readonly Stacked[];
  readonly router: SiteEntry;
  readonly experts: number;
}
/** Null where the model has no experts. */
function mixtureOf({ sites }: Manifest): MixtureSites | null {
  const own = sites.filter((s) => s.experts !== undefined);
  const experts = own[0]?.experts;
  if (experts === undefined) return null;
  const [wide, down] = (["out", "in"] as const).map((axis) => own.filter((s) => s.coupling?.axis === axis));
  const module = own[0]!.module.split(".experts.")[0]!;
  return {
    experts,
    router: sites.find((s) => s.module === `${module}.gate`)!,
    stacked: [
      { name: "gate_up_proj", sites: wide! },
      { name: "down_proj", sites: down! },
    ],
  };
}
/** Names that transformers has for a layer's: of the module of its experts, and of its router. */
const pathsOf = (m: Manifest, layer: number) => {
  const module = `${m.checkpoint.modules.replace("{l}", String(layer))}${MIXTURE}`;
  return { experts: `${module}.experts`, router: `${module}.gate` };
};
const escaped = (path: string): string => path.replaceAll(".", "\\.");

/** Of plain LoRA: PEFT has parameters of no other method. */
export function hasParameters(json: Json | null): boolean {
  const { peft_type, use_dora, target_parameters: named } = json ?? {};
  return peft_type === "LORA" && !use_dora && Array.isArray(named) && named.length > 0;
}

/** The same folder on single matrices. Throws WEFT_ADAPTER, or WEFT_ADAPTER_MISMATCH for another base. */
export function onMatrices(
  json: Json,
  file: Uint8Array,
  manifest: Manifest,
  where: string,
): { json: Json; file: Uint8Array } {
  const config = `${where}/adapter_config.json`;
  const name = `${where}/adapter_model.safetensors`;
  const said = check(Said, json, { code: "WEFT_ADAPTER", where: config });
  const named = said.target_parameters ?? [];
  const mixture = mixtureOf(manifest);
  if (!mixture)
    return fail(`${config}: target_parameters`, "none: this model has no experts", named.join(", "));
  if (said.layers_to_transform != null)
    fail(`${config}: layers_to_transform`, "none beside target_parameters", show(said.layers_to_transform));
  if (said.target_modules === "all-linear")
    fail(`${config}: target_modules`, "a list of modules beside target_parameters", "all-linear");
  const isNamed = (key: string): boolean => named.some((t) => key === t || key.endsWith(`.${t}`));
  const { experts, router, stacked } = mixture;
  const layers = layersWith(manifest.model, router);
  const known = layers.flatMap((l) => {
    const at = pathsOf(manifest, l);
    return [...stacked.map((p) => `${at.experts}.${p.name}`), `${at.router}.weight`];
  });
  const unknown = named.find((t) => !known.some((key) => key === t || key.endsWith(`.${t}`)));
  if (unknown !== undefined)
    fail(`${config}: target_parameters`, stacked.map((p) => `experts.${p.name}`).join(", "), unknown);

  const budget = steps();
  /** A number of a parameter: that of the first key which matches. */
  const byKey = (map: string, keys: Readonly<Record<string, number>> | null | undefined, usual: number) => {
    const all = Object.entries(keys ?? {}).map(([key, x]): [Pattern, number] => [
      pattern(key, true, { code: "WEFT_ADAPTER", where: `${config}: ${map}[${show(key)}]` }),
      x,
    ]);
    return (key: string): number => all.find(([fits]) => fits(key, budget))?.[1] ?? usual;
  };
  const rankAt = byKey("rank_pattern", said.rank_pattern, said.r);
  const alphaAt = byKey("alpha_pattern", said.alpha_pattern, said.lora_alpha);

  const tensors = new Map(parseHeader(file, file.length, name).tensors.map((t) => [t.name, t]));
  const take = (key: string, shape: readonly [number, number]): Float32Array => {
    const t = tensors.get(key) ?? fail(name, `a tensor ${key}`, "none of that name", "WEFT_ADAPTER_MISMATCH");
    if (JSON.stringify(t.shape) !== JSON.stringify(shape))
      fail(`${name}: ${key}`, JSON.stringify(shape), JSON.stringify(t.shape), "WEFT_ADAPTER_MISMATCH");
    tensors.delete(key);
    return decode(file.subarray(t.start, t.end), t.dtype, key);
  };
  const out: TensorData[] = [];
  const put = (path: string, kind: "A" | "B", shape: [number, number], data: Float32Array): void =>
    void out.push({ name: `${PREFIX}${path}.lora_${kind}.weight`, shape, dtype: "F32", data });
  const patterns = { rank: {} as Record<string, number>, alpha: {} as Record<string, number> };
  const adapted = new Set<string>();
  for (const l of layers) {
    const at = pathsOf(manifest, l);
    const here = stacked.filter((p) => isNamed(`${at.experts}.${p.name}`));
    for (const [i, { name: parameter, sites }] of here.entries()) {
      const key = `${at.experts}.${parameter}`;
      const [rank, alpha] = [rankAt(key), alphaAt(key)];
      const ins = sites[0]!.inFeatures;
      const outs = sites.reduce((n, s) => n + s.outFeatures, 0);
      // PEFT wraps a module once for each of its parameters: the last is outside.
      const file = `${PREFIX}${at.experts}${".base_layer".repeat(here.length - 1 - i)}`;
      const a = take(`${file}.lora_A.weight`, [experts * rank, ins]);
      const b = take(`${file}.lora_B.weight`, [outs, rank * experts]);
      const halves = sites.length === 2 && apart(b, rank, experts, sites[0]!.outFeatures);
      const own = halves ? rank / 2 : rank;
      let row = 0;
      for (const [k, site] of sites.entries()) {
        const first = halves ? k * own : 0;
        for (const [e, single] of singleSites(site).entries()) {
          const path = modulePath(manifest, l, single);
          const from = (e * rank + first) * ins;
          put(path, "A", [own, ins], a.slice(from, from + own * ins));
          const up = new Float32Array(site.outFeatures * own);
          for (let o = 0; o < site.outFeatures; o++)
            for (let r = 0; r < own; r++) up[o * own + r] = b[((row + o) * rank + first + r) * experts + e]!;
          put(path, "B", [site.outFeatures, own], up);
          adapted.add(path);
        }
        row += site.outFeatures;
        const paths = escaped(modulePath(manifest, l, site)).replace("{e}", "\\d+");
        if (own !== said.r) patterns.rank[paths] = own;
        // The same scale, whatever the rank: alpha over it, or over its root.
        const scaled = halves ? alpha / (json.use_rslora === true ? Math.SQRT2 : 2) : alpha;
        if (scaled !== said.lora_alpha) patterns.alpha[paths] = scaled;
      }
    }
    if (!isNamed(`${at.router}.weight`)) continue;
    const path = modulePath(manifest, l, router);
    const rank = rankAt(`${at.router}.weight`);
    const alpha = alphaAt(`${at.router}.weight`);
    put(
      path,
      "A",
      [rank, router.inFeatures],
      take(`${PREFIX}${at.router}.lora_A.weight`, [rank, router.inFeatures]),
    );
    put(
      path,
      "B",
      [router.outFeatures, rank],
      take(`${PREFIX}${at.router}.lora_B.weight`, [router.outFeatures, rank]),
    );
    adapted.add(path);
    if (rank !== said.r) patterns.rank[escaped(path)] = rank;
    if (alpha !== said.lora_alpha) patterns.alpha[escaped(path)] = alpha;
  }
  for (const { name: key, shape, dtype, start, end } of tensors.values())
    out.push({ name: key, shape, dtype: "F32", data: decode(file.subarray(start, end), dtype, key) });
  const modules = targetsOf(manifest, adapted);
  const { target_parameters: _, ...others } = json;
  const { target_modules: also } = said;
  return {
    json: {
      ...others,
      target_modules:
        typeof also === "string"
          ? `(?:${also})|(?:.*\\.)?(?:${modules.map(escaped).join("|")})`
          : [...(also ?? []), ...modules],
      rank_pattern: { ...shorter(manifest, layers, patterns.rank), ...said.rank_pattern },
      alpha_pattern: { ...shorter(manifest, layers, patterns.alpha), ...said.alpha_pattern },
    },
    file: encode(out),
  };
}
/** Is of the rows of A each half of one matrix alone: of the first `outs` rows of B, or of those behind? */
function apart(b: Float32Array, rank: number, experts: number, outs: number): boolean {
  const half = (rank / 2) * experts;
  return (
    rank % 2 === 0 &&
    b.every((x, i) => {
      const [o, inFirst] = [Math.floor(i / (rank * experts)), i % (rank * experts) < half];
      return x === 0 || o < outs === inFirst;
    })
  );
}
/** Patterns of paths that say the same of all these layers, without the layer. */
function shorter(
  m: Manifest,
  layers: readonly number[],
  map: Readonly<Record<string, number>>,
): Record<string, number> {
  const groups = new Map<string, [string, number][]>();
  const prefixes = layers.map((l) => escaped(m.checkpoint.modules.replace("{l}", String(l))));
  for (const entry of Object.entries(map)) {
    const prefix = prefixes.find((p) => entry[0].startsWith(p))!;
    const module = entry[0].slice(prefix.length);
    groups.set(module, [...(groups.get(module) ?? []), entry]);
  }
  return Object.fromEntries(
    [...groups].flatMap(([module, all]) =>
      all.length === layers.length && all.every(([, x]) => x === all[0]![1]) ? [[module, all[0]![1]]] : all,
    ),
  );
}

/**
 * The folder of a LoRA, as one on parameters: gate and up have their A in common where it is the same, else
 * rows of one below those of the other, with zeros in B. Throws WEFT_ADAPTER for other methods, and for gate
 * without up.
 */
export function onParameters(
  { config, weights }: { readonly config: string; readonly weights: Uint8Array },
  content: AdapterContent,
  manifest: Manifest,
): { config: string; weights: Uint8Array } {
  const json = JSON.parse(config) as Json;
  const said = check(Said, json, { code: "WEFT_ADAPTER", where: "save" });
  const mixture = mixtureOf(manifest);
  if (!mixture || json.peft_type !== "LORA" || json.use_dora || json.bias !== "none")
    return fail(
      "save as target_parameters",
      "a LoRA of a mixture of experts",
      mixture ? content.config.method : "another model",
    );
  const { experts, router, stacked } = mixture;
  const given = new Map(
    parseHeader(weights, weights.length, "save").tensors.map(({ name, shape, start, end }) => [
      name,
      { shape, values: decode(weights.subarray(start, end), "F32", name) },
    ]),
  );
  const take = (path: string, kind: "A" | "B"): Float32Array => {
    const name = `${PREFIX}${path}.lora_${kind}.weight`;
    const { values } = given.get(name)!;
    given.delete(name);
    return values;
  };
  const stateOf = (layer: number, site: SiteEntry) => {
    const b = manifest.branches.find((x) => x.site === site.index && x.method === content.config.method);
    return b && content.branches[layer]![b.index]!.rank ? content.branches[layer]![b.index]! : null;
  };
  const out: TensorData[] = [];
  const put = (name: string, shape: [number, number], data: Float32Array): void =>
    void out.push({ name: `${PREFIX}${name}.weight`, shape, dtype: "F32", data });
  const patterns = { rank: {} as Record<string, number>, alpha: {} as Record<string, number> };
  const named: string[] = [];
  const name = (key: string, rank: number, alpha: number): void => {
    named.push(key);
    if (rank !== said.r) patterns.rank[escaped(key)] = rank;
    if (alpha !== said.lora_alpha) patterns.alpha[escaped(key)] = alpha;
  };
  const layers = layersWith(manifest.model, router);
  for (const l of layers) {
    const at = pathsOf(manifest, l);
    const here = stacked.flatMap((p) => {
      const states = p.sites.map((s) => stateOf(l, s));
      if (states.every((s) => s === null)) return [];
      if (states.some((s) => s === null))
        fail(`save as target_parameters: layer ${l}`, "gate and up, which are one parameter", "one of them");
      return [{ ...p, states: states.map((s) => s!) }];
    });
    for (const [i, { name: parameter, sites, states }] of here.entries()) {
      const ins = sites[0]!.inFeatures;
      const outs = sites.reduce((n, s) => n + s.outFeatures, 0);
      const matrices = sites.map((site) =>
        singleSites(site).map((single) => {
          const path = modulePath(manifest, l, single);
          return { a: take(path, "A"), b: take(path, "B") };
        }),
      );
      const [first, ...others] = states;
      const alike = others.every((s) => s.rank === first!.rank && s.scale === first!.scale);
      const shared = alike && matrices.every((all) => all.every(({ a }, e) => same(a, matrices[0]![e]!.a)));
      const rank = shared ? first!.rank : states.reduce((n, s) => n + s.rank, 0);
      const root = (x: number): number => (json.use_rslora === true ? Math.sqrt(x) : x);
      // Where scales differ they go into B.
      const alpha = shared
        ? first!.alpha
        : alike
          ? (first!.alpha * root(rank)) / root(first!.rank)
          : root(rank);
      const [a, b] = [new Float32Array(experts * rank * ins), new Float32Array(outs * rank * experts)];
      let [row, at0] = [0, 0];
      for (const [k, all] of matrices.entries()) {
        const [{ rank: own, scale }, { outFeatures }] = [states[k]!, sites[k]!];
        for (const [e, one] of all.entries()) {
          a.set(one.a, (e * rank + at0) * ins);
          for (let o = 0; o < outFeatures; o++)
            for (let r = 0; r < own; r++)
              b[((row + o) * rank + at0 + r) * experts + e] = one.b[o * own + r]! * (alike ? 1 : scale);
        }
        row += outFeatures;
        if (!shared) at0 += own;
      }
      const module = `${at.experts}${".base_layer".repeat(here.length - 1 - i)}`;
      put(`${module}.lora_A`, [experts * rank, ins], a);
      put(`${module}.lora_B`, [outs, rank * experts], b);
      name(`${at.experts}.${parameter}`, rank, alpha);
    }
    const state = stateOf(l, router);
    if (!state) continue;
    const path = modulePath(manifest, l, router);
    put(`${at.router}.lora_A`, [state.rank, router.inFeatures], take(path, "A"));
    put(`${at.router}.lora_B`, [router.outFeatures, state.rank], take(path, "B"));
    name(`${at.router}.weight`, state.rank, state.alpha);
  }
  const modules = new Set<string>();
  for (const [key, { shape, values }] of given) {
    out.push({ name: key, shape, dtype: "F32", data: values });
    modules.add(key.slice(PREFIX.length).replace(/\.lora_[AB]\.weight$/, ""));
  }
  const prefixes = layers.map((l) => manifest.checkpoint.modules.replace("{l}", String(l)));
  const short = (key: string): string => key.slice(prefixes.find((p) => key.startsWith(p))!.length);
  const inAll = (key: string): boolean => prefixes.every((p) => named.includes(`${p}${short(key)}`));
  return {
    config: `${JSON.stringify(
      {
        ...json,
        lora_dropout: 0,
        target_modules: targetsOf(manifest, modules),
        target_parameters: [...new Set(named.map((key) => (inAll(key) ? short(key) : key)))],
        rank_pattern: { ...shorter(manifest, layers, patterns.rank), ...said.rank_pattern },
        alpha_pattern: { ...shorter(manifest, layers, patterns.alpha), ...said.alpha_pattern },
      },
      null,
      2,
    )}\n`,
    weights: encode(out),
  };
}
const same = (a: Float32Array, b: Float32Array): boolean => a.every((x, i) => Object.is(x, b[i]!));
