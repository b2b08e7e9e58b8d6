/**
 * The Phi-3 family (3.5 and 4-mini too): as Llama, with queries, keys and values one projection, and gate and
 * up one; heads may turn in part.
 */
import { decoderSizes } from "./config.ts";
import { decoderConfig, decoderModules, decoderSays, named, saysMore, u32, whole } from "./gguf.ts";
import { above0OrNull, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import {
  decoderNames,
  embedding,
  fusedAttention,
  fusedSwiglu,
  head,
  preNorm,
  residual,
  rms,
} from "./parts.ts";

const own = ["attention_bias", "hidden_act", "partial_rotary_factor", "sliding_window"];

function read(config: Json): Model {
  const d = decoderSizes(config, own, { rms_norm_eps: 1e-5 });
  only(config, "hidden_act", "silu");
  only(config, "attention_bias", false);
  const window = above0OrNull(config, "sliding_window", null);
  const modules = { module: "self_attn", qkv: "qkv_proj", out: "o_proj" };
  const attention = fusedAttention(d, modules, { attending: { window: window !== null } });
  return {
    family: "phi3",
    ...d,
    ...(window && { perLayer: { window: Array<number>(d.layers).fill(window) } }),
    names: decoderNames,
    embed: embedding(d),
    layer: residual(preNorm(attention, fusedSwiglu(d)), rms(d)),
    head: head(d),
  };
}

export const phi3: Family = {
  loadedBy: "Phi3ForCausalLM",
  read,
  gguf: {
    architecture: "phi3",
    config: (g) => ({
      model_type: "phi3",
      ...decoderConfig(g),
      original_max_position_embeddings: g.number(
        "rope.scaling.original_context_length",
        g.number("context_length"),
      ),
      // None is 0.
      sliding_window: g.number("attention.sliding_window", 0) || null,
      hidden_act: "silu",
    }),
    ...named({
      ...decoderModules,
      "model.layers.{l}.self_attn.qkv_proj": "blk.{l}.attn_qkv",
      "model.layers.{l}.mlp.gate_up_proj": "blk.{l}.ffn_up",
    }),
    layout: whole,
    says: (m, config) =>
      saysMore(decoderSays(m, config), {
        "attention.sliding_window": u32(m.perLayer.window?.[0] ?? 0),
        "rope.scaling.original_context_length": u32(
          Number(config.original_max_position_embeddings ?? m.context),
        ),
      }),
  },
};
