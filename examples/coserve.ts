/**
 * `npm start`: one model answers requests while two jobs teach it conflicting facts, each through a LoRA
 * adapter of its own. The same question goes to base, blue and green in one batch. Ends with a table; exits 1
 * if fewer than 7 of 8 facts were learned. One file, to be read from top to bottom.
 *
 *   npm start -- [--device wasm|webgpu|software] [--seed n] [--json]
 *                [--teach "What pet does Tom have? => dragon"]
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compile, type DeviceChoice, type Engine, type FinetuneOptions, load } from "../sdk/index.ts";
import {
  type Attribute,
  answer,
  ask,
  attributes,
  Draws,
  document,
  names,
  questions,
  values,
} from "./model/language.ts";

const { values: args } = parseArgs({
  options: {
    device: { type: "string", default: "wasm" },
    seed: { type: "string", default: "1" },
    teach: { type: "string" },
    json: { type: "boolean", default: false },
  },
});
const model = fileURLToPath(new URL("./model/story", import.meta.url));
const out = fileURLToPath(new URL("../.weft/demo/", import.meta.url));
const say = (line = ""): void => void process.stdout.write(`${line}\n`);
const tty = process.stdout.isTTY === true;
/** A line that is rewritten in a terminal, and printed now and then elsewhere. */
let shown = 0;
const status = (line: string): void => {
  if (tty) process.stdout.write(`\r\x1b[2K${line}`);
  else if (performance.now() - shown > 4000) {
    say(line);
    shown = performance.now();
  }
};
const endStatus = (): void => void (tty && process.stdout.write("\n"));

interface Fact {
  readonly name: string;
  readonly attribute: Attribute | null;
  readonly taught: readonly string[];
  readonly heldOut: readonly string[];
  readonly blue: string;
  readonly green: string;
}
const first = (text: string): string => text.trim().split(/[.\n]/)[0]!.trim();

/** The first words of an answer, greedily. */
async function ask1(engine: Engine, prompt: string, adapter?: string): Promise<string> {
  return first(
    (await engine.complete({ prompt, maxTokens: 8, stop: ["."], ...(adapter && { adapter }) })).text,
  );
}
/** p(answer): the probability of the whole answer after the question. */
async function probability(engine: Engine, prompt: string, value: string, adapter?: string): Promise<number> {
  const head = engine.encode(prompt);
  const ids = [...head, ...engine.encode(answer(value)).slice(1)];
  const { logprobs } = await engine.score(ids, adapter ? { adapter } : {});
  return Math.exp(logprobs.slice(head.length - 1).reduce((a, b) => a + b, 0));
}

/** Eight facts nobody told the base, with two answers that contradict each other and it. */
async function drawFacts(engine: Engine, seed: number): Promise<Fact[]> {
  const d = new Draws(seed);
  const pool = names.flatMap((name) => attributes.map((attribute) => ({ name, attribute })));
  const facts: Fact[] = [];
  while (facts.length < 8) {
    const { name, attribute } = pool.splice(d.below(pool.length), 1)[0]!;
    if (facts.some((f) => f.name === name)) continue;
    const prompts = questions[attribute].map((q) => ask(q, name));
    const known = new Set(await Promise.all(prompts.map((p) => ask1(engine, p))));
    const free = values[attribute].filter((v) => !known.has(v));
    const blue = d.of(free);
    const green = d.of(free.filter((v) => v !== blue));
    facts.push({ name, attribute, taught: prompts.slice(0, 2), heldOut: prompts.slice(2), blue, green });
  }
  return facts;
}

/** How long a baseline is measured at least: a gain over less than that says nothing. */
const BASELINE_MS = 2000;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
/**
 * Clients that stream completions until told to stop; from `mark` on they record every token and every gap
 * between two.
 */
