/** What the formats make of values, a line each. */
import { bf16Values } from "./bf16.ts";
import { f16Values } from "./f16.ts";
import { f32Values } from "./f32.ts";
import type { FormatValues } from "./format.ts";
import type { Format } from "./index.ts";
import { int8Values } from "./int8.ts";
import { q4Values } from "./q4.ts";

export const formatValues: Readonly<Record<Format, FormatValues>> = {
  f32: f32Values,
  f16: f16Values,
  bf16: bf16Values,
  int8: int8Values,
  q4: q4Values,
};
