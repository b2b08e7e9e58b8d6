/**
 * LoRA (Hu et al. 2021): y += s · B(A·drop(x)), s = alpha/r, or alpha/√r for rsLoRA (Kalajdzievski 2023). B
 * is kept transposed, [r, out].
 */
import { add, dropout, expand, scaleBySlot, shrink } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const lora: AdapterMethod = {
  name: "lora",
  peft: {
    type: "LORA",
    when: { use_dora: false },
    config: {
      r: "rank",
      lora_alpha: "alpha",
      lora_dropout: "dropout",
      use_rslora: "rslora",
      rank_pattern: "rankPattern",
      alpha_pattern: "alphaPattern",
    },
    fixed: {
      bias: "none",
      fan_in_fan_out: false,
      init_lora_weights: true,
      modules_to_save: null,
      layers_to_transform: null,
    },
  },
  scale: "alpha/rank",
  targets: "all-linear",
  rank: 8,
  change: [{ term: "product", of: { a: "a", b: "b" } }],
  dropout: true,
  capacity: (_, __, c) => c.rank,
  tensors: (site) => [
    {
      name: "a",
      rows: "rank",
      cols: site.inFeatures,
      axis: "in",
      trained: true,
      kind: "dense",
      init: "uniform",
      key: "lora_A.weight",
    },
    {
      name: "b",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
      init: "zeros",
      key: "lora_B.weight",
      shape: "columns",
    },
  ],
  output: (x, y, { branch, site, tensor }) => {
    const u = scaleBySlot(shrink(dropout(x, site.index), tensor("a")), branch);
    return add(expand(u, tensor("b")), y);
  },
};
