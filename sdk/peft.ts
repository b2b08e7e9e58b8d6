/** Hugging Face PEFT folders, in and out: adapter_config.json + adapter_model.safetensors. LoRA, with rank and alpha patterns and rsLoRA. */
import { type AdapterConfig, type AdapterContent, factorOf, resolveSites } from "../runtime/adapters.ts";
import { decode, encode, headerEnd, type Manifest, parseHeader, type TargetPlan, type TensorData, WeftError } from "../runtime/bundle.ts";

const PREFIX = "base_model.model.";
type Json = Readonly<Record<string, unknown>>;
/** Features that change the maths and are not supported: refused by name rather than ignored. */
const refused: Readonly<Record<string, (v: unknown) => boolean>> = {
  use_dora: Boolean,
  lora_bias: Boolean,
  bias: (v) => v !== undefined && v !== null && v !== "none",
  modules_to_save: (v) => Array.isArray(v) && v.length > 0,
  trainable_token_indices: (v) => v !== null && v !== undefined,
  target_parameters: (v) => Array.isArray(v) && v.length > 0,
  layer_replication: (v) => v !== null && v !== undefined,
  alora_invocation_tokens: (v) => v !== null && v !== undefined,
  use_qalora: Boolean,
  use_bdlora: (v) => Boolean(v),
  fan_in_fan_out: Boolean,
  arrow_config: (v) => v !== null && v !== undefined,
  kasa_config: (v) => v !== null && v !== undefined,
  megatron_config: (v) => v !== null && v !== undefined,
  monteclora_config: (v) => v !== null && v !== undefined,
  velora_config: (v) => v !== null && v !== undefined,
};
const fail = (where: string, expected: string, found: string, code: "WEFT_ADAPTER" | "WEFT_ADAPTER_MISMATCH" = "WEFT_ADAPTER", hint?: string): never => {
  throw new WeftError({ code, where, expected, found, ...(hint && { hint }) });
};

/** Check a PEFT config; throws WEFT_ADAPTER for another method or a feature that is not supported. */
export function readConfig(json: Json, where: string): AdapterConfig & { layers: readonly number[] | null; exclude: readonly string[] | string | null } {
  if (json.peft_type !== "LORA") fail(`${where}: peft_type`, "LORA", String(json.peft_type));
  for (const [key, isOn] of Object.entries(refused)) if (isOn(json[key])) fail(`${where}: ${key}`, "a feature this build supports", JSON.stringify(json[key]));
  const init = json.init_lora_weights;
  if (typeof init === "string" && /^(pissa|olora|corda|lora_ga|loftq)/.test(init))
    fail(`${where}: init_lora_weights`, "an adapter of the original base", init, "WEFT_ADAPTER", "convert it to an ordinary LoRA with peft first");
  const number = (key: string, fallback: number): number => {
    const v = json[key] ?? fallback;
    return typeof v === "number" ? v : fail(`${where}: ${key}`, "a number", JSON.stringify(v));
  };
  const patterns = (key: string): Record<string, number> => (json[key] ?? {}) as Record<string, number>;
  const target = json.target_modules;
  if (typeof target !== "string" && !Array.isArray(target)) fail(`${where}: target_modules`, "a list of modules, a regular expression or all-linear", JSON.stringify(target));
  const layers = json.layers_to_transform;
  return {
    rank: number("r", 8),
    alpha: number("lora_alpha", 8),
    rslora: json.use_rslora === true,
    dropout: number("lora_dropout", 0),
    targetModules: target as string | string[],
    rankPattern: patterns("rank_pattern"),
    alphaPattern: patterns("alpha_pattern"),
    layers: typeof layers === "number" ? [layers] : Array.isArray(layers) ? (layers as number[]) : null,
    exclude: (json.exclude_modules ?? null) as string | string[] | null,
  };
}

