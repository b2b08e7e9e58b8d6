/**
 * The OLMoE family: norms over all queries and over all keys, and a mixture of experts for a feed-forward.
 */
import { decoderSizes } from "./config.ts";
import {
  decoderConfig,
  decoderModules,
  expertModules,
  mixtureConfig,
  mixtureSays,
  named,
  queryKeyNorms,
  whole,
} from "./gguf.ts";
import { only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { mixtureDecoder, mixtureKeys, mixtureSizes, rms, selfAttention } from "./parts.ts";

// A bound on queries, keys and values (clip_qkv) is none of these: it is refused by its name.
const own = ["attention_bias", "hidden_act", "norm_topk_prob", ...mixtureKeys];
const modules = { module: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" } as const;

function read(config: Json): Model {
  const d = decoderSizes(config, own, { rms_norm_eps: 1e-5 });
  only(config, "hidden_act", "silu");
  const normed = config.norm_topk_prob === true;
  const attention = selfAttention(d, { bias: config.attention_bias === true, norm: rms(d) });
  return mixtureDecoder("olmoe", d, attention, mixtureSizes(config, { top: 8, normed }), modules);
}

export const olmoe: Family = {
  read,
  loadedBy: "OlmoeForCausalLM",
  gguf: {
    architecture: "olmoe",
    mixture: true,
    config: (g) => {
      const clip = g.get("attention.clamp_kqv");
      if (clip !== undefined) g.refuse("attention.clamp_kqv", "no bound on queries, keys and values", clip);
      return {
        model_type: "olmoe",
        ...decoderConfig(g),
        ...mixtureConfig(g),
        norm_topk_prob: false,
        attention_bias: false,
        hidden_act: "silu",
      };
    },
    ...named({ ...decoderModules, ...queryKeyNorms, ...expertModules(modules) }),
    layout: whole,
    says: mixtureSays,
  },
};
