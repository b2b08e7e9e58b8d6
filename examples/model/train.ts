/**
 * Makes the example model with weft's own full training, from nothing: language → tokenizer → random weights
 * → optimizer steps. Resumable: run it again and it goes on from the last checkpoint. Writes
 * examples/model/story and its loss log.
 *
 *   npm run example:train            (about 15 minutes on 2 cores)
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { compile, type DataRow, encodeSafetensors, load } from "../../sdk/index.ts";
import { chatTemplate, Draws, document, end } from "./language.ts";
import { trainTokenizer } from "./tokenizer.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
export const recipe = {
  vocab: 512,
  hidden: 128,
  layers: 4,
  heads: 4,
  kvHeads: 2,
  ffn: 320,
  context: 320,
  steps: 1100,
  batch: 24,
  learningRate: 3e-3,
  warmup: 60,
  seed: 7,
} as const;
export const work = fileURLToPath(new URL("../../.weft/example/", import.meta.url));

/**
 * Config, tokenizer and initial weights (normal, σ = 0.02·√(128/fan-in)-like, from seeded integers) as a
 * Hugging Face folder.
 */
export async function makeInitial(dir: string): Promise<void> {
  const r = recipe;
  mkdirSync(dir, { recursive: true });
  const sample = new Draws(r.seed);
  const { tokenizer, config } = trainTokenizer(
    Array.from({ length: 3000 }, () => document(sample).replaceAll(end, "")),
    r.vocab,
    ["<s>", end],
    chatTemplate,
  );
  writeFileSync(join(dir, "tokenizer.json"), JSON.stringify(tokenizer));
  writeFileSync(join(dir, "tokenizer_config.json"), JSON.stringify(config));
  writeFileSync(
    join(dir, "config.json"),
    JSON.stringify(
      {
        architectures: ["LlamaForCausalLM"],
        model_type: "llama",
        hidden_size: r.hidden,
        num_hidden_layers: r.layers,
        num_attention_heads: r.heads,
        num_key_value_heads: r.kvHeads,
        head_dim: r.hidden / r.heads,
        intermediate_size: r.ffn,
        vocab_size: r.vocab,
        max_position_embeddings: r.context,
        rms_norm_eps: 1e-5,
        rope_theta: 10000,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        hidden_act: "silu",
        bos_token_id: 0,
        eos_token_id: 1,
      },
      null,
      2,
    ),
  );
  const hd = r.hidden / r.heads;
  const draws = new Draws(r.seed + 1);
  const tensors: [string, number[], Float32Array][] = [];
  const matrix = (name: string, n: number, k: number, sigma: number): void => {
    // The sum of four uniforms: near enough to normal, and made of integers alone.
    const data = Float32Array.from(
      { length: n * k },
      () =>
        ((draws.below(65536) + draws.below(65536) + draws.below(65536) + draws.below(65536)) / 65536 - 2) *
        sigma *
        1.7320508,
    );
    tensors.push([name, [n, k], data]);
  };
  const ones = (name: string): void =>
    void tensors.push([name, [r.hidden], new Float32Array(r.hidden).fill(1)]);
  matrix("model.embed_tokens.weight", r.vocab, r.hidden, 0.05);
  for (let l = 0; l < r.layers; l++) {
    const p = `model.layers.${l}.`;
    ones(`${p}input_layernorm.weight`);
    ones(`${p}post_attention_layernorm.weight`);
    const s = 1 / Math.sqrt(r.hidden);
    const out = 1 / Math.sqrt(2 * r.layers);
    matrix(`${p}self_attn.q_proj.weight`, r.heads * hd, r.hidden, s);
    matrix(`${p}self_attn.k_proj.weight`, r.kvHeads * hd, r.hidden, s);
    matrix(`${p}self_attn.v_proj.weight`, r.kvHeads * hd, r.hidden, s);
    matrix(`${p}self_attn.o_proj.weight`, r.hidden, r.heads * hd, s * out);
    matrix(`${p}mlp.gate_proj.weight`, r.ffn, r.hidden, s);
    matrix(`${p}mlp.up_proj.weight`, r.ffn, r.hidden, s);
    matrix(`${p}mlp.down_proj.weight`, r.hidden, r.ffn, out / Math.sqrt(r.ffn));
  }
  ones("model.norm.weight");
  writeFileSync(
    join(dir, "model.safetensors"),
    await encodeSafetensors(
      tensors.map(([name, shape, data]) => ({ name, shape, dtype: "F32" as const, data })),
    ),
  );
}