/** PEFT files → adapter content in slot layout. Every tensor must belong to this base and class. */
export function readAdapter(config: Json, file: Uint8Array, manifest: Manifest, plan: TargetPlan, where: string): AdapterContent {
  const { layers, exclude, ...c } = readConfig(config, `${where}/adapter_config.json`);
  const recorded = config.weft_base;
  if (typeof recorded === "string" && recorded !== manifest.base)
    fail(
      `${where}/adapter_config.json`,
      `an adapter of base ${manifest.base.slice(0, 12)}`,
      `base ${recorded.slice(0, 12)}`,
      "WEFT_ADAPTER_MISMATCH",
      "it was trained on another model",
    );
  const name = `${where}/adapter_model.safetensors`;
  headerEnd(file, file.length, name);
  const { tensors } = parseHeader(file, file.length, name);
  const byName = new Map(tensors.map((t) => [t.name, t]));
  const excluded = (p: string): boolean => (typeof exclude === "string" ? new RegExp(`^(?:${exclude})$`).test(p) : (exclude ?? []).some((t) => p === t || p.endsWith(`.${t}`)));
  const all = resolveSites(manifest, c);
  const sites = all.map((layer, l) =>
    layer.map((s, i) => ((layers && !layers.includes(l)) || excluded(`model.layers.${l}.${manifest.sites[i]!.module}`) ? { rank: 0, alpha: 0, scale: 0 } : s)),
  );
  const factors = sites.map((layer, l) => {
    const data = new Float32Array(plan.slotWords);
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const site = manifest.sites[i]!;
      for (const side of ["a", "b"] as const) {
        const key = `${PREFIX}model.layers.${l}.${site.module}.lora_${side.toUpperCase()}.weight`;
        const t = byName.get(key) ?? fail(name, `a tensor ${key}`, "none of that name", "WEFT_ADAPTER_MISMATCH");
        const f = factorOf(plan.factors, i, side);
        const shape = side === "a" ? [s.rank, site.inFeatures] : [site.outFeatures, s.rank];
        if (JSON.stringify(t.shape) !== JSON.stringify(shape))
          fail(`${name}: ${key}`, JSON.stringify(shape), JSON.stringify(t.shape), "WEFT_ADAPTER_MISMATCH", "the adapter belongs to another base");
        const values = decode(file.subarray(t.start, t.end), t.dtype, `${name}: ${key}`);
        if (side === "a") data.set(values, f.offset);
        else for (let o = 0; o < site.outFeatures; o++) for (let r = 0; r < s.rank; r++) data[f.offset + r * f.k + o] = values[o * s.rank + r]!;
        byName.delete(key);
      }
    });
    return data;
  });
  for (const key of byName.keys())
    fail(name, "tensors of this base's linear layers", key, "WEFT_ADAPTER_MISMATCH", "the adapter belongs to another base, or uses a feature that is not supported");
  return { config: c, sites, factors };
}

/** Adapter content → the two files of a PEFT folder. */
export function writeAdapter(content: AdapterContent, manifest: Manifest, plan: TargetPlan): { config: string; weights: Uint8Array } {
  const { config: c } = content;
  const tensors: TensorData[] = [];
  content.sites.forEach((layer, l) => {
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const site = manifest.sites[i]!;
      const data = content.factors[l]!;
      const key = `${PREFIX}model.layers.${l}.${site.module}.lora_`;
      const [a, b] = [factorOf(plan.factors, i, "a"), factorOf(plan.factors, i, "b")];
      tensors.push({ name: `${key}A.weight`, shape: [s.rank, site.inFeatures], dtype: "F32", data: data.slice(a.offset, a.offset + s.rank * a.k) });
      const out = new Float32Array(site.outFeatures * s.rank);
      for (let o = 0; o < site.outFeatures; o++) for (let r = 0; r < s.rank; r++) out[o * s.rank + r] = data[b.offset + r * b.k + o]!;
      tensors.push({ name: `${key}B.weight`, shape: [site.outFeatures, s.rank], dtype: "F32", data: out });
    });
  });
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: null,
    inference_mode: true,
    r: c.rank,
    lora_alpha: c.alpha,
    lora_dropout: c.dropout,
    use_rslora: c.rslora,
    bias: "none",
    fan_in_fan_out: false,
    target_modules: c.targetModules,
    rank_pattern: c.rankPattern,
    alpha_pattern: c.alphaPattern,
    init_lora_weights: true,
    modules_to_save: null,
    layers_to_transform: null,
    weft_base: manifest.base,
  };
  return { config: `${JSON.stringify(config, null, 2)}\n`, weights: encode(tensors) };
}
