/** Model families by `model_type`. */
import { llama } from "./llama.ts";
import type { Model } from "./model.ts";

export const models: Readonly<Record<string, (config: Readonly<Record<string, unknown>>) => Model>> = {
  llama,
};