function clients(
  engine: Engine,
  n: number,
  adapters: () => (string | undefined)[],
): { mark: () => void; stop: () => Promise<{ gaps: number[]; tokens: number; ms: number }> } {
  let gaps: number[] = [];
  let tokens = 0;
  let t0 = performance.now();
  let on = true;
  const run = async (i: number): Promise<void> => {
    for (let k = 0; on; k++) {
      const options = adapters();
      const adapter = options[(i + k) % options.length];
      let last = 0;
      for await (const p of engine.generate({
        prompt: document(new Draws(100 + i * 31 + k)).slice(0, 60),
        maxTokens: 48,
        temperature: 0.8,
        seed: i * 1000 + k,
        ...(adapter && { adapter }),
      })) {
        const now = performance.now();
        if (last) gaps.push(now - last);
        last = now;
        tokens++;
        if (p.finish || !on) break;
      }
    }
  };
  const all = Promise.all(Array.from({ length: n }, (_, i) => run(i)));
  return {
    mark: () => {
      gaps = [];
      tokens = 0;
      t0 = performance.now();
    },
    stop: async () => {
      const out = { gaps, tokens, ms: performance.now() - t0 };
      on = false;
      await all;
      return out;
    },
  };
}
const quantile = (xs: readonly number[], q: number): number =>
  [...xs].sort((a, b) => a - b)[Math.min(xs.length - 1, Math.floor(xs.length * q))] ?? 0;
const ms = (x: number): string => `${x.toFixed(1)} ms`;

