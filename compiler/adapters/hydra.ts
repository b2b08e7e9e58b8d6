/**
 * Hydra (Kim et al. 2023): a parallel and a sequential low-rank branch, y += s · (Bp(Ap·x) + Bs(As·y)), y
 * with its bias. Both up projections start at zero. PEFT has no such method: the folder is PEFT-shaped, with
 * a type of its own.
 */
import { add, expand, scaleBySlot, shrink, type Value } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const hydra: AdapterMethod = {
  name: "hydra",
  peft: {
    type: "HYDRA",
    when: {},
    config: { r: "rank", lora_alpha: "alpha" },
    fixed: { bias: "none" },
  },
  scale: "alpha/rank",
  targets: ["attention", "feedForward"],
  rank: 8,
  // The sequential branch has y as the base alone makes it.
  change: [
    { term: "after", of: { a: "sa", b: "sb" } },
    { term: "product", of: { a: "pa", b: "pb" } },
  ],
  dropout: false,
  experts: false,
  capacity: (_, __, c) => c.rank,
  tensors: (site) => [
    {
      name: "pa",
      rows: "rank",
      cols: site.inFeatures,
      axis: "in",
      trained: true,
      kind: "dense",
      init: "uniform",
      key: "hydra_parallel_A.weight",
    },
    {
      name: "pb",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
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
      kind: "dense",
      init: "uniform",
      key: "hydra_sequential_A.weight",
    },
    {
      name: "sb",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
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
