/** The Qwen3 family with a mixture of experts for a feed-forward; some layers may be dense. */
import { decoderSizes } from "./config.ts";
import {
  decoderConfig,
  decoderModules,
  expertModules,
  mixtureConfig,
  mixtureSays,
  named,
  queryKeyNorms,
  saysMore,
  u32,
  whole,
} from "./gguf.ts";
import { count, fail, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { mixtureDecoder, mixtureKeys, mixtureSizes, perHead, selfAttention } from "./parts.ts";

const own = [
  "attention_bias",
  "hidden_act",
  "use_sliding_window",
  // Read only where use_sliding_window is true.
  "sliding_window",
  "max_window_layers",
  "decoder_sparse_step",
  "mlp_only_layers",
  "moe_intermediate_size",
  "norm_topk_prob",
  ...mixtureKeys,
];
const modules = { module: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" } as const;
/** Of layers without experts. */
const absent = { intermediate_size: 6144 };

function read(config: Json): Model {
  const dense = decoderSizes(config, own, absent);
  only(config, "hidden_act", "silu");
  only(config, "use_sliding_window", false);
  const step = count(config, "decoder_sparse_step", 1);
  const apart = config.mlp_only_layers ?? [];
  if (!(Array.isArray(apart) && apart.every((l) => Number.isInteger(l) && l >= 0 && l < dense.layers)))
    fail("mlp_only_layers", `layers below ${dense.layers}`, apart);
  const layers = Array.from({ length: dense.layers }, (_, l) => apart.includes(l) || (l + 1) % step !== 0);
  const d = { ...dense, ffn: count(config, "moe_intermediate_size", 768) };
  const normed = config.norm_topk_prob === true;
  const attention = selfAttention(d, { bias: config.attention_bias === true, norm: perHead(d) });
  const sizes = mixtureSizes(config, { top: 8, normed });
  const { ffn } = dense;
  return mixtureDecoder("qwen3_moe", d, attention, sizes, modules, { dense: { layers, ffn } });
}

export const qwen3Moe: Family = {
  read,
  loadedBy: "Qwen3MoeForCausalLM",
  gguf: {
    architecture: "qwen3moe",
    mixture: true,
    config: (g) => ({
      model_type: "qwen3_moe",
      ...decoderConfig(g),
      ...mixtureConfig(g),
      moe_intermediate_size: g.number("expert_feed_forward_length"),
      norm_topk_prob: true,
      attention_bias: false,
      hidden_act: "silu",
    }),
    ...named({ ...decoderModules, ...queryKeyNorms, ...expertModules(modules) }),
    layout: whole,
    says: (m, config) =>
      saysMore(mixtureSays(m, config), {
        // Of layers without experts.
        feed_forward_length: u32(Number(config.intermediate_size ?? absent.intermediate_size)),
        expert_feed_forward_length: u32(m.ffn),
      }),
  },
};