export const capacities = {
  context: 320,
  tokens: 256,
  savedRows: 4608,
  keptRows: 4608,
  quantum: 64,
  unitRows: 256,
  units: 64,
  blocks: 320,
  sequences: 64,
  headRows: 64,
  slots: 1,
  jobs: 1,
  rank: 4,
} as const;
/** Rows of the training text: documents packed two or three to a row, each after its start mark. */
export function trainingRows(n: number, seed: number): { rows: DataRow[]; texts: string[][]; nats: number } {
  const d = new Draws(seed);
  const texts = Array.from({ length: n }, () => [document(d), document(d)]);
  return { rows: [], texts, nats: d.nats };
}
export function encodeRows(
  texts: readonly (readonly string[])[],
  encode: (s: string) => number[],
): { input_ids: number[] }[] {
  return texts.map((docs) => ({ input_ids: docs.flatMap(encode) }));
}

/** The recipe as options of a job. */
export const training = {
  name: "story",
  method: "full",
  steps: recipe.steps,
  batchSize: recipe.batch,
  learningRate: recipe.learningRate,
  schedule: "cosine",
  warmupSteps: recipe.warmup,
  weightDecay: 0.01,
  betas: [0.9, 0.98],
  maxGradNorm: 1,
  shuffle: false,
} as const;

async function main(): Promise<void> {
  const init = join(work, "init");
  const checkpoint = join(work, "checkpoint");
  if (!existsSync(join(init, "model.safetensors"))) await makeInitial(init);
  await compile(init, join(work, "train.weft"), { targets: ["wasm"], train: ["full"], capacities });
  await using engine = await load(join(work, "train.weft"), { device: "wasm" });
  const { texts, nats } = trainingRows(recipe.steps * recipe.batch, recipe.seed + 2);
  const data = encodeRows(texts, (s) => engine.encode(s));
  const learned = data.reduce((n, r) => n + r.input_ids.length - 1, 0);
  // Every document's end, and each row's first token, are certain or unlearned; what is left to know is what
  // was drawn.
  const entropy = nats / learned;
  const held = encodeRows(trainingRows(60, recipe.seed + 3).texts, (s) => engine.encode(s));
  const log: { step: number; loss: number }[] = [];
  console.error(
    `entropy ${entropy.toFixed(4)} nats a token, ${learned} tokens, ` +
      `${engine.manifest.model.parameters} parameters`,
  );
  const t0 = performance.now();
  const job = await engine.finetune({
    ...training,
    data,
    ...(existsSync(checkpoint) && { resume: checkpoint }),
    onEvent: (e) => {
      if (e.type !== "step") return;
      log.push({ step: e.step, loss: e.loss });
      if (e.step % 10 === 0)
        console.error(
          `step ${e.step} loss ${e.loss.toFixed(4)} ${Math.round(e.tokensPerSecond)} tokens/s ` +
            `${((performance.now() - t0) / 1000).toFixed(0)} s`,
        );
      if (e.step % 200 === 0 && e.step < recipe.steps) void job.checkpoint(checkpoint).catch(() => {});
    },
  });
  const { losses } = await job.done;
  let sum = 0;
  let n = 0;
  for (const r of held) {
    const s = await engine.score(r.input_ids);
    sum += s.loss * s.logprobs.length;
    n += s.logprobs.length;
  }
  console.error(`held-out loss ${(sum / n).toFixed(4)}, ${(sum / n / entropy).toFixed(3)} × entropy`);
  await engine.saveModel(join(here, "story"));
  writeFileSync(
    join(here, "story-log.json"),
    JSON.stringify({
      recipe,
      device: engine.device.name,
      entropy,
      heldOut: sum / n,
      ratio: sum / n / entropy,
      tokens: learned,
      losses: losses.map((x) => Number(x.toFixed(6))),
    }),
  );
  rmSync(checkpoint, { recursive: true, force: true });
}
if (
  process.argv[1] &&
  readFileSync(fileURLToPath(import.meta.url)).length &&
  process.argv[1].endsWith("train.ts")
)
  await main();
