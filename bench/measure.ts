/** Medians, spreads and tables; ids to feed a model. */
export const ids = (n: number, seed: number, vocab: number): number[] =>
  Array.from({ length: n }, (_, i) => (i * 7919 + seed * 104729 + 13) % vocab);
export const median = (xs: readonly number[]): number => quantile(xs, 0.5);
export function quantile(xs: readonly number[], q: number): number {
  const s = [...xs].sort((a, b) => a - b);
  return s[Math.min(s.length - 1, Math.floor(s.length * q))] ?? 0;
}
/** median (min–max). */
export const spread = (xs: readonly number[], digits = 0): string =>
  `${median(xs).toFixed(digits)} (${Math.min(...xs).toFixed(digits)}–${Math.max(...xs).toFixed(digits)})`;
export function table(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]!.map((_, i) => Math.max(...rows.map((r) => (r[i] ?? "").length)));
  for (const r of rows)
    console.log(r.map((c, i) => (i ? c.padStart(widths[i]!) : c.padEnd(widths[0]!))).join("  "));
}
export async function timed<T>(f: () => Promise<T>): Promise<[number, T]> {
  const t0 = performance.now();
  const out = await f();
  return [performance.now() - t0, out];
}
