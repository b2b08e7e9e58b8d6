/** adapter_config.json as an adapter's configuration: which method of the bundle it is of, and how. */
import * as v from "valibot";
import type { Manifest, MethodEntry } from "../../runtime/bundle.ts";
import { type AdapterConfig, defaultConfig } from "../../runtime/content.ts";
import { adapterEntries } from "../../runtime/options.ts";
import { check, count, finite, foreign, maybe, positive, record, show, text } from "../../runtime/schema.ts";
import { refuseFeatures } from "./features.ts";
import { fail, type Json } from "./folder.ts";

const names = v.union([text, v.array(text)], "a list of modules, or a regular expression");
/** What is read of adapter_config.json; what else it says is known to change nothing, or refused by name. */
const Config = foreign({
  peft_type: v.optional(text),
  target_modules: maybe(names),
  exclude_modules: maybe(names),
  modules_to_save: maybe(v.array(text)),
  layers_to_transform: maybe(v.union([count, v.array(count)], "a layer, or a list of layers")),
  rank_pattern: maybe(record(positive)),
  alpha_pattern: maybe(record(finite)),
  weft_base: maybe(text),
});
export interface Read {
  readonly config: AdapterConfig;
  readonly method: MethodEntry;
  readonly layers: readonly number[] | null;
  readonly exclude: readonly string[] | string | null;
  readonly replaced: readonly string[];
}
/**
 * Check a PEFT config; throws WEFT_ADAPTER for a method the bundle has not, or a feature that is not
 * supported.
 */
export function readConfig(json: Json, manifest: Manifest, where: string): Read {
  const said = check(Config, json, { code: "WEFT_ADAPTER", where });
  const known = Object.values(manifest.methods);
  const fitting = known.filter(
    (m) =>
      m.peft.type === json.peft_type &&
      Object.entries(m.peft.when).every(([key, v]) => (json[key] ?? false) === v),
  );
  // Of several, the one that asks for most.
  const method = fitting.sort((a, b) => Object.keys(b.peft.when).length - Object.keys(a.peft.when).length)[0];
  if (!method) {
    // A method of that type which differs in a key: the key is what is missing here.
    const near = known.find(({ peft }) => peft.type === json.peft_type)?.peft;
    const key = near && Object.keys(near.when).find((k) => (json[k] ?? false) !== near.when[k]);
    return fail(
      `${where}: ${key ?? "peft_type"}`,
      key
        ? JSON.stringify(near.when[key])
        : known.map((m) => m.peft.type).join(", ") || "a bundle compiled for adapters",
      show(json[key ?? "peft_type"]),
      "WEFT_ADAPTER",
      "compile the bundle with this method",
    );
  }
  refuseFeatures(json, method, where);
  // Tokens of an adapter's own have no modules to name.
  const target = method.virtual ? "all-linear" : said.target_modules;
  if (target === undefined || target === null)
    return fail(
      `${where}: target_modules`,
      "a list of modules, a regular expression or all-linear",
      show(target),
    );
  // Lists of modules matter as far as they are adapted.
  const targeted = (v: unknown): unknown =>
    Array.isArray(v) && Array.isArray(target) ? v.filter((m) => target.includes(m)).sort() : v;
  const { fixed, meaning, config: fields } = method.peft;
  for (const key of meaning)
    if (key in json && JSON.stringify(targeted(json[key])) !== JSON.stringify(targeted(fixed[key])))
      fail(`${where}: ${key}`, show(fixed[key]), show(json[key]));
  // PEFT's own defaults where they differ from weft's.
  const config: Record<string, unknown> = {
    ...defaultConfig(manifest, method.name),
    alpha: 8,
    targetModules: target,
  };
  for (const [key, field] of Object.entries(fields)) {
    const v = json[key];
    if (v === undefined || v === null) continue;
    config[field] = check(adapterEntries[field], v, { code: "WEFT_ADAPTER", where: `${where}: ${key}` });
  }
  const layers = said.layers_to_transform ?? null;
  return {
    config: config as unknown as AdapterConfig,
    method,
    // As in PEFT, an empty list names all of them.
    layers: typeof layers === "number" ? [layers] : layers?.length ? layers : null,
    exclude: said.exclude_modules ?? null,
    replaced: said.modules_to_save ?? [],
  };
}
