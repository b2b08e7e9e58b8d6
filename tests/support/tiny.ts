/** Tiny random model folders for tests. */
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { encode, type TensorData } from "../../runtime/bundle.ts";
import { tensor } from "./random.ts";

export type Config = Readonly<Record<string, unknown>> & {
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly intermediate_size: number;
  readonly vocab_size: number;
};
/** Odd sizes: GQA 6/2, hidden 96, vocab 259, head_dim 20 ≠ 96/6, untied, biases, llama3 scaling. */
export const odd: Config = {
  model_type: "llama",
  hidden_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  head_dim: 20,
  intermediate_size: 150,
  vocab_size: 259,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  rope_scaling: {
    rope_type: "llama3",
    factor: 4,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 64,
  },
  tie_word_embeddings: false,
  attention_bias: true,
  mlp_bias: true,
  hidden_act: "silu",
  bos_token_id: 1,
  eos_token_id: 2,
};
/** Even sizes, tied: GQA 4/2, hidden 64, vocab 128. */
export const even: Config = {
  model_type: "llama",
  hidden_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  intermediate_size: 128,
  vocab_size: 128,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  attention_bias: false,
  mlp_bias: false,
  hidden_act: "silu",
  bos_token_id: 1,
  eos_token_id: 2,
};

/** Heads with keys of their own, with biases; and one key head for all. */
export const mha: Config = { ...even, num_key_value_heads: 4, attention_bias: true, mlp_bias: true };
export const mqa: Config = { ...even, num_key_value_heads: 1 };

/** Tiny models of other families, as make_families.py has them; names and shapes of their tensors. */
const json = (file: string): unknown =>
  JSON.parse(readFileSync(fileURLToPath(new URL(`../fixtures/${file}`, import.meta.url)), "utf8"));
export type FamilyName = keyof typeof import("../fixtures/families_config.json");
export const families = json("families_config.json") as Readonly<Record<FamilyName, Config>>;
export interface FamilyTensors {
  readonly shapes: Readonly<Record<string, readonly number[]>>;
  /** llama.cpp's names; null where it calls the family by another's. */
  readonly gguf: Readonly<Record<string, string>> | null;
}
const tensors = json("families.json") as Readonly<Record<FamilyName, FamilyTensors>>;
/** What the tensors of a family's tiny model are called, of one of this width; undefined of Llama. */
export function tensorsOfFamily({ model_type, hidden_size }: Config): FamilyTensors | undefined {
  const names = (Object.keys(families) as FamilyName[]).filter((n) => families[n].model_type === model_type);
  const name = names.find((n) => families[n].hidden_size === hidden_size) ?? names[0];
  return name && tensors[name];
}

/** Names and shapes of a folder's tensors. */
export function tensorShapes(c: Config): { name: string; shape: number[] }[] {
  const hd = (c.head_dim as number | undefined) ?? c.hidden_size / c.num_attention_heads;
  const known = tensorsOfFamily(c);
  if (known) return Object.entries(known.shapes).map(([name, shape]) => ({ name, shape: [...shape] }));
  const out: { name: string; shape: number[] }[] = [];
  const put = (name: string, shape: number[]): void => {
    out.push({ name, shape });
  };
  put("model.embed_tokens.weight", [c.vocab_size, c.hidden_size]);
  for (let l = 0; l < c.num_hidden_layers; l++) {
    const p = `model.layers.${l}.`;
    put(`${p}input_layernorm.weight`, [c.hidden_size]);
    put(`${p}post_attention_layernorm.weight`, [c.hidden_size]);
    const linear = (name: string, n: number, k: number, bias: unknown): void => {
      put(`${p}${name}.weight`, [n, k]);
      if (bias) put(`${p}${name}.bias`, [n]);
    };
    linear("self_attn.q_proj", c.num_attention_heads * hd, c.hidden_size, c.attention_bias);
    linear("self_attn.k_proj", c.num_key_value_heads * hd, c.hidden_size, c.attention_bias);
    linear("self_attn.v_proj", c.num_key_value_heads * hd, c.hidden_size, c.attention_bias);
    linear("self_attn.o_proj", c.hidden_size, c.num_attention_heads * hd, c.attention_bias);
    linear("mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear("mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias);
    linear("mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias);
  }
  put("model.norm.weight", [c.hidden_size]);
  if (!c.tie_word_embeddings) put("lm_head.weight", [c.vocab_size, c.hidden_size]);
  return out;
}
export const tensorsOf = (c: Config, seed = 0): TensorData[] =>
  tensorShapes(c).map(({ name, shape }) => ({ name, shape, dtype: "F32", data: tensor(name, shape, seed) }));
/** A folder of its own; a run of tests removes all in the end. */
export function scratch(prefix = "weft-test-"): string {
  return mkdtempSync(join(process.env.WEFT_SCRATCH ?? tmpdir(), prefix));
}
/** Write a model folder; returns its path. */
export function writeModel(c: Config, seed = 0, dir = scratch()): string {
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, "config.json"), JSON.stringify(c));
  writeFileSync(join(dir, "model.safetensors"), encode(tensorsOf(c, seed)));
  return dir;
}
