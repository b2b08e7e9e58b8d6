/** What adapter_config.json may ask for that changes the maths and is not there: refused by name. */
import type { MethodEntry } from "../../runtime/bundle.ts";
import { show } from "../../runtime/schema.ts";
import { fail, type Json } from "./folder.ts";

const given = (v: unknown): boolean => v !== null && v !== undefined;
const features: Readonly<Record<string, (v: unknown) => boolean>> = {
  lora_bias: Boolean,
  bias: (v) => given(v) && v !== "none",
  trainable_token_indices: given,
  target_parameters: (v) => Array.isArray(v) && v.length > 0,
  layer_replication: given,
  alora_invocation_tokens: given,
  use_qalora: Boolean,
  use_bdlora: Boolean,
  fan_in_fan_out: Boolean,
  arrow_config: given,
  kasa_config: given,
  megatron_config: given,
  monteclora_config: given,
  velora_config: given,
};

/** Throws WEFT_ADAPTER for a feature that the method is not known by. */
export function refuseFeatures(json: Json, { peft }: MethodEntry, where: string): void {
  for (const [key, isOn] of Object.entries(features))
    if (isOn(json[key]) && peft.when[key] !== json[key] && peft.fixed[key] !== json[key])
      fail(`${where}: ${key}`, "a feature this build supports", show(json[key]));
  const init = json.init_lora_weights;
  if (typeof init === "string" && /^(pissa|olora|corda|lora_ga|loftq)/.test(init))
    fail(
      `${where}: init_lora_weights`,
      "an adapter of the original base",
      show(init),
      "WEFT_ADAPTER",
      "convert it to an ordinary LoRA with peft first",
    );
}
