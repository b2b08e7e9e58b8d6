/**
 * What fine-tuning a model by each method takes, from its shape alone: no weights are read. `weft inspect
 * --memory` prints it.
 */

import { type Format, layersWith, optimizers, storedBytes } from "../runtime/bundle.ts";
import { adapterMethods } from "./adapters/index.ts";
import { checkConfig } from "./config.ts";
import type { ParamSpec } from "./layers.ts";
import { models } from "./models/index.ts";
import { buildPrograms } from "./programs/index.ts";
import { defaultCapacities } from "./target.ts";

export { presets } from "./presets.ts";

export interface MethodMemory {
  readonly method: string;
  /** Numbers that training moves. */
  readonly trainable: number;
  /** Base weights: in the format where they are frozen, f32 for `full`. */
  readonly weightBytes: number;
  /**
   * Kept from the forward for all tokens of a step: as much as `all` keeps; as little as `boundary` keeps;
   * what is read when nothing is recomputed.
   */
  readonly savedBytes: number;
  readonly boundaryBytes: number;
  readonly readBytes: number;
  /** Gradients and AdamW's two moments, f32. */
  readonly stateBytes: number;
}
/**
 * Memory of one optimizer step of `tokens` tokens by each adapter method (rank for those that have one) and
 * `full`; frozen weights stored as `format`.
 */
export function planMemory(
  config: Readonly<Record<string, unknown>>,
  tokens: number,
  rank: number,
  format: Format,
): MethodMemory[] {
  const model = models[String(checkConfig(config, "config.json").model_type)]!.read(config);
  const capacities = { ...defaultCapacities(model.context), rank };
  const methods = [...Object.keys(adapterMethods), "full"];
  const all = methods.map((method): MethodMemory => {
    const full = method === "full";
    const programs = buildPrograms(model, capacities, {
      format: () => (full ? "f32" : format),
      kv: "f32",
      methods: full ? [] : [adapterMethods[method]!],
      train: [method],
    });
    const sum = (of: (p: ParamSpec) => number): number =>
      programs.layerParams.reduce((n, p) => n + layersWith(model, p).length * of(p), 0) +
      programs.outerParams.reduce((n, p) => n + of(p), 0);
    const parameters = sum((p) => p.n * p.k);
    const branches = programs.branches.reduce(
      (n, b) =>
        n +
        layersWith(model, b.site).length *
          b.tensors.reduce((m, t) => m + (t.trained ? (t.rows === "rank" ? b.capacity : 1) * t.cols : 0), 0),
      0,
    );
    const trainable = full ? parameters : branches;
    const { bytes } = programs.saved[method]!;
    const rows = tokens * model.layers;
    return {
      method,
      trainable,
      weightBytes: sum((p) => (p.kind === "vector" ? 4 * p.n * p.k : storedBytes(p.format, p.n, p.k))),
      savedBytes: bytes.all * rows,
      boundaryBytes: bytes.boundary * rows,
      readBytes: bytes.read * rows,
      stateBytes: 4 * (1 + optimizers.adamw.states.length) * trainable,
    };
  });
  // Some models have nothing that a method changes by default.
  return all.filter(({ trainable }) => trainable > 0);
}
