/** The WebGPU kernels of a model's shape, without its weights. */
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { emitTarget } from "../../compiler/emit/target.ts";
import { launchesOf } from "../../compiler/fuse.ts";
import { layoutOf } from "../../compiler/layout.ts";
import { models } from "../../compiler/models/index.ts";
import { openModel } from "../../compiler/open.ts";
import type { CompileOptions } from "../../compiler/options.ts";
import { presets } from "../../compiler/presets.ts";
import { buildPrograms } from "../../compiler/programs/index.ts";
import { settingsOf } from "../../compiler/settings.ts";
import { targets } from "../../compiler/target.ts";
import type { TargetEntry } from "../../runtime/bundle.ts";
import { generator } from "../../tests/support/random.ts";

export type Config = Readonly<Record<string, unknown>>;
const llama = (more: Config): Config => ({
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  rms_norm_eps: 1e-5,
  attention_bias: false,
  mlp_bias: false,
  hidden_act: "silu",
  bos_token_id: 0,
  eos_token_id: 1,
  ...more,
  max_position_embeddings: 2048,
  rope_theta: 500000,
  rope_scaling: null,
  tie_word_embeddings: true,
});
export const shapes: Readonly<Record<string, Config>> = {
  "llama-1b": llama(presets["llama-3.2-1b"]!),
  "llama-8b": llama({ ...presets["llama-3-8b"]!, head_dim: 128 }),
  "smollm2-135m": llama({ ...presets["smollm2-135m"]!, head_dim: 64 }),
  /** For software adapters. */
  tiny: llama({
    hidden_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 32,
    intermediate_size: 256,
    vocab_size: 1024,
  }),
};

/** A folder with a checkpoint: of holes, or of the same mebibyte of small random numbers again and again. */
export function checkpoint(config: Config, filled = false): string {
  const n = (key: string): number => Number(config[key]);
  const [d, hd, f, vocab] = [n("hidden_size"), n("head_dim"), n("intermediate_size"), n("vocab_size")];
  const [q, kv] = [n("num_attention_heads") * hd, n("num_key_value_heads") * hd];
  const shapeOf: Record<string, readonly number[]> = { embed_tokens: [vocab, d], norm: [d] };
  for (let l = 0; l < n("num_hidden_layers"); l++)
    for (const [name, shape] of Object.entries({
      input_layernorm: [d],
      post_attention_layernorm: [d],
      "self_attn.q_proj": [q, d],
      "self_attn.k_proj": [kv, d],
      "self_attn.v_proj": [kv, d],
      "self_attn.o_proj": [d, q],
      "mlp.gate_proj": [f, d],
      "mlp.up_proj": [f, d],
      "mlp.down_proj": [d, f],
    }))
      shapeOf[`layers.${l}.${name}`] = shape;
  let at = 0;
  const header = Object.entries(shapeOf).map(([name, shape]) => {
    const from = at;
    at += 2 * shape.reduce((a, b) => a * b);
    return [`model.${name}.weight`, { dtype: "BF16", shape, data_offsets: [from, at] }];
  });
  const json = JSON.stringify(Object.fromEntries(header));
  const folder = mkdtempSync(join(tmpdir(), "weft-shape-"));
  const file = openSync(join(folder, "model.safetensors"), "w");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeSync(file, length);
  writeSync(file, json);
  ftruncateSync(file, 8 + json.length + at);
  if (filled) {
    const next = generator("checkpoint");
    const numbers = Float32Array.from({ length: 2 ** 19 }, () => ((next() % 2001) - 1000) / 50000);
    const halves = new Uint16Array(numbers.buffer).filter((_, i) => i & 1);
    const block = new Uint8Array(halves.buffer);
    for (let done = 0; done < at; done += block.length)
      writeSync(file, block, 0, Math.min(block.length, at - done), 8 + json.length + done);
  }
  closeSync(file);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}

export interface Kernels {
  readonly plan: TargetEntry;
  /** By name. */
  readonly texts: ReadonlyMap<string, string>;
}
/** What a bundle of the shape, or of the model in a folder, holds for WebGPU. */
export async function kernelsOf(model: Config | string, options: CompileOptions): Promise<Kernels> {
  const folder = typeof model === "string" ? model : checkpoint(model);
  try {
    const source = await openModel(folder);
    const built = models[String(source.config.model_type)]!.read(source.config);
    const settings = settingsOf(built, source.weights, { ...options, targets: ["webgpu"] });
    const programs = buildPrograms(built, settings.capacities, settings);
    const launches = launchesOf(built, programs, settings);
    const layout = layoutOf(built, programs, settings, targets.webgpu);
    const { plan, sources } = emitTarget(targets.webgpu, built, settings, programs, launches, layout);
    return { plan, texts: new Map(sources.map((s) => [s.name, s.text])) };
  } finally {
    if (folder !== model) rmSync(folder, { recursive: true });
  }
}
