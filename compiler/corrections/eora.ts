/**
 * EoRA (Liu et al. 2024, §3): ΔW = W − Q(W), weighed by the covariance C of what enters the matrix in the
 * model as it was; the best of its rank under ‖(ΔW − BA)·C^½‖. No training.
 */
import { type Correction, difference } from "./correction.ts";
import { leading } from "./lowrank.ts";

export const eora: Correction = {
  name: "eora",
  fit: (product, { exact, held, entersExact, shape }, rank) =>
    leading(product, difference(exact, held), entersExact, shape, rank),
};
