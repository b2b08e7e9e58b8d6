/** The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU. */
import { allAttend, decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, halves, named } from "./gguf.ts";
import { only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, residual, rms, selfAttention, swiglu } from "./parts.ts";

function read(config: Json): Model {
  const d = decoderSizes(config, ["attention_bias", "mlp_bias", "hidden_act", "layer_types"]);
  only(config, "hidden_act", "silu");
  only(config, "rope_interleaved", false);
  only(config, "pretraining_tp", 1);
  allAttend(config);
  const attention = selfAttention(d, { bias: config.attention_bias === true });
  return {
    family: "llama",
    ...d,
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(attention, swiglu(d, config.mlp_bias === true)), rms(d)),
    head: head(d),
  };
}

export const llama: Family = {
  loadedBy: "LlamaForCausalLM",
  read,
  gguf: {
    architecture: "llama",
    config: (g) => ({
      model_type: "llama",
      ...decoderConfig(g),
      attention_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      mlp_bias: g.shapeOf("blk.0.ffn_down.bias") !== undefined,
      hidden_act: "silu",
    }),
    ...named(decoderModules),
    layout: halves,
    says: decoderSays,
  },
};
