/** Adapter methods by name. */
import type { AdapterMethod } from "./adapter.ts";
import { parallel, series } from "./bottleneck.ts";
import { dora } from "./dora.ts";
import { hydra } from "./hydra.ts";
import { ia3 } from "./ia3.ts";
import { lora } from "./lora.ts";
import { s2ft } from "./s2ft.ts";

export const adapterMethods: Readonly<Record<string, AdapterMethod>> = { lora, dora, s2ft, ia3, parallel, series, hydra };
