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
  peft: {
    ...lora.peft,
    when: { ...lora.peft.when, bias: "lora_only" },
    fixed: { ...lora.peft.fixed, bias: "lora_only" },
  },
  change: [...lora.change!, { term: "bias", of: { bias: "bias" } }],
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
            kind: "dense",
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
