#!/usr/bin/env node
/**
 * weft compile | generate | finetune | inspect | doctor. Progress on stderr, results on stdout; `--json` for
 * machines; exit 1 on any error.
 */
import { resolve, sep } from "node:path";
import { parseArgs } from "node:util";
import { WeftError } from "../runtime/bundle.ts";
import { claimFolder } from "../runtime/folder.ts";
import { readManifest } from "../runtime/load.ts";
import type { DeviceChoice } from "../runtime/open.ts";
import { openReader } from "../runtime/reader.ts";
import { nearest } from "../runtime/schema.ts";
import { claimCheckpoints } from "./checkpoint.ts";
import {
  type Command,
  endLine,
  type Flags,
  fail,
  given,
  number,
  progress,
  string,
  tokenIds,
} from "./flags.ts";
import { compile, type FinetuneOptions, load } from "./index.ts";
import { doctor, inspect } from "./inspect.ts";
import { Stop } from "./stop.ts";

const usage = `weft: serve and fine-tune one base model from one process

  weft compile MODEL -o BUNDLE   a Hugging Face folder or a .gguf file → a bundle
      [--target wasm,webgpu] [--train lora,s2ft,prefix,…,full] [--methods lora,…] [--format f32|f16|int8]
      [--relaxed] [--policy coserve|fcfs] [--no-fuse] [--s2ft-sites o_proj,down_proj]
      [--context N] [--tokens N] [--slots N] [--jobs N] [--rank N] [--blocks N] [--saved-rows N]
      [--kept-rows N] [--head-rows N] [--quantum N] [--unit-rows N]
      [--calibrate FILE.jsonl [--selector activation-small|…] [--seed N]]   S2FT on channels chosen now
  weft generate BUNDLE --prompt TEXT | --ids 1,2,3
      [--adapter DIR] [--max-tokens N] [--temperature X] [--top-k N] [--top-p X] [--min-p X] [--seed N]
      [--stop TEXT] [--device D] [--memory 512MB]
  weft finetune BUNDLE --data FILE.jsonl --name NAME --out DIR
      [--method lora|s2ft|…|full] [--selector random|activation-small|…] [--tuned MODEL] [--rank N]
      [--alpha X] [--dropout X] [--epochs N] [--steps N] [--batch-size N] [--learning-rate X]
      [--schedule constant|linear|cosine] [--warmup-steps N] [--weight-decay X] [--seed N]
      [--eval-data FILE [--eval-every N] [--select last|best]] [--checkpoint DIR] [--resume DIR] [--device D]
      [--memory 512MB]
  weft inspect BUNDLE [--kernels] [--graph PROGRAM] [--for MEMORY]
  weft inspect --memory [--model FOLDER | llama-2-7b | llama-3-8b] [--tokens N] [--rank N]
      what each method takes, from a shape alone
  weft doctor [BUNDLE] [--for MEMORY]   what this machine has, and what a load of the bundle would choose

  Every command takes --json. Devices: auto (WebGPU on hardware, else Wasm), wasm, webgpu, software.`;

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const options = {
  compile: {
    output: { ...text, short: "o" },
    target: text,
    train: text,
    methods: text,
    format: text,
    policy: text,
    context: text,
    tokens: text,
    slots: text,
    jobs: text,
    rank: text,
    blocks: text,
    "saved-rows": text,
    "kept-rows": text,
    "head-rows": text,
    quantum: text,
    "unit-rows": text,
    "no-fuse": flag,
    relaxed: flag,
    "s2ft-sites": text,
    calibrate: text,
    selector: text,
    seed: text,
  },
  generate: {
    prompt: text,
    ids: text,
    adapter: text,
    "max-tokens": text,
    temperature: text,
    "top-k": text,
    "top-p": text,
    "min-p": text,
    seed: text,
    device: text,
    memory: text,
    stop: text,
  },
  finetune: {
    data: text,
    "eval-data": text,
    "eval-every": text,
    select: text,
    name: text,
    out: text,
    method: text,
    selector: text,
    tuned: text,
    rank: text,
    alpha: text,
    epochs: text,
    steps: text,
    "batch-size": text,
    "learning-rate": text,
    schedule: text,
    "warmup-steps": text,
    seed: text,
    checkpoint: text,
    resume: text,
    device: text,
    memory: text,
    "weight-decay": text,
    dropout: text,
  },
  inspect: { kernels: flag, graph: text, for: text, memory: flag, model: text, tokens: text, rank: text },
  doctor: { for: text },
} as const;
type Name = keyof typeof options;

