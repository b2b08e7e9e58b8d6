/** The formats, a line each. */
import { bf16 } from "./bf16.ts";
import { f16 } from "./f16.ts";
import { f32 } from "./f32.ts";
import type { WeightFormat } from "./format.ts";
import { int8 } from "./int8.ts";
import { q4 } from "./q4.ts";

export const weightFormats = { f32, f16, bf16, int8, q4 } satisfies Readonly<Record<string, WeightFormat>>;
export type Format = keyof typeof weightFormats;
export const formats = Object.keys(weightFormats) as readonly Format[];
/** The format of a name that the graph carries. */
export function formatOf(name: string): WeightFormat {
  if (!Object.hasOwn(weightFormats, name)) throw new Error(`no weight format named ${name}`);
  return weightFormats[name as Format];
}
