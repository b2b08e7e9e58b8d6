/** Model families by `model_type`. */
import { llama } from "./llama.ts";
import type { Family } from "./model.ts";
import { qwen3 } from "./qwen3.ts";

export const models: Readonly<Record<string, Family>> = {
  llama,
  qwen3,
};
