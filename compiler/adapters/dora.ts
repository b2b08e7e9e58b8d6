/**
 * DoRA (Liu et al. 2024): W' = diag(m / ‖W + sBA‖) (W + sBA), the norm of each output row taken as a
 * constant, as PEFT does. `n` holds one over the norms; a kernel makes it anew when a slot is filled and
 * after every update. Written as y + (c - 1)·(y - bias) + c·s·B(A·x), so that rows without it are exact.
 */
import {
  add,
  affine,
  expand,
  mul,
  scaleBySlot,
  shrink,
  slotVector,
  sub,
  type Type,
} from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";
import { lora } from "./lora.ts";

export const dora: AdapterMethod = {
  ...lora,
  name: "dora",
  peft: { ...lora.peft, when: { use_dora: true }, fixed: { ...lora.peft.fixed, use_dora: true } },
  change: [...lora.change!, { term: "magnitudes", of: { m: "m" } }],
  dropout: false,
  experts: false,
  tensors: (site, capacity) => [
    ...lora.tensors(site, capacity),
    {
      name: "m",
      rows: "one",
      cols: site.outFeatures,
      axis: "out",
      trained: true,
      kind: "dense",
      init: "norm",
      key: "lora_magnitude_vector",
      shape: "vector",
    },
    {
      name: "n",
      rows: "one",
      cols: site.outFeatures,
      axis: "out",
      trained: false,
      kind: "dense",
      init: "zeros",
      key: null,
      shape: "vector",
    },
  ],
  rowNorms: { a: "a", b: "b", out: "n" },
  output: (x, y, { branch, tensor, bias }) => {
    const { domain } = y.type as Type & { kind: "rows" };
    const c = mul(slotVector(tensor("m"), domain, 1), slotVector(tensor("n"), domain, 1));
    const delta = expand(scaleBySlot(shrink(x, tensor("a")), branch), tensor("b"));
    const plain = bias ? sub(y, bias) : y;
    return add(add(mul(affine(c, { scale: 1, shift: -1 }), plain), mul(c, delta)), y);
  },
};
