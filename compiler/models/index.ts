/** Model families by `model_type`. */
import { gemma2 } from "./gemma2.ts";
import { gemma3 } from "./gemma3.ts";
import { gpt2 } from "./gpt2.ts";
import { granite } from "./granite.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { mixtral } from "./mixtral.ts";
import type { Family } from "./model.ts";
import { olmo2 } from "./olmo2.ts";
import { olmoe } from "./olmoe.ts";
import { phi3 } from "./phi3.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";
import { qwen3Moe } from "./qwen3_moe.ts";
import { smollm3 } from "./smollm3.ts";
import { starcoder2 } from "./starcoder2.ts";

export const models: Readonly<Record<string, Family>> = {
  gemma2,
  gemma3_text: gemma3,
  gpt2,
  granite,
  llama,
  mistral,
  mixtral,
  olmo2,
  olmoe,
  phi3,
  qwen2,
  qwen3,
  qwen3_moe: qwen3Moe,
  smollm3,
  starcoder2,
};
