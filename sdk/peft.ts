/**
 * Hugging Face PEFT folders, in and out: adapter_config.json + adapter_model.safetensors. Each method of the
 * bundle says how its tensors and config keys are called; S2FT, which PEFT has not, is kept in the same two
 * files (`peft_type: "S2FT"`).
 */
import * as v from "valibot";
import {
  type BranchEntry,
  type BranchTensor,
  decode,
  encode,
  headerEnd,
  type Manifest,
  type MethodEntry,
  type ParamEntry,
  parseHeader,
  type SiteEntry,
  type TargetPlan,
  type TensorData,
  type TensorInfo,
  WeftError,
} from "../runtime/bundle.ts";
import {
  type AdapterConfig,
  type AdapterContent,
  defaultConfig,
  modulePath,
  placeOf,
  readEntries,
  readSelection,
  resolveBranches,
  rowsInUse,
  siteOf,
  writeEntries,
  writeSelection,
} from "../runtime/content.ts";
import { asLowRank } from "../runtime/lowrank.ts";
import { adapterEntries } from "../runtime/options.ts";
import { channelOrder } from "../runtime/order.ts";
import { pattern, steps } from "../runtime/pattern.ts";
import { check, count, finite, foreign, positive, record, show, text } from "../runtime/schema.ts";

