/** The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU. */
import { allAttend, decoderSizes, only } from "./config.ts";
import { decoderConfig, decoderModules, halves, named } from "./gguf.ts";
import type { Family, Json, Model } from "./model.ts";
import { decoderNames, embedding, head, preNorm, selfAttention, swiglu } from "./parts.ts";

function read(config: Json): Model {
  const d = decoderSizes(config, ["attention_bias", "mlp_bias", "hidden_act", "layer_types"]);
  only(config, "hidden_act", "silu");
  only(config, "rope_interleaved", false);
  only(config, "pretraining_tp", 1);
  allAttend(config);
  const bias = config.attention_bias === true;
  return {
    family: "llama",
    ...d,
    names: decoderNames,
    embed: embedding(d),
    layer: preNorm(
      d,
      (b, x, positions) => selfAttention(b, x, positions, d, { bias }),
      (b, x) => swiglu(b, x, d, config.mlp_bias === true),
    ),
    head: head(d),
  };
}

export const llama: Family = {
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
    name: named(decoderModules),
    // Its converter alone turns the heads of queries and keys.
    restore: (name, rows, from, to, config) =>
      /\.[qk]_proj\./.test(name) ? halves(rows, from, to, config.head_dim as number) : rows(from, to),
  },
};
