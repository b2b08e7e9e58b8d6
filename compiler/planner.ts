/**
 * What fine-tuning a model by each method takes, from its shape alone: no weights are read. `weft inspect
 * --memory` prints it.
 */

import { optimizers } from "../runtime/bundle.ts";
import { adapterMethods } from "./adapters/index.ts";
import { checkConfig } from "./config.ts";
import { models } from "./models/index.ts";
import { buildPrograms } from "./programs/index.ts";
import { defaultCapacities } from "./target.ts";

export interface MethodMemory {
  readonly method: string;
  /** Numbers that training moves. */
  readonly trainable: number;
  /** Base weights: f16 where they are frozen, f32 for `full`. */
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
const llama = {
  model_type: "llama",
  hidden_size: 4096,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
  tie_word_embeddings: false,
} as const;
/** Shapes of well-known models, from their config.json. */
export const shapes: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "llama-2-7b": {
    ...llama,
    num_key_value_heads: 32,
    intermediate_size: 11008,
    vocab_size: 32000,
    max_position_embeddings: 4096,
  },
  "llama-3-8b": {
    ...llama,
    num_key_value_heads: 8,
    intermediate_size: 14336,
    vocab_size: 128256,
    max_position_embeddings: 8192,
    rope_theta: 500000,
  },
};

/**
 * Memory of one optimizer step of `tokens` tokens by each adapter method (rank for those that have one) and
 * `full`.
 */
export function planMemory(
  config: Readonly<Record<string, unknown>>,
  tokens: number,
  rank: number,
): MethodMemory[] {
  const model = models[String(checkConfig(config, "config.json").model_type)]!.read(config);
  const capacities = { ...defaultCapacities(model.context), rank };
  return [...Object.keys(adapterMethods), "full"].map((method): MethodMemory => {
    const full = method === "full";
    const programs = buildPrograms(model, capacities, {
      format: () => "f32",
      methods: full ? [] : [adapterMethods[method]!],
      train: [method],
    });
    const perLayer = programs.layerParams.reduce((n, p) => n + p.n * p.k, 0);
    const outer = programs.outerParams.reduce((n, p) => n + p.n * p.k, 0);
    const parameters = model.layers * perLayer + outer;
    const branches = programs.branches.reduce(
      (n, b) =>
        n +
        b.tensors.reduce((m, t) => m + (t.trained ? (t.rows === "rank" ? b.capacity : 1) * t.cols : 0), 0),
      0,
    );
    const trainable = full ? parameters : model.layers * branches;
    const { bytes } = programs.saved[method]!;
    const rows = tokens * model.layers;
    return {
      method,
      trainable,
      weightBytes: parameters * (full ? 4 : 2),
      savedBytes: bytes.all * rows,
      boundaryBytes: bytes.boundary * rows,
      readBytes: bytes.read * rows,
      stateBytes: 4 * (1 + optimizers.adamw.states.length) * trainable,
    };
  });
}
