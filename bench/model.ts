/** The random model that benches share, and ids to feed it. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeSafetensors } from "../sdk/index.ts";
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
    writeFileSync(join(dir, "model.safetensors"), encodeSafetensors(tensorsOf(config)));
  }
  return dir;
}
export const ids = (n: number, seed: number, vocab: number): number[] => Array.from({ length: n }, (_, i) => (i * 7919 + seed * 104729 + 13) % vocab);
