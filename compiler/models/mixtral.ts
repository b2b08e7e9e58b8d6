/** The Mixtral family: as Mistral, with a mixture of experts for a feed-forward. GGUF files call it Llama. */
import { decoderSizes } from "./config.ts";
import {
  decoderConfig,
  decoderModules,
  expertModules,
  halves,
  mixtureConfig,
  mixtureSays,
  named,
} from "./gguf.ts";
import { above0OrNull, only } from "./keys.ts";
import type { Family, Json, Model } from "./model.ts";
import { mixtureDecoder, mixtureKeys, mixtureSizes, selfAttention } from "./parts.ts";

const modules = { module: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" } as const;
const absent = { rms_norm_eps: 1e-5, rope_theta: 1e6 };

function read(config: Json): Model {
  const own = ["hidden_act", "sliding_window", ...mixtureKeys];
  const d = decoderSizes(config, own, absent);
  only(config, "hidden_act", "silu");
  const window = above0OrNull(config, "sliding_window", null);
  const attention = selfAttention(d, { attending: { window: window !== null } });
  const windows = window && { perLayer: { window: Array<number>(d.layers).fill(window) } };
  const sizes = mixtureSizes(config, { top: 2, normed: true });
  return mixtureDecoder("mixtral", d, attention, sizes, modules, windows || {});
}

export const mixtral: Family = {
  read,
  loadedBy: "MixtralForCausalLM",
  gguf: {
    architecture: "llama",
    mixture: true,
    config: (g) => ({ model_type: "mixtral", ...decoderConfig(g), ...mixtureConfig(g), hidden_act: "silu" }),
    ...named({ ...decoderModules, ...expertModules(modules) }),
    layout: halves,
    says: (m, config) => mixtureSays(m, config, absent),
  },
};
