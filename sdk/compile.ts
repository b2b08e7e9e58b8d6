/** What happens ahead of time, in Node. The compiler is only loaded when it is asked for. */
import type { CompileOptions } from "../compiler/compile.ts";
import type { MethodMemory } from "../compiler/planner.ts";
import { type Manifest, WeftError } from "../runtime/bundle.ts";
import { claimFolder } from "../runtime/folder.ts";
import { checked } from "../runtime/options.ts";
import { object } from "../runtime/schema.ts";
import { type Calibrate, calibrateEntries, MemoryOptions } from "./options.ts";

export type { Calibrate, CompileOptions, MemoryOptions, MethodMemory };

/**
 * Compile a Hugging Face model folder, or a GGUF file, into a bundle folder. `calibrate` names rows. With
 * `correct` an adapter is fitted by them to what rounding takes of the matrices: `eora`, or `lrec`, which
 * also counts what earlier layers left. Without, the bundle also trains S2FT of the class `permuted`, on
 * channels that they choose now.
 */
export async function compile(
  folder: string,
  out: string,
  o: CompileOptions & {
    readonly calibrate?: Calibrate;
    readonly correct?: "eora" | "lrec";
  } = {},
): Promise<Manifest> {
  const { compileEntries, compileTo } = await import("../compiler/compile.ts");
  checked(object({ ...calibrateEntries, ...compileEntries }), o);
  const { calibrate, correct, ...options } = o;
  if (correct !== undefined && !calibrate)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "correct",
      expected: "rows to calibrate on beside it: `calibrate`",
      found: "none",
    });
  if (!calibrate) return compileTo(folder, out, options);
  await claimFolder(out, "bundle");
  const { calibrationRows, chooseSelection } = await import("./calibrate.ts");
  if (correct !== undefined)
    return compileTo(folder, out, {
      ...options,
      correction: { method: correct, rows: await calibrationRows(folder, calibrate.data) },
    });
  const train = [...new Set([...(options.train ?? ["lora"]), "s2ft_permuted"])];
  return compileTo(folder, out, {
    ...options,
    train,
    selection: await chooseSelection(folder, calibrate, options),
  });
}

/**
 * What fine-tuning takes by each method (weights, saved activations, gradients and moments, in bytes), from a
 * model's shape alone: a config.json as an object, or a preset (`llama-3.2-1b`, say; another name is told all
 * of them). `tokens` of one optimizer step; `rank` for methods that have one; `format` of frozen weights.
 * Throws WEFT_OPTION or WEFT_CONFIG.
 */
export async function planMemory(
  model: string | Readonly<Record<string, unknown>>,
  o: MemoryOptions = {},
): Promise<MethodMemory[]> {
  checked(MemoryOptions, o);
  const { planMemory, presets } = await import("../compiler/planner.ts");
  const config = typeof model !== "string" ? model : Object.hasOwn(presets, model) ? presets[model] : null;
  if (!config)
    throw new WeftError({
      code: "WEFT_OPTION",
      where: "model",
      expected: `a config or ${Object.keys(presets).join(", ")}`,
      found: String(model),
    });
  return planMemory(config, o.tokens ?? 512, o.rank ?? 16, o.format ?? "f16");
}
