/** What a served and trained engine says, for what must say the same bit for bit. */
import type { Engine, FinetuneOptions } from "../../sdk/index.ts";
import { batchOf, bits, collect, contentBits, idsOf } from "./engines.ts";

const vocab = 128;
export const job: FinetuneOptions = {
  name: "job",
  data: batchOf(vocab),
  steps: 2,
  batchSize: 5,
  learningRate: 5e-3,
  dropout: 0.1,
  seed: 5,
  rank: 4,
};

/** Logits of the base; of each method tokens and logprobs while jobs run, their losses, their weights. */
export async function everything(engine: Engine, methods: readonly string[]): Promise<unknown[]> {
  const { logits: base } = await engine.score(idsOf("before", 41, vocab), { logits: true });
  const row = await collect(engine, { prompt: idsOf("before", 9, vocab), maxTokens: 6, temperature: 0 });
  const out: unknown[] = [base!.map(bits), row];
  for (const method of methods) {
    const j = await engine.finetune({
      ...job,
      name: method,
      method,
      ...(method !== "lora" && { dropout: 0 }),
    });
    const said = await Promise.all(
      [0, 1, 2].map((i) =>
        collect(engine, { prompt: idsOf(`threads${i}`, 5 + i * 17, vocab), maxTokens: 6, temperature: 0 }),
      ),
    );
    const { losses } = await j.done;
    out.push(said, losses, method === "full" ? null : contentBits(engine, method));
    const { logits } = await engine.score(idsOf("after", 41, vocab), {
      ...(method !== "full" && { adapter: method }),
      logits: true,
    });
    out.push(logits!.map(bits));
  }
  return out;
}
