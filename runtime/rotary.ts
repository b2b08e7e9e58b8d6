/** Rotary tables: what a layer turns its queries and keys by. */
import type { RopeEntry } from "./manifest.ts";

/** Tables one after another: each [positions][half cosines | half sines], from f64. */
export function rotaryTables(ropes: readonly RopeEntry[], context: number): Float32Array {
  const half = ropes[0]?.inverseFrequencies.length ?? 0;
  const out = new Float32Array(ropes.length * context * 2 * half);
  ropes.forEach(({ inverseFrequencies, scale, long }, t) => {
    const frequencies = long && context > long.beyond ? long.inverseFrequencies : inverseFrequencies;
    for (let p = 0; p < context; p++)
      frequencies.forEach((f, i) => {
        const at = (t * context + p) * 2 * half + i;
        out[at] = scale * Math.cos(p * f);
        out[at + half] = scale * Math.sin(p * f);
      });
  });
  return out;
}
