/** The OLMo 2 family: norms after attention and feed-forward, and one over all of queries and of keys. */
import { allAttend, decoderSizes } from "./config.ts";
import {
  decoderConfig,
  decoderModules,
  decoderSays,
  named,
  normedAfter,
  queryKeyNorms,
  whole,
} from "./gguf.ts";
import { only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, residual, rms, selfAttention, swiglu } from "./parts.ts";

function read(config: Json): Model {
  const d = decoderSizes(config, ["attention_bias", "hidden_act", "layer_types"], { rms_norm_eps: 1e-5 });
  only(config, "hidden_act", "silu");
  allAttend(config);
  const attention = selfAttention(d, { bias: config.attention_bias === true, norm: rms(d) });
  return {
    family: "olmo2",
    ...d,
    names: decoderNames,
    embed: embedding(d),
    layer: residual(
      [
        { run: attention, after: "post_attention_layernorm" },
        { run: swiglu(d), after: "post_feedforward_layernorm" },
      ],
      rms(d),
    ),
    head: head(d),
  };
}

export const olmo2: Family = {
  loadedBy: "Olmo2ForCausalLM",
  read,
  gguf: {
    architecture: "olmo2",
    config: (g) => ({
      model_type: "olmo2",
      ...decoderConfig(g),
      attention_bias: g.shapeOf("blk.0.attn_q.bias") !== undefined,
      hidden_act: "silu",
    }),
    ...named({ ...decoderModules, ...normedAfter, ...queryKeyNorms }),
    layout: whole,
    says: decoderSays,
  },
};
