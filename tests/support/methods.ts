/** Bundles and jobs of every adapter method. */
import type { FinetuneOptions } from "../../sdk/index.ts";
import { batchOf } from "./engines.ts";

export const every = [
  "lora",
  "dora",
  "s2ft",
  "ia3",
  "parallel",
  "series",
  "hydra",
  "prefix",
  "prompt",
  "sparse",
  "lora_bias",
  "s2ft_permuted",
] as const;
export const vocab = 128;
/** A selection of 16 feed-forward channels and one of the two key heads of each layer. */
export const selection = {
  layers: [3, 5].map((step, l) => ({
    ffn: Array.from({ length: 16 }, (_, i) => (7 + i * step) % 128),
    groups: [1 - l],
  })),
  selector: "random",
};
/** A bundle that serves and trains every method, on a permuted base; S2FT on all its sites. */
export const all = (target: "wasm" | "webgpu") => ({
  targets: [target],
  train: [...every],
  selection,
  capacities: {
    savedRows: 80,
    keptRows: 32,
    unitRows: 64,
    slots: 6,
    s2ft: { sites: ["o_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], parameters: 5 * 16 * 64 },
  },
});
const rows = batchOf(vocab);
export const short = rows.filter((r) => r.input_ids.length < 40);
export const jobOf = (method: string): FinetuneOptions => ({
  name: method,
  method,
  data: short,
  steps: 2,
  batchSize: 3,
  learningRate: 0.02,
  seed: 4,
  ...(method === "lora" && { dropout: 0.1 }),
});
