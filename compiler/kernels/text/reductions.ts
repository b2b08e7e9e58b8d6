/** Reductions over the columns of a row, as both targets spell them. */
import type { Stat } from "../body.ts";

/** How a reduction is spelt: where it starts, a step of one lane (and of four), lanes folded into one. */
interface Reduction {
  readonly wgsl: {
    readonly start: string;
    readonly step: (sum: string, x: string) => string;
    readonly fold: string;
  };
  readonly assembly: {
    readonly start: string;
    readonly step4: string;
    readonly step: (sum: string, x: string) => string;
    readonly fold: string;
  };
}
export const reductions: Readonly<Record<Stat["reduce"], Reduction>> = {
  sum: {
    wgsl: { start: "0.0f", step: (sum, x) => `${sum} = ${sum} + ${x};`, fold: "fold_sum" },
    assembly: { start: "0", step4: "add", step: (sum, x) => `${sum} += ${x};`, fold: "hsum" },
  },
  max: {
    wgsl: { start: "-3.0e38f", step: (sum, x) => `${sum} = max(${sum}, ${x});`, fold: "fold_max" },
    assembly: {
      start: "-3.0e38",
      step4: "pmax",
      step: (sum, x) => `${sum} = ${sum} < ${x} ? ${x} : ${sum};`,
      fold: "hmax",
    },
  },
};
