/**
 * Sparse fine-tuning: single entries of a matrix are trained, as many as LoRA of the same rank has numbers,
 * and served as a sparse delta. Chosen at random (SHiRA, Bhardwaj et al. 2024, whose PEFT container it
 * shares), by the size of the weights, or as those that moved most in a full fine-tuning (LT-SFT, Ansell et
 * al. 2022; here the largest of each matrix).
 */
import { add, sparse as product, sparseIndex } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const sparse: AdapterMethod = {
  name: "sparse",
  peft: {
    type: "SHIRA",
    when: {},
    config: { r: "rank" },
    fixed: { mask_type: "random", init_weights: true, fan_in_fan_out: false, modules_to_save: null },
  },
  scale: "one",
  targets: ["queries", "values"],
  rank: 8,
  change: [{ term: "entries", of: { index: "index", values: "values" } }],
  dropout: false,
  experts: false,
  capacity: (site, _, c) =>
    Math.min(c.rank * (site.inFeatures + site.outFeatures), site.inFeatures * site.outFeatures),
  tensors: (site, entries) => [
    {
      name: "index",
      rows: "one",
      cols: sparseIndex(entries, site.outFeatures, site.inFeatures).words,
      trained: false,
      kind: "entries",
      init: "entries",
      key: "shira_indices",
    },
    {
      name: "values",
      rows: "rank",
      cols: 1,
      trained: true,
      kind: "dense",
      init: "zeros",
      key: "shira_weight",
      shape: "vector",
    },
  ],
  output: (x, y, { site, tensor }) => add(product(x, tensor("values"), tensor("index"), site.outFeatures), y),
};