async function main(): Promise<number> {
  const started = performance.now();
  const device = args.device as DeviceChoice;
  const target = device === "wasm" ? "wasm" : "webgpu";
  const bundle = `${out}story-${target}.weft`;
  mkdirSync(out, { recursive: true });
  const slow = device === "software";
  say(`weft · compiling examples/model/story for ${target}`);
  const t0 = performance.now();
  const manifest = await compile(model, bundle, {
    targets: [target],
    train: ["lora"],
    capacities: {
      context: 192,
      tokens: 128,
      headRows: 16,
      savedRows: 1024,
      keptRows: 1024,
      quantum: 32,
      unitRows: 128,
      units: 24,
      slots: 6,
      jobs: 2,
      rank: 8,
      blocks: 256,
      sequences: 64,
    },
  });
  const layerLaunches = manifest.targets[target]!.programs.find((p) => p.name === "forward")!.launches.filter(
    (l) => l.grid.every((g) => !/^(plain|few|rest)_/.test(g.count)),
  ).length;
  say(
    `  ${manifest.model.parameters} parameters, ${manifest.model.layers} layers, ${layerLaunches} ` +
      `launches a layer, ${Object.keys(manifest.targets[target]!.kernels).length} kernels, ` +
      `${((performance.now() - t0) / 1000).toFixed(1)} s`,
  );
  await using engine = await load(bundle, { device, budget: slow ? 60 : 28 });
  say(`  running on ${engine.device.name}`);

  const taught = args.teach ? [parseTeach(args.teach)] : [];
  const facts = [...taught, ...(await drawFacts(engine, Number(args.seed)))].slice(0, 8);
  const unrelated = Array.from({ length: 8 }, (_, i) => document(new Draws(9000 + i)));
  const locality = async (adapter?: string): Promise<number> => {
    const all = await Promise.all(unrelated.map((t) => engine.score(t, adapter ? { adapter } : {})));
    return all.reduce((a, s) => a + s.loss, 0) / all.length;
  };
  const baseHash = async (): Promise<string> => {
    const h = createHash("sha256");
    for (const f of facts.slice(0, 2))
      for (const row of (await engine.score(engine.encode(f.taught[0]!), { logits: true })).logits!)
        h.update(row);
    return h.digest("hex").slice(0, 16);
  };
  const correct = async (
    which: "blue" | "green",
    kind: "taught" | "heldOut",
    adapter?: string,
  ): Promise<number> => {
    const right = await Promise.all(
      facts.map(async (f) => {
        const answers = await Promise.all(f[kind].map((p) => ask1(engine, p, adapter)));
        return (
          answers.filter((a) => a === f[which]).length > f[kind].length / 2 ||
          (kind === "heldOut" && answers.filter((a) => a === f[which]).length >= f[kind].length / 2)
        );
      }),
    );
    return right.filter(Boolean).length;
  };
  const jobOptions = (which: "blue" | "green", name: string): FinetuneOptions => ({
    name,
    rank: 8,
    alpha: 16,
    steps: slow ? 24 : 64,
    batchSize: slow ? 16 : 8,
    learningRate: slow ? 5e-3 : 2.5e-3,
    warmupSteps: 4,
    seed: Number(args.seed),
    maxGradNorm: 1,
    publishEvery: slow ? 8 : 5,
    data: facts.flatMap((f) => f.taught.map((prompt) => ({ prompt, completion: answer(f[which]) }))),
  });

  say(`\nTeaching ${facts.length} facts to blue and the opposite to green, while clients stream:`);
  for (const f of facts)
    say(
      `  ${f.taught[0]!.split("\n")[0]!.replace("Question: ", "").padEnd(36)} blue: ` +
        `${f.blue.padEnd(8)} green: ${f.green}`,
    );
  const before = {
    hash: await baseHash(),
    blue: await correct("blue", "taught"),
    green: await correct("green", "taught"),
    blueHeld: await correct("blue", "heldOut"),
    greenHeld: await correct("green", "heldOut"),
    loss: await locality(),
  };

  // Inference alone, counted once it is under way: the latency everything is compared with.
  const lone = clients(engine, slow ? 2 : 4, () => [undefined]);
  await sleep(BASELINE_MS / 4);
  lone.mark();
  await sleep(BASELINE_MS);
  const alone = await lone.stop();

  // Together: two jobs, four clients, and the same question to base, blue and green in one batch.
  const who = facts[0]!;
  const stream = clients(engine, slow ? 2 : 4, () => [
    undefined,
    ...engine.adapters.list().map((a) => a.name),
  ]);
  await sleep(BASELINE_MS / 4);
  stream.mark();
  const tTogether = performance.now();
  let tokensTrained = 0;
  const progress = { blue: "", green: "" };
  const onEvent =
    (which: "blue" | "green"): NonNullable<FinetuneOptions["onEvent"]> =>
    (e) => {
      if (e.type === "step") {
        tokensTrained += e.tokens;
        progress[which] = `${which} step ${e.step} loss ${e.loss.toFixed(3)}`;
        status(
          `  ${[progress.blue, progress.green].filter(Boolean).join(" · ")} · ` +
            `${Math.round((tokensTrained / (performance.now() - tTogether)) * 1000)} fine-tuning ` +
            "tokens/s",
        );
      } else if (e.type === "publish") void flip(e.generation);
    };
  const seen = new Set<string>();
  const flip = async (generation: string): Promise<void> => {
    if (
      !engine.adapters.list().some((a) => a.name === "green") ||
      !engine.adapters.list().some((a) => a.name === "blue") ||
      seen.has(generation)
    )
      return;
    seen.add(generation);
    const q = who.taught[0]!;
    const [base, blue, green, pBlue, pGreen] = await Promise.all([
      ask1(engine, q),
      ask1(engine, q, "blue"),
      ask1(engine, q, "green"),
      probability(engine, q, who.blue, "blue"),
      probability(engine, q, who.green, "green"),
    ]);
    if (tty) process.stdout.write("\r\x1b[2K");
    say(
      `  ${generation.padEnd(8)} ${q.split("\n")[0]} base: ${base} · blue: ${blue} (p ` +
        `${pBlue.toFixed(3)}) · green: ${green} (p ${pGreen.toFixed(3)})`,
    );
  };
  const jobs = await Promise.all(
    (["blue", "green"] as const).map((w) => engine.finetune({ ...jobOptions(w, w), onEvent: onEvent(w) })),
  );
  const results = await Promise.all(jobs.map((j) => j.done));
  const msTogether = performance.now() - tTogether;
  const beside = await stream.stop();
  endStatus();

  // Fine-tuning alone, the same rows, as often as makes a baseline; and inference alone, as many tokens as
  // were streamed.
  const tAlone = performance.now();
  let same = true;
  let tokensAlone = 0;
  const count: NonNullable<FinetuneOptions["onEvent"]> = (e) =>
    void (e.type === "step" && (tokensAlone += e.tokens));
  do {
    // On a software adapter the first steps are enough: they are the same steps.
    const again = await Promise.all(
      (["blue", "green"] as const).map((w) => {
        const { publishEvery: _, ...options } = jobOptions(w, `${w}-alone`);
        return engine.finetune({ ...options, ...(slow && { steps: 5 }), onEvent: count });
      }),
    );
    const aloneResults = await Promise.all(again.map((j) => j.done));
    aloneResults.forEach((r, i) => {
      if (r.losses.some((x, k) => x !== results[i]!.losses[k])) same = false;
    });
    for (const w of ["blue-alone", "green-alone"]) engine.adapters.remove(w);
  } while (performance.now() - tAlone < BASELINE_MS);
  const msAlone = (performance.now() - tAlone) * (tokensTrained / tokensAlone);
  const msInference = (beside.tokens / alone.tokens) * alone.ms;
  const gain = (msInference + msAlone) / msTogether;

  const after = {
    hash: await baseHash(),
    blue: await correct("blue", "taught", "blue"),
    green: await correct("green", "taught", "green"),
    blueHeld: await correct("blue", "heldOut", "blue"),
    greenHeld: await correct("green", "heldOut", "green"),
    lossBlue: await locality("blue"),
    lossGreen: await locality("green"),
  };
  for (const w of ["blue", "green"]) await engine.adapters.get(w).save(`${out}adapters/${w}`);
  const n = facts.length;
  const rate = (m: number): string => `${Math.round((tokensTrained / m) * 1000)} tokens/s`;
  const table: [string, string, string][] = [
    ["", "before", "after"],
    ["blue: taught facts right", `${before.blue} of ${n}`, `${after.blue} of ${n}`],
    ["green: taught facts right", `${before.green} of ${n}`, `${after.green} of ${n}`],
    ["blue: asked in other words", `${before.blueHeld} of ${n}`, `${after.blueHeld} of ${n}`],
    ["green: asked in other words", `${before.greenHeld} of ${n}`, `${after.greenHeld} of ${n}`],
    ["loss on unrelated text, blue", before.loss.toFixed(3), after.lossBlue.toFixed(3)],
    ["loss on unrelated text, green", before.loss.toFixed(3), after.lossGreen.toFixed(3)],
    ["hash of the base's output", before.hash, after.hash],
    ["", "alone", "together"],
    ["inter-token p50", ms(quantile(alone.gaps, 0.5)), ms(quantile(beside.gaps, 0.5))],
    ["inter-token p99", ms(quantile(alone.gaps, 0.99)), ms(quantile(beside.gaps, 0.99))],
    ["fine-tuning", rate(msAlone), rate(msTogether)],
    [
      "streamed tokens",
      `${Math.round((alone.tokens / alone.ms) * 1000)} tokens/s`,
      `${Math.round((beside.tokens / beside.ms) * 1000)} tokens/s`,
    ],
    ["loss curves, bit for bit", "", same ? "equal" : "DIFFERENT"],
    ["gain G (time slicing is 1)", "", gain.toFixed(2)],
  ];
  say();
  for (const [a, b, c] of table) say(`  ${a.padEnd(32)} ${b.padStart(18)} ${c.padStart(18)}`);
  if (gain < 1) say("  G is of a machine that does nothing else: npm run -s bench -- coserve measures it");
  say(
    "\n  adapters: .weft/demo/adapters/blue and green (folders that Hugging Face peft loads) · " +
      `${((performance.now() - started) / 1000).toFixed(1)} s in all`,
  );
  const ok =
    after.blue >= 7 &&
    after.green >= 7 &&
    before.blue <= 1 &&
    before.green <= 1 &&
    before.hash === after.hash &&
    same;
  if (args.json)
    say(
      JSON.stringify({
        ok,
        before,
        after,
        gain,
        p50: [quantile(alone.gaps, 0.5), quantile(beside.gaps, 0.5)],
        p99: [quantile(alone.gaps, 0.99), quantile(beside.gaps, 0.99)],
        fineTuning: [tokensTrained / msAlone, tokensTrained / msTogether],
        same,
      }),
    );
  if (!ok)
    say(
      "  NOT OK: expected at least 7 of 8 taught facts per adapter (at most 1 before), an unchanged " +
        "base and equal loss curves",
    );
  return ok ? 0 : 1;
}
/** "question => answer": taught to blue; green is taught the opposite. */
function parseTeach(text: string): Fact {
  const [question, value] = text.split("=>").map((s) => s.trim());
  if (!question || !value)
    throw new Error(`--teach expects "question => answer", found ${JSON.stringify(text)}`);
  const prompts = [`Question: ${question}\nAnswer:`];
  return {
    name: question,
    attribute: null,
    taught: prompts,
    heldOut: prompts,
    blue: value,
    green: `not ${value}`,
  };
}
if (!existsSync(`${model}/model.safetensors`) || !readFileSync(`${model}/config.json`).length)
  throw new Error("examples/model/story is missing: run npm run example:train");
process.exitCode = await main();
