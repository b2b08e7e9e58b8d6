/** dx = dy·W of the experts that each row chose. */
import type { Type } from "../../ops/index.ts";
import type { Body, GraphKernel } from "./body.ts";
import { experts, productByExpert, tiledByExpert } from "./experts.ts";
import { productScratch } from "./text/assemblyscript_products.ts";
import { across } from "./text/wgsl_plain.ts";

const outsOf = (b: Body): number => (b.operands[2]!.value.type as Type & { kind: "experts" }).n;

export const experts_t: GraphKernel = {
  ...experts,
  wgsl: (name, b, env) => tiledByExpert(name, b, env, outsOf(b), across),
  scratch: productScratch("turned"),
  assembly: (name, b, env) => productByExpert("turned", name, b, env, outsOf(b)),
};
