/** Ways to correct what rounding took: one file each. */
import type { Correction } from "./correction.ts";
import { eora } from "./eora.ts";
import { lrec } from "./lrec.ts";

export const corrections: readonly Correction[] = [eora, lrec];
export const correctionNames: readonly string[] = corrections.map((c) => c.name);
