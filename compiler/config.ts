/**
 * Model files of others, each described once: config.json, the index of sharded weights,
 * tokenizer_config.json. What is known of them is checked before anything is built; what changes the maths
 * and is unknown, families refuse.
 */
import * as v from "valibot";
import {
  above0,
  boolean,
  check,
  fileName,
  foreign,
  integer,
  oneOf,
  record,
  text,
} from "../runtime/schema.ts";
import { models } from "./models/index.ts";

type Json = Readonly<Record<string, unknown>>;
/** Larger than any model that there is: what is beyond is a mistake, or asks for memory that nobody has. */
const width = integer(1, 2 ** 20);
const optional = <const S extends v.GenericSchema>(s: S) => v.nullish(s);
const Config = foreign({
  model_type: oneOf(Object.keys(models)),
  hidden_size: optional(width),
  intermediate_size: optional(width),
  moe_intermediate_size: optional(width),
  num_experts: optional(integer(1, 2 ** 12)),
  num_local_experts: optional(integer(1, 2 ** 12)),
  num_experts_per_tok: optional(integer(1, 2 ** 8)),
  num_hidden_layers: optional(integer(1, 2 ** 12)),
  num_attention_heads: optional(integer(1, 2 ** 14)),
  num_key_value_heads: optional(integer(1, 2 ** 14)),
  head_dim: optional(integer(1, 2 ** 14)),
  vocab_size: optional(integer(1, 2 ** 24)),
  max_position_embeddings: optional(integer(1)),
  rms_norm_eps: optional(above0),
  rope_theta: optional(above0),
  rope_scaling: optional(foreign({})),
  rope_parameters: optional(foreign({ rope_theta: optional(above0) })),
  tie_word_embeddings: optional(boolean),
  attention_bias: optional(boolean),
  mlp_bias: optional(boolean),
});
/** config.json, or what a GGUF file says of itself. Throws WEFT_CONFIG. */
export const checkConfig = (json: unknown, where: string): Json =>
  check(Config, json, { code: "WEFT_CONFIG", where }) as Json;

const Index = foreign({ weight_map: record(fileName) });
/** model.safetensors.index.json: the shards, by tensor. Throws WEFT_WEIGHTS. */
export function shardsOf(json: unknown, where: string): string[] {
  const { weight_map } = check(Index, json, { code: "WEFT_WEIGHTS", where });
  return [...new Set(Object.values(weight_map))];
}

const Tokenizer = foreign({ model: foreign({}), decoder: v.nullable(foreign({})) });
/** tokenizer.json, as far as every kind of tokenizer has it. Throws WEFT_TOKENIZER. */
export const checkTokenizer = (json: unknown, where: string): void =>
  void check(Tokenizer, json, { code: "WEFT_TOKENIZER", where });

const special = v.nullish(
  v.union([text, foreign({ content: text })], "a token, or an object with its content"),
);
const TokenizerConfig = foreign({
  tokenizer_class: v.nullish(text),
  bos_token: special,
  eos_token: special,
  pad_token: special,
  unk_token: special,
  add_bos_token: v.nullish(boolean),
  add_eos_token: v.nullish(boolean),
  chat_template: v.nullish(
    v.union([text, v.array(foreign({ name: text, template: text }))], "a template, or a list of named ones"),
  ),
});
/** tokenizer_config.json. Throws WEFT_TOKENIZER. */
export const checkTokenizerConfig = (json: unknown, where: string): Json =>
  check(TokenizerConfig, json, { code: "WEFT_TOKENIZER", where }) as Json;
