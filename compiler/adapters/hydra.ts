/**
 * Hydra (Kim et al. 2023): a parallel and a sequential low-rank branch, y += s · (Bp(Ap·x) + Bs(As·y)), y
 * with its bias. Both up projections start at zero. PEFT has no such method: the folder is PEFT-shaped, with
 * a type of its own.
 */
import { add, expand, scaleBySlot, shrink, type Value } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const hydra: AdapterMethod = {
  name: "hydra",
  peftType: "HYDRA",
  when: {},
  scale: "alpha/rank",
  targets: ["o_proj", "down_proj"],
  rank: 8,
  form: "sequential",
  dropout: false,
  config: { r: "rank", lora_alpha: "alpha" },
  fixed: { bias: "none" },
  capacity: (_, __, c) => c.rank,
  tensors: (site) => [
    {
      name: "pa",
      rows: "rank",
      cols: site.inFeatures,
      axis: "in",
      trained: true,
      init: "uniform",
      key: "hydra_parallel_A.weight",
      shape: "rows",
    },
    {
      name: "pb",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      init: "zeros",
      key: "hydra_parallel_B.weight",
      shape: "columns",
    },
    {
      name: "sa",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      init: "uniform",
      key: "hydra_sequential_A.weight",
      shape: "rows",
    },
    {
      name: "sb",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      init: "zeros",
      key: "hydra_sequential_B.weight",
      shape: "columns",
    },
  ],
  output: (x, y, { branch, tensor }) => {
    const through = (v: Value, down: string, up: string): Value =>
      expand(scaleBySlot(shrink(v, tensor(down)), branch), tensor(up));
    return add(add(through(x, "pa", "pb"), through(y, "sa", "sb")), y);
  },
};
