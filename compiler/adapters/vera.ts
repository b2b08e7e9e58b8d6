/**
 * VeRA (Kopiczko et al. 2023): y += b ⊙ B(d ⊙ A·x). A and B are random, frozen and the same at every site, as
 * far as it is wide; the vectors d and b are trained. b starts at zero. B is kept transposed, [r, out].
 */
import { add, dropout, expand, mul, shrink, slotVector, type Type } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const vera: AdapterMethod = {
  name: "vera",
  peft: {
    type: "VERA",
    when: {},
    config: { r: "rank", vera_dropout: "dropout" },
    // A generator of torch's makes A and B of a file that has not got them.
    fixed: {
      projection_prng_key: 0,
      save_projection: true,
      d_initial: 1,
      bias: "none",
      fan_in_fan_out: false,
      init_weights: true,
      modules_to_save: null,
      layers_to_transform: null,
    },
  },
  scale: "one",
  targets: "all-linear",
  rank: null,
  change: [{ term: "product", of: { a: "pa", b: "pb", inner: "d", outer: "b" } }],
  dropout: true,
  experts: false,
  capacity: (_, __, c) => c.rank,
  tensors: (site) => [
    {
      name: "pa",
      rows: "rank",
      cols: site.inFeatures,
      axis: "in",
      trained: false,
      kind: "shared",
      init: "projection",
      key: "base_model.vera_A",
    },
    {
      name: "pb",
      rows: "rank",
      cols: site.outFeatures,
      axis: "out",
      trained: false,
      kind: "shared",
      init: "projection",
      key: "base_model.vera_B",
      shape: "columns",
    },
    {
      name: "d",
      rows: "rank",
      cols: 1,
      trained: true,
      kind: "dense",
      init: "ones",
      key: "vera_lambda_d",
      shape: "vector",
    },
    {
      name: "b",
      rows: "one",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
      init: "zeros",
      key: "vera_lambda_b",
      shape: "vector",
    },
  ],
  output: (x, y, { site, tensor }) => {
    const { domain } = y.type as Type & { kind: "rows" };
    const u = mul(shrink(dropout(x, site.index), tensor("pa")), slotVector(tensor("d"), domain, 0));
    return add(mul(expand(u, tensor("pb")), slotVector(tensor("b"), domain, 0)), y);
  },
};