const PREFIX = "base_model.model.";
type Json = Readonly<Record<string, unknown>>;
/** Features that change the maths and are not supported: refused by name rather than ignored. */
const refused: Readonly<Record<string, (v: unknown) => boolean>> = {
  lora_bias: Boolean,
  bias: (v) => v !== undefined && v !== null && v !== "none",
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
/** Keys that say what is computed: a file that differs from what the method writes is refused. */
const meaning: Readonly<Record<string, true>> = {
  non_linearity: true,
  use_adapterp: true,
  scaling: true,
  feedforward_modules: true,
  prefix_projection: true,
};
const fail = (
  where: string,
  expected: string,
  found: string,
  code: "WEFT_ADAPTER" | "WEFT_ADAPTER_MISMATCH" = "WEFT_ADAPTER",
  hint?: string,
): never => {
  throw new WeftError({ code, where, expected, found, ...(hint && { hint }) });
};

const names = v.union([text, v.array(text)], "a list of modules, or a regular expression");
/** What is read of adapter_config.json; what else it says is known to change nothing, or refused by name. */
const Config = foreign({
  peft_type: v.optional(text),
  target_modules: v.nullish(names),
  exclude_modules: v.nullish(names),
  modules_to_save: v.nullish(v.array(text)),
  layers_to_transform: v.nullish(v.union([count, v.array(count)], "a layer, or a list of layers")),
  rank_pattern: v.nullish(record(positive)),
  alpha_pattern: v.nullish(record(finite)),
  weft_base: v.nullish(text),
});
/**
 * Most numbers of an adapter's files on this base: all of its slot in every layer, and the modules it
 * replaces.
 */
export const numbersAtMost = ({ model, tensors }: Manifest, plan: TargetPlan): number =>
  model.layers * plan.slotWords + tensors.reduce((n, t) => n + t.shape.reduce((a, b) => a * b, 1), 0);

interface Read {
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
function readConfig(json: Json, manifest: Manifest, where: string): Read {
  const said = check(Config, json, { code: "WEFT_ADAPTER", where });
  const known = Object.values(manifest.methods);
  const fitting = known.filter(
    (m) =>
      m.peftType === json.peft_type && Object.entries(m.when).every(([key, v]) => (json[key] ?? false) === v),
  );
  // Of several, the one that asks for most.
  const method = fitting.sort((a, b) => Object.keys(b.when).length - Object.keys(a.when).length)[0];
  if (!method) {
    // A method of that type which differs in a key: the key is what is missing here.
    const near = known.find((m) => m.peftType === json.peft_type);
    const key = near && Object.keys(near.when).find((k) => (json[k] ?? false) !== near.when[k]);
    return fail(
      `${where}: ${key ?? "peft_type"}`,
      key
        ? JSON.stringify(near.when[key])
        : known.map((m) => m.peftType).join(", ") || "a bundle compiled for adapters",
      show(json[key ?? "peft_type"]),
      "WEFT_ADAPTER",
      "compile the bundle with this method",
    );
  }
  for (const [key, isOn] of Object.entries(refused))
    if (isOn(json[key]) && method.when[key] !== json[key])
      fail(`${where}: ${key}`, "a feature this build supports", show(json[key]));
  const init = json.init_lora_weights;
  if (typeof init === "string" && /^(pissa|olora|corda|lora_ga|loftq)/.test(init))
    fail(
      `${where}: init_lora_weights`,
      "an adapter of the original base",
      show(init),
      "WEFT_ADAPTER",
      "convert it to an ordinary LoRA with peft first",
    );
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
  // What a method's files always say is what it computes.
  for (const [key, v] of Object.entries(method.fixed))
    if (key in json && key in meaning && JSON.stringify(targeted(json[key])) !== JSON.stringify(targeted(v)))
      fail(`${where}: ${key}`, show(v), show(json[key]));
  // PEFT's own defaults where they differ from weft's.
  const config: Record<string, unknown> = {
    ...defaultConfig(manifest, method.name),
    alpha: 8,
    targetModules: target,
  };
  for (const [key, field] of Object.entries(method.config)) {
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

/** [rows, cols] ↔ [cols, rows]. */
function transpose(values: Float32Array, rows: number, cols: number): Float32Array {
  const out = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) out[c * rows + r] = values[r * cols + c]!;
  return out;
}
type Shape = BranchTensor["shape"];
/** Shapes of a branch's own tensors in a file; those `beside` each other have one for all branches. */
const shapes: Readonly<
  Record<Exclude<Shape, "beside">, (t: BranchTensor, rank: number, rows: number) => number[]>
> = {
  rows: (t, _, rows) => [rows, t.cols],
  columns: (t, _, rows) => [t.cols, rows],
  vector: (t) => [t.cols],
  selection: (_, rank) => [rank],
  entries: (_, rank) => [rank],
  places: (_, rank) => [2, rank],
};
/** Numbers of a file as rows of a slot, for shapes that have all of them. */
const asRows: Readonly<
  Record<"rows" | "columns" | "vector", (values: Float32Array, t: BranchTensor, rows: number) => Float32Array>
> = {
  rows: (values) => values,
  columns: (values, t, rows) => transpose(values, t.cols, rows),
  vector: (values) => values,
};

/**
 * Methods whose tensors lie side by side in one [rows, total]: that tensor's key and width, and the columns
 * at which each part begins.
 */
function besideOf(
  manifest: Manifest,
  branches: AdapterContent["branches"],
): {
  key: string;
  total: number;
  parts: { layer: number; branch: number; tensor: BranchTensor; at: number }[];
} | null {
  let key: string | null = null;
  let total = 0;
  const parts = branches.flatMap((layer, l) =>
    layer.flatMap((s, branch) =>
      manifest.branches[branch]!.tensors.flatMap((tensor) => {
        if (!s.rank || tensor.shape !== "beside") return [];
        key = tensor.key;
        total += tensor.cols;
        return [{ layer: l, branch, tensor, at: total - tensor.cols }];
      }),
    ),
  );
  return key === null ? null : { key, total, parts };
}

/** PEFT files → adapter content in slot layout. Every tensor must belong to this base and class. */
export function readAdapter(
  json: Json,
  file: Uint8Array,
  manifest: Manifest,
  plan: TargetPlan,
  where: string,
): AdapterContent {
  const { config, method, layers, exclude, replaced } = readConfig(
    json,
    manifest,
    `${where}/adapter_config.json`,
  );
  const recorded = json.weft_base;
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
  const byName = new Map(
    parseHeader(file, file.length, name).tensors.map((t): [string, TensorInfo] => [t.name, t]),
  );
  const budget = steps();
  const names = typeof exclude === "string" ? null : exclude;
  const excludes =
    typeof exclude === "string"
      ? pattern(exclude, false, {
          code: "WEFT_ADAPTER",
          where: `${where}/adapter_config.json: exclude_modules`,
        })
      : null;
  const excluded = (p: string): boolean =>
    excludes ? excludes(p, budget) : (names ?? []).some((t) => p === t || p.endsWith(`.${t}`));
  // Methods without a rank of their own keep as many rows as the file has.
  const fromFile = (path: string, b: BranchEntry): number | null => {
    const chosen = b.tensors.find((t) => t.shape === "selection" || t.shape === "entries")!;
    return byName.get(`${PREFIX}${path}.${chosen.key}`)?.shape[0] ?? null;
  };
  const all = resolveBranches(
    manifest,
    config,
    method.form === "selection" || method.form === "entries" ? fromFile : undefined,
  );
  const branches = all.map((layer, l) =>
    layer.map((s, i) =>
      (layers && !layers.includes(l)) ||
      excluded(modulePath(manifest, l, siteOf(manifest, manifest.branches[i]!)))
        ? { rank: 0, alpha: 0, scale: 0 }
        : s,
    ),
  );
  const tensors = branches.map((layer, l) => {
    const data = new Float32Array(plan.slotWords);
    // Chosen entries or channels have any order in a file, and one in a slot: its row r comes from the file's
    // row orders[r].
    const orders = new Map<number, number[]>();
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const b = manifest.branches[i]!;
      const site = siteOf(manifest, b);
      for (const t of b.tensors) {
        if (t.key === null || t.shape === "beside") continue;
        const key = `${PREFIX}${modulePath(manifest, l, siteOf(manifest, b))}.${t.key}`;
        const info =
          byName.get(key) ?? fail(name, `a tensor ${key}`, "none of that name", "WEFT_ADAPTER_MISMATCH");
        const shape = shapes[t.shape](t, s.rank, rowsInUse(t, s));
        if (JSON.stringify(info.shape) !== JSON.stringify(shape))
          fail(
            `${name}: ${key}`,
            JSON.stringify(shape),
            JSON.stringify(info.shape),
            "WEFT_ADAPTER_MISMATCH",
            "the adapter belongs to another base",
          );
        const at = placeOf(plan.factors, i, t.name);
        const raw = file.subarray(info.start, info.end);
        if (t.shape === "places") {
          if (info.dtype !== "I32") fail(`${name}: ${key}`, "int32 rows and columns", info.dtype);
          const { outFeatures: outs, inFeatures: ins } = siteOf(manifest, b);
          const places = new Int32Array(raw.slice().buffer);
          const flat = Array.from({ length: s.rank }, (_, e) => places[e]! * ins + places[s.rank + e]!);
          const wrong = flat.findIndex(
            (f, e) =>
              places[e]! < 0 ||
              places[e]! >= outs ||
              places[s.rank + e]! < 0 ||
              places[s.rank + e]! >= ins ||
              !Number.isInteger(f),
          );
          if (wrong >= 0 || new Set(flat).size < flat.length)
            fail(
              `${name}: ${key}`,
              `distinct places in a matrix ${outs} × ${ins}`,
              wrong >= 0 ? `(${places[wrong]}, ${places[s.rank + wrong]})` : "a place twice",
              "WEFT_ADAPTER_MISMATCH",
            );
          orders.set(
            b.index,
            [...flat.keys()].sort((x, y) => flat[x]! - flat[y]!),
          );
          writeEntries(
            data,
            at,
            b.capacity,
            outs,
            ins,
            [...flat].sort((x, y) => x - y),
          );
        } else if (t.shape === "entries") {
          const values = decode(raw, info.dtype, `${name}: ${key}`);
          data.set(
            orders.get(b.index)!.map((e) => values[e]!),
            at.offset,
          );
        } else if (t.shape === "selection") {
          if (info.dtype !== "I32") fail(`${name}: ${key}`, "int32 channels", info.dtype);
          const channels = [...new Int32Array(raw.slice().buffer)];
          const limit = t.cols - b.capacity;
          const wrong = channels.findIndex((c, r) => c < 0 || c >= limit || channels.indexOf(c) !== r);
          if (wrong >= 0)
            fail(
              `${name}: ${key}[${wrong}]`,
              `distinct channels below ${limit}`,
              String(channels[wrong]),
              "WEFT_ADAPTER_MISMATCH",
            );
          // Where the bundle has chosen, its order is the slot's.
          const own =
            t.init === "leading"
              ? channelOrder(manifest, l, site.axes[site.coupling!.axis])!.slice(0, s.rank)
              : channels;
          const rows = own.map((c) => channels.indexOf(c));
          if (rows.includes(-1))
            fail(
              `${name}: ${key}`,
              `the channels of this bundle's selection, ${own.slice(0, 4).join(", ")} …`,
              channels.slice(0, 4).join(", "),
              "WEFT_ADAPTER_MISMATCH",
              "compile with the method s2ft to read any selection",
            );
          writeSelection(data, at, b.capacity, own);
          orders.set(b.index, rows);
        } else {
          const values = decode(raw, info.dtype, `${name}: ${key}`);
          const rows = asRows[t.shape](values, t, rowsInUse(t, s));
          const order = orders.get(b.index);
          if (order)
            order.forEach((from, r) =>
              data.set(rows.subarray(from * t.cols, (from + 1) * t.cols), at.offset + r * t.cols),
            );
          else data.set(rows, at.offset);
        }
        byName.delete(key);
      }
    });
    return data;
  });
  const beside = besideOf(manifest, branches);
  if (beside) {
    const info =
      byName.get(beside.key) ??
      fail(name, `a tensor ${beside.key}`, "none of that name", "WEFT_ADAPTER_MISMATCH");
    const rank = Math.max(...branches.flat().map((s) => s.rank));
    if (JSON.stringify(info.shape) !== JSON.stringify([rank, beside.total]))
      fail(
        `${name}: ${beside.key}`,
        JSON.stringify([rank, beside.total]),
        JSON.stringify(info.shape),
        "WEFT_ADAPTER_MISMATCH",
        "the adapter belongs to another base",
      );
    const values = decode(file.subarray(info.start, info.end), info.dtype, `${name}: ${beside.key}`);
    for (const { layer, branch, tensor, at } of beside.parts) {
      const to = placeOf(plan.factors, branch, tensor.name);
      for (let r = 0; r < rank; r++)
        tensors[layer]!.set(
          values.subarray(r * beside.total + at, r * beside.total + at + tensor.cols),
          to.offset + r * tensor.cols,
        );
    }
    byName.delete(beside.key);
  }
  // Modules whose path ends in a name of modules_to_save, as PEFT matches them.
  const replaces = new Map<string, Float32Array>();
  for (const m of replaced)
    if (![...byName.keys()].some((key) => key.slice(0, key.lastIndexOf(".")).endsWith(m)))
      fail(`${name}: modules_to_save`, `tensors of ${m}`, "none", "WEFT_ADAPTER_MISMATCH");
  for (const [key, info] of byName) {
    const tensor = key.startsWith(PREFIX)
      ? manifest.tensors.find((t) => t.name === key.slice(PREFIX.length))
      : undefined;
    const saved = replaced.some((m) => key.slice(0, key.lastIndexOf(".")).endsWith(m));
    if (!saved || !tensor) continue;
    if (JSON.stringify(info.shape) !== JSON.stringify(tensor.shape))
      fail(
        `${name}: ${key}`,
        JSON.stringify(tensor.shape),
        JSON.stringify(info.shape),
        "WEFT_ADAPTER_MISMATCH",
      );
    replaces.set(tensor.name, decode(file.subarray(info.start, info.end), info.dtype, `${name}: ${key}`));
    byName.delete(key);
  }
  for (const key of byName.keys())
    fail(
      name,
      "tensors of this base's linear layers",
      key,
      "WEFT_ADAPTER_MISMATCH",
      "the adapter belongs to another base, or uses a feature that is not supported",
    );
  return { config, branches, tensors, ...(replaces.size && { replaces }) };
}

const files = (
  config: Json,
  tensors: readonly TensorData[],
  manifest: Manifest,
): { config: string; weights: Uint8Array } => ({
  config: `${JSON.stringify({ task_type: "CAUSAL_LM", base_model_name_or_path: null, inference_mode: true, ...config, weft_base: manifest.base, weft_format: manifest.model.format }, null, 2)}\n`,
  weights: encode(tensors),
});

/** A tensor of a branch in its slot; `order`: the rows as files have them. */
interface InSlot {
  readonly t: BranchTensor;
  readonly at: ParamEntry;
  readonly slot: Float32Array;
  readonly order: readonly number[];
  readonly rows: number;
  readonly branch: BranchEntry;
  readonly site: SiteEntry;
}
function denseRows({ t, at, slot, order, rows }: InSlot): Float32Array {
  const values = new Float32Array(rows * t.cols);
  for (let r = 0; r < rows; r++) {
    const from = at.offset + (t.rows === "rank" ? order[r]! : r) * t.cols;
    values.set(slot.subarray(from, from + t.cols), r * t.cols);
  }
  return values;
}
const dense = (s: InSlot): Pick<TensorData, "dtype" | "data"> => ({ dtype: "F32", data: denseRows(s) });
const written: Readonly<Record<Exclude<Shape, "beside">, typeof dense>> = {
  rows: dense,
  vector: dense,
  entries: dense,
  columns: (s) => ({ dtype: "F32", data: transpose(denseRows(s), s.rows, s.t.cols) }),
  selection: ({ slot, at, order }) => {
    const channels = readSelection(slot, at, order.length);
    return { dtype: "I32", data: Int32Array.from(order, (r) => channels[r]!) };
  },
  places: ({ slot, at, order, branch, site: { inFeatures } }) => {
    const flat = readEntries(slot, at, branch.capacity, inFeatures, order.length);
    const [rows, columns] = [flat.map((e) => Math.floor(e / inFeatures)), flat.map((e) => e % inFeatures)];
    return { dtype: "I32", data: Int32Array.from([...rows, ...columns]) };
  },
};

/** Adapter content → the two files of a PEFT folder. */
export function writeAdapter(
  content: AdapterContent,
  manifest: Manifest,
  plan: TargetPlan,
): { config: string; weights: Uint8Array } {
  const method = manifest.methods[content.config.method]!;
  const tensors: TensorData[] = [];
  content.branches.forEach((layer, l) => {
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const b = manifest.branches[i]!;
      const data = content.tensors[l]!;
      // Files name chosen channels in ascending order, whatever the slot's.
      let order = Array.from({ length: s.rank }, (_, r) => r);
      for (const t of b.tensors) {
        if (t.key === null || t.shape === "beside") continue;
        const at = placeOf(plan.factors, i, t.name);
        if (t.shape === "selection") {
          const channels = readSelection(data, at, s.rank);
          order = order.sort((x, y) => channels[x]! - channels[y]!);
        }
        const rows = rowsInUse(t, s);
        tensors.push({
          name: `${PREFIX}${modulePath(manifest, l, siteOf(manifest, b))}.${t.key}`,
          shape: shapes[t.shape](t, s.rank, rows),
          ...written[t.shape]({ t, at, slot: data, order, rows, branch: b, site: siteOf(manifest, b) }),
        });
      }
    });
  });
  const beside = besideOf(manifest, content.branches);
  if (beside) {
    const rank = Math.max(...content.branches.flat().map((s) => s.rank));
    const data = new Float32Array(rank * beside.total);
    for (const { layer, branch, tensor, at } of beside.parts) {
      const { offset } = placeOf(plan.factors, branch, tensor.name);
      for (let r = 0; r < rank; r++)
        data.set(
          content.tensors[layer]!.subarray(offset + r * tensor.cols, offset + (r + 1) * tensor.cols),
          r * beside.total + at,
        );
    }
    tensors.push({ name: beside.key, shape: [rank, beside.total], dtype: "F32", data });
  }
  for (const [path, values] of content.replaces ?? [])
    tensors.push({
      name: `${PREFIX}${path}`,
      shape: manifest.tensors.find((t) => t.name === path)!.shape,
      dtype: "F32",
      data: values,
    });
  const replaced = content.replaces && {
    modules_to_save: [...new Set([...content.replaces.keys()].map((path) => path.split(".").slice(-2)[0]!))],
  };
  const own = Object.fromEntries(
    Object.entries(method.config).map(([key, field]) => [key, content.config[field as keyof AdapterConfig]]),
  );
  return files(
    {
      peft_type: method.peftType,
      ...method.fixed,
      ...replaced,
      ...own,
      ...(!method.virtual && { target_modules: content.config.targetModules }),
    },
    tensors,
    manifest,
  );
}

