/**
 * IA3 (Liu et al. 2022): one learned gain per channel. y ⊙ l on the outputs of ordinary sites; (x ⊙ l)·Wᵀ on
 * the input of the feed-forward's last matrix, PEFT's `feedforward_modules`. Gains start at 1, so that it
 * starts as the base.
 */
import { mul, slotVector, type Type } from "../../ops/index.ts";
import type { SiteSpec } from "../layers.ts";
import type { AdapterMethod } from "./adapter.ts";

const feedForward = (s: SiteSpec): boolean => s.coupling?.group === "ffn" && s.coupling.axis === "in";
type Rows = Type & { kind: "rows" };

export const ia3: AdapterMethod = {
  name: "ia3",
  peft: {
    type: "IA3",
    when: {},
    config: {},
    fixed: (_, named) => ({
      feedforward_modules: named("feedForward"),
      init_ia3_weights: true,
      fan_in_fan_out: false,
      modules_to_save: null,
    }),
    meaning: ["feedforward_modules"],
  },
  scale: "one",
  targets: ["keys", "values", "feedForward"],
  rank: 1,
  change: [{ term: "gains", of: { gain: "l" } }],
  dropout: false,
  experts: false,
  capacity: () => 1,
  tensors: (site) => [
    feedForward(site)
      ? {
          name: "l",
          rows: "one",
          cols: site.inFeatures,
          axis: "in",
          trained: true,
          kind: "dense",
          init: "ones",
          key: "ia3_l",
        }
      : {
          name: "l",
          rows: "one",
          cols: site.outFeatures,
          axis: "out",
          trained: true,
          kind: "dense",
          init: "ones",
          key: "ia3_l",
          shape: "columns",
        },
  ],
  input: (x, { site, tensor }) =>
    feedForward(site) ? mul(x, slotVector(tensor("l"), (x.type as Rows).domain, 1)) : x,
  output: (_, y, { site, tensor }) =>
    feedForward(site) ? y : mul(y, slotVector(tensor("l"), (y.type as Rows).domain, 1)),
};