/** The words of a command line as a shell takes them. */
const shellWords = (words: readonly string[]): string =>
  words.map((w) => (/^[\w./:=,@+-]+$/.test(w) ? w : `'${w.replaceAll("'", "'\\''")}'`)).join(" ");

const commands: Readonly<Record<Name, Command>> = {
  compile: async ([model], f, json) => {
    const list = (name: string): string[] | undefined =>
      typeof f[name] === "string"
        ? (f[name] as string).split(",").filter((x) => x && x !== "none")
        : undefined;
    const out = string(f, "output");
    for (const name of ["selector", "seed"])
      if (f[name] !== undefined && f.calibrate === undefined)
        fail(`--${name}`, "--calibrate beside it", "nothing to calibrate on");
    const t0 = performance.now();
    const manifest = await compile(model ?? fail("compile", "a model folder or .gguf file", "nothing"), out, {
      ...given({
        targets: list("target") as never,
        train: list("train") as never,
        methods: list("methods") as never,
        format: f.format as never,
        policy: f.policy as never,
        fuse: f["no-fuse"] ? false : undefined,
        relaxed: f.relaxed ? true : undefined,
        calibrate: f.calibrate
          ? {
              data: string(f, "calibrate"),
              ...given({ selector: f.selector as FinetuneOptions["selector"], seed: number(f, "seed") }),
            }
          : undefined,
      }),
      capacities: given({
        context: number(f, "context"),
        tokens: number(f, "tokens"),
        slots: number(f, "slots"),
        jobs: number(f, "jobs"),
        rank: number(f, "rank"),
        blocks: number(f, "blocks"),
        savedRows: number(f, "saved-rows"),
        keptRows: number(f, "kept-rows"),
        headRows: number(f, "head-rows"),
        quantum: number(f, "quantum"),
        unitRows: number(f, "unit-rows"),
        s2ft: f["s2ft-sites"] ? { sites: list("s2ft-sites") ?? [] } : undefined,
      }),
      onProgress: (p) => progress(`${p.phase} ${p.done}/${p.total}`),
    });
    endLine();
    const result = {
      bundle: out,
      base: manifest.base,
      targets: Object.keys(manifest.targets),
      train: manifest.train,
      parameters: manifest.model.parameters,
      seconds: Number(((performance.now() - t0) / 1000).toFixed(2)),
    };
    console.log(
      json
        ? JSON.stringify(result)
        : `${out}: ${result.parameters} parameters for ${result.targets.join(" and ")}, trains ${result.train.join(" and ") || "nothing"}, ${result.seconds} s`,
    );
  },
  generate: async ([bundle], f, json) => {
    if (f.ids !== undefined && f.prompt !== undefined) fail("--ids", "--prompt or --ids", "both");
    const prompt = typeof f.ids === "string" ? tokenIds(f.ids) : string(f, "prompt");
    await using engine = await load(bundle ?? fail("generate", "a bundle", "nothing"), {
      device: (f.device ?? "auto") as DeviceChoice,
      ...given({ memory: f.memory as string | undefined }),
    });
    if (f.adapter) await engine.adapters.load("adapter", string(f, "adapter"));
    let out = "";
    const ids: number[] = [];
    for await (const p of engine.generate({
      prompt,
      ...given({
        adapter: f.adapter ? "adapter" : undefined,
        maxTokens: number(f, "max-tokens"),
        temperature: number(f, "temperature"),
        topK: number(f, "top-k"),
        topP: number(f, "top-p"),
        minP: number(f, "min-p"),
        seed: number(f, "seed"),
        stop: f.stop ? [string(f, "stop")] : undefined,
      }),
    })) {
      out += p.text;
      ids.push(p.id);
      if (!json) process.stdout.write(engine.text ? p.text : `${p.id} `);
    }
    console.log(json ? JSON.stringify({ text: out, ids, device: engine.device }) : "");
  },
  finetune: async ([bundle], f, json) => {
    const out = string(f, "out");
    const from = bundle ?? fail("finetune", "a bundle", "nothing");
    const method = f.method
      ? string(f, "method")
      : ((await readManifest(await openReader(from))).train[0] ?? "lora");
    // Paths that cannot be written are told now, not after the training.
    await claimFolder(out, method === "full" ? "model" : "adapter");
    const checkpoint = f.checkpoint === undefined ? null : string(f, "checkpoint");
    if (checkpoint) {
      const [a, b] = [resolve(out), resolve(checkpoint)].map((p) => p + sep) as [string, string];
      if (a.startsWith(b) || b.startsWith(a))
        fail("--checkpoint", "a folder that neither holds that of --out nor lies in it", checkpoint);
      await claimCheckpoints(checkpoint);
    }
    await using engine = await load(from, {
      device: (f.device ?? "auto") as DeviceChoice,
      ...given({ memory: f.memory as string | undefined }),
    });
    const o: FinetuneOptions = {
      name: string(f, "name"),
      data: string(f, "data"),
      method,
      ...given({
        evalData: f["eval-data"] as string | undefined,
        evalEvery: number(f, "eval-every"),
        select: f.select as FinetuneOptions["select"],
        selector: f.selector as FinetuneOptions["selector"],
        tuned: f.tuned as string | undefined,
        rank: number(f, "rank"),
        alpha: number(f, "alpha"),
        epochs: number(f, "epochs"),
        steps: number(f, "steps"),
        batchSize: number(f, "batch-size"),
        learningRate: number(f, "learning-rate"),
        schedule: f.schedule as never,
        warmupSteps: number(f, "warmup-steps"),
        seed: number(f, "seed"),
        resume: f.resume as string | undefined,
        weightDecay: number(f, "weight-decay"),
        dropout: number(f, "dropout"),
      }),
      onEvent: (e) => {
        if (e.type === "start")
          progress(
            `${e.steps} steps, ${e.rows} rows (${e.skippedRows} without labels skipped), ${e.trainable} trainable parameters on ${engine.device.name}`,
          );
        if (e.type === "start") endLine();
        if (e.type === "step")
          progress(
            `step ${e.step} loss ${e.loss.toFixed(4)} lr ${e.learningRate.toExponential(2)} ${Math.round(e.tokensPerSecond)} tokens/s`,
          );
        if (e.type === "eval")
          progress(`eval at step ${e.step}: loss ${e.loss.toFixed(4)}${e.best ? " (best)" : ""}`);
        if (e.type === "eval") endLine();
      },
    };
    const job = await engine.finetune(o);
    const flags = Object.entries({ ...f, resume: checkpoint ?? undefined }).flatMap(([k, v]) =>
      typeof v === "string" ? [`--${k}`, v] : v ? [`--${k}`] : [],
    );
    const stop = new Stop(job, checkpoint, shellWords(["weft", "finetune", from, ...flags]), endLine);
    try {
      const result = await job.done;
      endLine();
      stop.saving = true;
      await (method === "full" ? engine.saveModel(out) : engine.adapters.get(o.name).save(out));
      const [first, last] = [result.losses[0], result.losses.at(-1)].map((x) => x?.toFixed(4));
      const kept = o.evalData ? `, kept step ${result.kept} (${o.select ?? "last"})` : "";
      console.log(
        json
          ? JSON.stringify({ ...result, out })
          : `${out}: ${result.steps} steps, loss ${first} → ${last}${kept}`,
      );
    } catch (e) {
      const code = await stop.code;
      if (code === null) throw e;
      return code;
    } finally {
      stop.end();
    }
  },
  inspect,
  doctor,
};

