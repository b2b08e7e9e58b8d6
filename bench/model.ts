/** The random model that benches share. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encode } from "../runtime/safetensors.ts";
import { ggufName, interleaved, writeGguf } from "../tests/support/gguf.ts";
import { type Config, even, tensorsOf } from "../tests/support/tiny.ts";

export const random: Config = {
  ...even,
  hidden_size: 256,
  num_hidden_layers: 6,
  head_dim: 64,
  intermediate_size: 688,
  vocab_size: 2048,
  max_position_embeddings: 512,
  eos_token_id: null,
};
/** A folder with random weights of a shape (by default 6 × 256), written once. */
export function randomModel(config: Config = random): string {
  const dir = join(tmpdir(), `weft-bench-${config.num_hidden_layers}x${config.hidden_size}`);
  if (!existsSync(join(dir, "model.safetensors"))) {
    mkdirSync(dir, { recursive: true });
    writeFileSync(join(dir, "config.json"), JSON.stringify(config));
    writeFileSync(join(dir, "model.safetensors"), encode(tensorsOf(config)));
  }
  return dir;
}
/** The shape of SmolLM2-135M. */
export const smol: Config = {
  ...even,
  hidden_size: 576,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  head_dim: 64,
  intermediate_size: 1536,
  vocab_size: 49152,
  max_position_embeddings: 2048,
  rope_theta: 100000,
  eos_token_id: null,
};
/** The same random weights as a GGUF file in F32, for llama.cpp. */
export function randomGguf(config: Config): string {
  const path = join(randomModel(config), "model.gguf");
  if (!existsSync(path)) writeGgufF32(path, config, tensorsOf(config));
  return path;
}
/** A Llama model as a GGUF file in F32; its vocabulary is made up: who reads it is asked in ids. */
export function writeGgufF32(
  path: string,
  config: Config,
  tensors: readonly { readonly name: string; readonly shape: readonly number[]; readonly data: unknown }[],
): void {
  const vocab = Array.from({ length: config.vocab_size }, (_, i) => `t${i}`);
  const meta = {
    "general.architecture": "llama",
    "llama.vocab_size": config.vocab_size,
    "llama.block_count": config.num_hidden_layers,
    "llama.context_length": Number(config.max_position_embeddings),
    "llama.embedding_length": config.hidden_size,
    "llama.feed_forward_length": config.intermediate_size,
    "llama.attention.head_count": config.num_attention_heads,
    "llama.attention.head_count_kv": config.num_key_value_heads,
    "llama.attention.layer_norm_rms_epsilon": Float32Array.of(Number(config.rms_norm_eps)),
    "llama.rope.freq_base": Float32Array.of(Number(config.rope_theta)),
    "llama.rope.dimension_count": Number(config.head_dim ?? config.hidden_size / config.num_attention_heads),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": vocab,
    "tokenizer.ggml.token_type": vocab.map(() => 1),
    "tokenizer.ggml.merges": ["t 1"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
  };
  const converted = tensors.map((t) => {
    const values = t.data as Float32Array;
    const heads = t.name.includes("q_proj")
      ? config.num_attention_heads
      : t.name.includes("k_proj")
        ? config.num_key_value_heads
        : 0;
    const data = heads ? interleaved(values, t.shape[0]!, heads) : values;
    return {
      name: `${ggufName(t.name, config)}`,
      shape: t.shape,
      type: 0,
      data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    };
  });
  writeFileSync(path, writeGguf(meta, converted));
}
/** Capacities of a bundle that benches play beside others: prompts of 512 tokens, jobs of 256. */
export const served = {
  ...{ context: 640, tokens: 512, headRows: 32, sequences: 8, blocks: 160, savedRows: 256, keptRows: 256 },
  ...{ unitRows: 128, quantum: 32, slots: 2, jobs: 1 },
} as const;
