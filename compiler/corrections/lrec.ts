/**
 * INT2.1's error correction (Chai et al. 2023, LREC): an adapter that makes what leaves a rounded matrix what
 * left the exact one. The paper trains it; a matrix at a time it is least squares, solved here. Let X be what
 * enters in the exact model and Y what enters in the rounded one, as corrected so far: of all D of the rank,
 * ‖W·Xᵀ − (Q(W) + D)·Yᵀ‖² + λ · ‖ΔW − D‖² is least at the projection of M = ΔW + W·(X − Y)ᵀ·(YYᵀ + λ)⁻¹·Y
 * onto the leading eigenvectors of M·(YᵀY + λ)·Mᵀ. So an error that earlier layers left is corrected too, as
 * far as it shows in Y.
 */
import { transpose } from "../../runtime/bundle.ts";
import { type Correction, difference } from "./correction.ts";
import { dampingOf, leading, solved } from "./lowrank.ts";
import type { Product } from "./product.ts";

/** Of what enters several matrices, once: ((YYᵀ + λ)⁻¹·Y)ᵀ, [in, rows]. */
const inverses = new WeakMap<Float32Array, Float32Array>();
function inverseOf(product: Product, enters: Float32Array, rows: number, ins: number): Float32Array {
  const known = inverses.get(enters);
  if (known) return known;
  const gram = Float64Array.from(product(enters, enters, rows, rows, ins));
  const damping = dampingOf(enters, ins);
  for (let i = 0; i < rows; i++) gram[i * rows + i] = gram[i * rows + i]! + damping;
  const inverse = transpose(solved(gram, rows, enters, ins), rows, ins);
  inverses.set(enters, inverse);
  return inverse;
}
export const lrec: Correction = {
  name: "lrec",
  fit: (product, { exact, held, entersExact, enters, shape }, rank) => {
    const [out, ins] = shape;
    const rows = enters.length / ins;
    const missing = product(exact, difference(entersExact, enters), out, rows, ins);
    const m = product(missing, inverseOf(product, enters, rows, ins), out, ins, rows);
    for (let i = 0; i < m.length; i++) m[i] = m[i]! + exact[i]! - held[i]!;
    return leading(product, m, enters, shape, rank);
  },
};
