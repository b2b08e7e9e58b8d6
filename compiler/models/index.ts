/** Model families by `model_type`. */
import { llama } from "./llama.ts";
import type { Family } from "./model.ts";

export const models: Readonly<Record<string, Family>> = {
  llama,
};
