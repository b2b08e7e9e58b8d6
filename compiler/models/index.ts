/** Model families by `model_type`. */
import { gemma2 } from "./gemma2.ts";
import { llama } from "./llama.ts";
import type { Family } from "./model.ts";
import { qwen3 } from "./qwen3.ts";

export const models: Readonly<Record<string, Family>> = {
  gemma2,
  llama,
  qwen3,
};
