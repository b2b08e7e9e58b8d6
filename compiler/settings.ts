/** What is to be compiled: the caller's options with their defaults, checked against the model. */
import { IGNORE, type KvName, type Manifest, type Products, WeftError } from "../runtime/bundle.ts";
import { check, didYouMean } from "../runtime/schema.ts";
import type { AdapterMethod } from "./adapters/adapter.ts";
import { adapterMethods } from "./adapters/index.ts";
import type { Making } from "./emit/asc.ts";
import { policies } from "./emit/host.ts";
import { type FormatOption, formatsOf } from "./formats.ts";
import type { FormatOf } from "./layers.ts";
import type { Model } from "./models/model.ts";
import { CompileOptions } from "./options.ts";
import type { TrainClass } from "./programs/index.ts";
import { checkSelection } from "./selection.ts";
import type { WeightSource } from "./source.ts";
import {
  type Capacities,
  checkCapacities,
  defaultBlocks,
  defaultCapacities,
  type Target,
  targets,
} from "./target.ts";

export interface Settings {
  readonly targets: readonly Target[];
  readonly train: readonly TrainClass[];
  readonly methods: readonly AdapterMethod[];
  readonly format: FormatOf;
  /** What was asked of formats. */
  readonly formats: FormatOption;
  readonly kv: KvName;
  readonly capacities: Capacities;
  /** Adapters of the largest rank that pages are for where their number was not given. */
  readonly largest: number;
  readonly policy: string;
  readonly selection: Manifest["selection"];
  readonly correction: CompileOptions["correction"] | null;
  readonly fuse: boolean;
  readonly how: Making;
  readonly relaxed: boolean;
  readonly products: Products;
  readonly progress: (p: { phase: string; done: number; total: number }) => void;
}
/** Throws WEFT_OPTION for options of another shape. */
export function checkOptions(options: CompileOptions): void {
  check(CompileOptions, options, { code: "WEFT_OPTION", where: "" });
}
/** Throws WEFT_OPTION or WEFT_CAPACITY for what this model does not allow. */
export function settingsOf(model: Model, weights: WeightSource, options: CompileOptions): Settings {
  const train = options.train ?? ["lora"];
  // Full training changes the numbers themselves.
  const formats = options.format ?? (train.includes("full") ? "f32" : "keep");
  const known = [...Object.keys(adapterMethods), "full"];
  for (const t of train) if (!known.includes(t)) throw unknown("train", known, t);
  const defaults = defaultCapacities(model.context);
  const { context = defaults.context } = options.capacities ?? {};
  if (context > model.context)
    throw new WeftError({
      code: "WEFT_CAPACITY",
      where: "capacities.context",
      expected: `at most the model's context (${model.context})`,
      found: String(context),
    });
  const blocks = defaultBlocks(context);
  const capacities = checkCapacities({ ...defaults, blocks, ...options.capacities });
  const policy = options.policy ?? "coserve";
  if (!policies().includes(policy)) throw unknown("policy", policies(), policy);
  const names = [
    ...new Set([
      ...(options.methods ?? (train.includes("full") && train.length === 1 ? [] : ["lora"])),
      ...train.filter((t) => t !== "full"),
    ]),
  ];
  const methods = names.map((name): AdapterMethod => {
    if (!Object.hasOwn(adapterMethods, name))
      throw unknown("adapter method", Object.keys(adapterMethods), name);
    return adapterMethods[name]!;
  });
  const on = options.targets ?? ["wasm", "webgpu"];
  if (options.products === "matrix" && on.includes("wasm"))
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "products: matrix",
      expected: "the target webgpu alone: CPUs have no matrix units",
      found: on.join(", "),
      hint: "compile with --target webgpu",
    });
  const selection = checkSelection(options.selection ?? null, model, names);
  return {
    targets: on.map((t) => ({ ...targets[t], ...options.limits })),
    train,
    methods,
    format: formatsOf(model, weights, formats),
    formats,
    kv: options.kv ?? "f32",
    capacities,
    largest: options.capacities?.slots ?? Math.ceil(capacities.slots / 2),
    policy,
    selection,
    correction: checkCorrection(options.correction ?? null, model, names),
    fuse: options.fuse ?? true,
    how: { cache: options.cache ?? true, quick: options.quick ?? false },
    relaxed: options.relaxed ?? false,
    products: options.products ?? "f32",
    progress: options.onProgress ?? (() => {}),
  };
}
/** A correction is a LoRA. Throws WEFT_OPTION without that method, or rows, or for a token that is none. */
function checkCorrection<C extends CompileOptions["correction"] | null>(
  said: C,
  model: Model,
  methods: readonly string[],
): C {
  if (!said) return said;
  const fail = (where: string, expected: string, found: string): never => {
    throw new WeftError({ code: "WEFT_OPTION", where: `correction${where}`, expected, found });
  };
  if (!methods.includes("lora"))
    fail("", "the method lora, which a correction is of", methods.join(", ") || "none");
  if (!said.rows.some((r) => r.labels.some((x, i) => i && x !== IGNORE)))
    fail(".rows", "rows with labels", "none");
  said.rows.forEach(({ input_ids, labels }, i) => {
    if (labels.length !== input_ids.length)
      fail(`.rows[${i}].labels`, `${input_ids.length} labels`, String(labels.length));
    const bad = [...input_ids, ...labels.filter((x) => x !== IGNORE)].find((id) => id >= model.vocab);
    if (bad !== undefined) fail(`.rows[${i}]`, `token ids below ${model.vocab}`, String(bad));
  });
  return said;
}
function unknown(where: string, all: readonly string[], found: string): WeftError {
  const hint = didYouMean(found, all);
  return new WeftError({
    ...{ code: "WEFT_OPTION", where, expected: all.join(", "), found },
    ...(hint && { hint }),
  });
}
