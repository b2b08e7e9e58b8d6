/** Adapter methods by name. */
import type { AdapterMethod } from "./adapter.ts";
import { lora } from "./lora.ts";

export const adapterMethods = { lora } as const satisfies Record<string, AdapterMethod>;
