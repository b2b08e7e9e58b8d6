/** Adapter methods by name. */
import type { AdapterMethod } from "./adapter.ts";
import { parallel, series } from "./bottleneck.ts";
import { dora } from "./dora.ts";
import { hydra } from "./hydra.ts";
import { ia3 } from "./ia3.ts";
import { lora } from "./lora.ts";
import { loraBias } from "./lora_bias.ts";
import { s2ft } from "./s2ft.ts";
import { s2ftPermuted } from "./s2ft_permuted.ts";
import { sparse } from "./sparse.ts";
import { vera } from "./vera.ts";
import { prefix, prompt } from "./virtual.ts";

export const adapterMethods: Readonly<Record<string, AdapterMethod>> = {
  lora,
  lora_bias: loraBias,
  dora,
  s2ft,
  s2ft_permuted: s2ftPermuted,
  ia3,
  parallel,
  series,
  hydra,
  prefix,
  prompt,
  sparse,
  vera,
};