/**
 * The same change of the base as a LoRA that any peft loads: exact for what is low-rank or a selection of
 * channels. Throws WEFT_ADAPTER otherwise.
 */
export function writeAsLora(
  content: AdapterContent,
  manifest: Manifest,
  plan: TargetPlan,
): { config: string; weights: Uint8Array } {
  if (content.replaces)
    fail("save as lora", "an adapter that shares the base", "one with modules of its own");
  const tensors: TensorData[] = [];
  const ranks: Record<string, number> = {};
  const modules = new Set<string>();
  content.branches.forEach((layer, l) => {
    layer.forEach((s, i) => {
      if (!s.rank) return;
      const site = siteOf(manifest, manifest.branches[i]!);
      const { rank, a, b } = asLowRank(manifest, plan, content, l, i);
      const path = modulePath(manifest, l, site);
      tensors.push({
        name: `${PREFIX}${path}.lora_A.weight`,
        shape: [rank, site.inFeatures],
        dtype: "F32",
        data: a,
      });
      tensors.push({
        name: `${PREFIX}${path}.lora_B.weight`,
        shape: [site.outFeatures, rank],
        dtype: "F32",
        data: transpose(b, rank, site.outFeatures),
      });
      ranks[path.replaceAll(".", "\\.")] = rank;
      modules.add(site.module.split(".").pop()!);
    });
  });
  // The scale is folded into B: alpha equals the rank everywhere.
  const r = Math.max(...Object.values(ranks));
  const pattern = Object.fromEntries(Object.entries(ranks).filter(([, v]) => v !== r));
  const config = {
    r,
    lora_alpha: r,
    lora_dropout: 0,
    use_rslora: false,
    rank_pattern: pattern,
    alpha_pattern: pattern,
    bias: "none",
    fan_in_fan_out: false,
    init_lora_weights: true,
    modules_to_save: null,
  };
  return files({ peft_type: "LORA", ...config, target_modules: [...modules] }, tensors, manifest);
}
