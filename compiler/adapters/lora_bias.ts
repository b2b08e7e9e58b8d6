/**
 * LoRA that trains the biases of its modules too (PEFT's `bias: "lora_only"`; BitFit, Ben Zaken et al. 2022):
 * y += s · B(A·x) + (b' - b).
 */
import { rebias } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";
import { lora } from "./lora.ts";

export const loraBias: AdapterMethod = {
  ...lora,
  name: "lora_bias",
  when: { ...lora.when, bias: "lora_only" },
  form: "biased",
  fixed: { ...lora.fixed, bias: "lora_only" },
  tensors: (site, capacity) => [
    ...lora.tensors(site, capacity),
    ...(site.bias
      ? [
          {
            name: "bias",
            rows: "one",
            cols: site.outFeatures,
            axis: "out",
            trained: true,
            init: "bias",
            key: "base_layer.bias",
            shape: "vector",
          } as const,
        ]
      : []),
  ],
  output: (x, y, c) =>
    c.bias ? rebias(lora.output!(x, y, c), c.tensor("bias"), c.bias) : lora.output!(x, y, c),
};
