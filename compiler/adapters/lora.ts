/**
 * LoRA (Hu et al. 2021): y += s · B(A·drop(x)), s = alpha/r, or alpha/√r for rsLoRA (Kalajdzievski 2023). B
 * is kept transposed, [r, out].
 */
import {
  add,
  dropout,
  expand,
  expandExperts,
  scaleBySlot,
  shrink,
  shrinkExperts,
  type Type,
} from "../../ops/index.ts";
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
  experts: true,
  capacity: (site, __, c) => (site.experts ? c.experts : c.rank),
  tensors: ({ inFeatures, outFeatures, experts = 1 }) => [
    {
      name: "a",
      rows: "rank",
      cols: experts * inFeatures,
      axis: "in",
      trained: true,
      kind: "dense",
      init: "uniform",
      key: "lora_A.weight",
    },
    {
      name: "b",
      rows: "rank",
      cols: experts * outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
      init: "zeros",
      key: "lora_B.weight",
      shape: "columns",
    },
  ],
  output: (x, y, { branch, site, tensor, chosen }) => {
    if (chosen) {
      const a = tensor("a");
      const u = shrinkExperts(dropout(x, site.index), a, chosen, site.experts!);
      const scaled = scaleBySlot(u, branch, (a.type as Type & { kind: "factor" }).rows);
      return add(expandExperts(scaled, tensor("b"), chosen, site.experts!), y);
    }
    const u = scaleBySlot(shrink(dropout(x, site.index), tensor("a")), branch);
    return add(expand(u, tensor("b")), y);
  },
};
