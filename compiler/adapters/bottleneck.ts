/**
 * Bottleneck adapters (Houlsby et al. 2019; He et al. 2022) in the shape LLM-Adapters gives them: tanh
 * between a down and an up projection, no biases. Parallel: y += U·tanh(D·x). Series: y += U·tanh(D·y), on
 * the output of the site. Up starts at zero, so that they start as the base.
 */
import { add, expand, shrink, tanh, type Value } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

const bottleneck = (name: string, parallel: boolean): AdapterMethod => ({
  name,
  peft: {
    type: "BOTTLENECK",
    when: { use_parallel_adapter: parallel },
    config: { bottleneck_size: "rank" },
    fixed: {
      non_linearity: "tanh",
      use_parallel_adapter: parallel,
      use_adapterp: false,
      scaling: 1,
      bias: "none",
      init_weights: "mam_adapter",
    },
    meaning: ["non_linearity", "use_adapterp", "scaling"],
  },
  scale: "one",
  targets: ["attention", "feedForward"],
  rank: 8,
  change: null,
  dropout: false,
  experts: false,
  capacity: (_, __, c) => c.rank,
  tensors: (site) => [
    {
      name: "down",
      rows: "rank",
      cols: parallel ? site.inFeatures : site.outFeatures,
      axis: parallel ? "in" : "out",
      trained: true,
      kind: "dense",
      init: "uniform",
      key: "adapter_down.weight",
    },
    {
      name: "up",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
      init: "zeros",
      key: "adapter_up.weight",
      shape: "columns",
    },
  ],
  output: (x: Value, y: Value, { tensor }) =>
    add(expand(tanh(shrink(parallel ? x : y, tensor("down"))), tensor("up")), y),
});
export const parallel = bottleneck("parallel", true);
export const series = bottleneck("series", false);
