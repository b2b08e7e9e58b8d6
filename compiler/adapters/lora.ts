/** LoRA (Hu et al. 2021): y += s · B(A·drop(x)), s = alpha/r, or alpha/√r for rsLoRA (Kalajdzievski 2023). B is kept transposed, [r, out]. */
import { add, dropout, expand, scaleBySlot, shrink } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

export const lora: AdapterMethod = {
  name: "lora",
  apply: ({ x, y, site, rank, factor }) => {
    const u = scaleBySlot(shrink(dropout(x, site.index), factor("a", site.inFeatures), rank), site.index);
    return add(expand(u, factor("b", site.outFeatures)), y);
  },
};
