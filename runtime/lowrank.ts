/** Products Bᵀ·A of few rows, as what is added to a matrix. */
export interface LowRank {
  readonly rank: number;
  /** [rank, in]. */
  readonly a: Float32Array;
  /** [rank, out], the branch's scale folded in. */
  readonly b: Float32Array;
}
/** W [out, in] += Σ Bᵀ·A, summed in f64. */
export function addDeltas(w: Float32Array, deltas: readonly LowRank[]): void {
  for (const { rank, a, b } of deltas) {
    const [columns, outs] = [a.length / rank, b.length / rank];
    for (let o = 0; o < outs; o++)
      for (let i = 0; i < columns; i++) {
        let sum = 0;
        for (let r = 0; r < rank; r++) sum += b[r * outs + o]! * a[r * columns + i]!;
        w[o * columns + i] = w[o * columns + i]! + sum;
      }
  }
}