export async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  const json = rest.includes("--json");
  try {
    if (!name || name === "--help" || name === "-h" || rest.includes("--help")) {
      console.log(usage);
      return 0;
    }
    const command = Object.hasOwn(commands, name)
      ? commands[name as Name]
      : fail("command", Object.keys(commands).join(", "), name);
    let parsed: { values: Flags; positionals: string[] };
    try {
      parsed = parseArgs({
        args: rest,
        options: { ...options[name as Name], json: flag },
        allowPositionals: true,
        strict: true,
      }) as never;
    } catch (e) {
      const known = [...Object.keys(options[name as Name]), "json"].map((f) => `--${f}`);
      const unknown = /'(--?[^' ]+)/.exec((e as Error).message)?.[1];
      const near = unknown && nearest(unknown, known);
      throw new WeftError({
        code: "WEFT_CLI",
        where: `weft ${name}`,
        expected: known.join(", "),
        found: (e as Error).message.split(". ")[0]!,
        hint: near ? `did you mean ${near}?` : "weft --help",
      });
    }
    if (parsed.positionals.length > 1) fail(`weft ${name}`, "one folder", parsed.positionals.join(" "));
    const code = await command(parsed.positionals, parsed.values, json);
    return typeof code === "number" ? code : 0;
  } catch (e) {
    endLine();
    if (json)
      console.log(
        JSON.stringify({
          error:
            e instanceof WeftError
              ? e.toJSON()
              : { code: "WEFT_UNKNOWN", where: name, found: String((e as Error)?.message ?? e) },
        }),
      );
    else console.error(e instanceof WeftError ? e.message : ((e as Error)?.stack ?? String(e)));
    return 1;
  }
}
if (process.argv[1] && /cli\.[tj]s$/.test(process.argv[1]))
  process.exitCode = await main(process.argv.slice(2));
