/**
 * Tokens of an adapter's own before every sequence. Prefix tuning (Li & Liang 2021): in every layer their
 * keys and values are trained, and enter the cache as they are, after rotation. Prompt tuning (Lester et al.
 * 2021): their embeddings are. They take the sequence's first positions; text begins after them, as in PEFT.
 */
import { overlay } from "../../ops/index.ts";
import type { AdapterMethod } from "./adapter.ts";

const files = { when: {}, config: { num_virtual_tokens: "rank" } } as const;
const common = {
  scale: "one",
  targets: "all-linear",
  rank: null,
  change: null,
  dropout: false,
  experts: false,
  virtual: true,
  capacity: (_, __, c) => c.rank,
} as const satisfies Partial<AdapterMethod>;

export const prefix: AdapterMethod = {
  ...common,
  name: "prefix",
  at: "cache",
  peft: {
    ...files,
    type: "PREFIX_TUNING",
    fixed: (m) => ({
      num_layers: m.layers,
      num_attention_heads: m.kvHeads,
      token_dim: m.kvHeads * m.headDim,
      num_transformer_submodules: 1,
      encoder_hidden_size: m.kvHeads * m.headDim,
      prefix_projection: false,
    }),
    meaning: ["prefix_projection"],
  },
  tensors: (site) =>
    (["k", "v"] as const).map((name) => ({
      name,
      rows: "rank",
      cols: site.inFeatures,
      axis: "in",
      trained: true,
      kind: "beside",
      init: "uniform",
      key: "prompt_embeddings",
    })),
  cache: (part, x, { tensor }) => overlay(x, tensor(part)),
};
export const prompt: AdapterMethod = {
  ...common,
  name: "prompt",
  at: "entry",
  layers: "first",
  peft: {
    ...files,
    type: "PROMPT_TUNING",
    fixed: (m) => ({
      num_layers: m.layers,
      num_attention_heads: m.heads,
      token_dim: m.hiddenSize,
      num_transformer_submodules: 1,
      prompt_tuning_init: "RANDOM",
    }),
  },
  tensors: (site) => [
    {
      name: "tokens",
      rows: "rank",
      cols: site.inFeatures,
      trained: true,
      kind: "beside",
      init: "tokens",
      key: "prompt_embeddings",
    },
  ],
  input: (x, { tensor }) => overlay(x, tensor("tokens")),
};
