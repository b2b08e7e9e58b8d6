/**
 * Shapes of known models, cut to a few layers, with their whole vocabularies and random weights in bf16: what
 * it takes to compile for both targets, then to load, generate and train steps of LoRA. Each in a process of
 * its own, whose peak is the system's number. Compiled kernels come from no cache.
 *
 *   npm run -s bench -- shapes [--models qwen3-30b-a3b:2,gemma-3-1b:7] [--format q4]
 *     [--devices wasm,software]
 *
 * `--models` are presets, each with its number of layers.
 */
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { models } from "../compiler/models/index.ts";
import { presets } from "../compiler/presets.ts";
import { buildPrograms } from "../compiler/programs/index.ts";
import { defaultCapacities } from "../compiler/target.ts";
import { safetensorsHeader } from "../runtime/bundle.ts";
import { compile, load } from "../sdk/index.ts";
import { table } from "./measure.ts";

const CONTEXT = 256;
const MIB = 2 ** 20;
/** Of this process, bytes. */
const peak = (): number =>
  Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024;

/** A folder with a model's tensors, the same random numbers again and again; written once. */
function folderOf(name: string, layers: number): string {
  const dir = join(tmpdir(), `weft-bench-shape-${name}-${layers}`);
  if (existsSync(join(dir, "config.json"))) return dir;
  mkdirSync(dir, { recursive: true });
  const config = { ...presets[name], num_hidden_layers: layers, eos_token_id: null };
  const model = models[String(presets[name]!.model_type)]!.read(config);
  const { layerParams, outerParams } = buildPrograms(model, defaultCapacities(CONTEXT), {
    format: () => "bf16",
    kv: "f32",
    methods: [],
    train: [],
  });
  const shape = (p: { kind: string; n: number; k: number }): number[] =>
    p.kind === "weight" ? [p.n, p.k] : [p.n];
  const tensors = [
    ...outerParams.map((p) => ({ name: model.names.outer[p.name]!, shape: shape(p) })),
    ...Array.from({ length: layers }, (_, l) =>
      layerParams.map((p) => ({
        name: model.names.layer.replace("{l}", String(l)) + p.name,
        shape: shape(p),
      })),
    ).flat(),
  ].map((t) => ({ ...t, dtype: "BF16" as const, bytes: 2 * t.shape.reduce((a, b) => a * b, 1) }));
  // ±2^-6 and below; of norms, 1.
  let state = 1;
  const block = Uint16Array.from({ length: MIB }, () => {
    state = Math.imul(state, 1664525) + 1013904223;
    return ((state >>> 16) & 0x8000) | (0x3c00 - ((state >>> 28) << 5)) | ((state >>> 20) & 0x7f);
  });
  const ones = new Uint16Array(2 ** 16).fill(0x3f80);
  const file = openSync(join(dir, "model.safetensors"), "w");
  writeSync(file, safetensorsHeader(tensors));
  for (const { shape, bytes } of tensors) {
    const from = new Uint8Array((shape.length > 1 ? block : ones).buffer);
    for (let at = 0; at < bytes; at += from.length)
      writeSync(file, from, 0, Math.min(from.length, bytes - at));
  }
  closeSync(file);
  const text = openSync(join(dir, "config.json.new"), "w");
  writeSync(text, JSON.stringify(config));
  closeSync(text);
  renameSync(join(dir, "config.json.new"), join(dir, "config.json"));
  return dir;
}

/** Seconds of the clock, of processors, and bytes. */
interface Said {
  readonly [what: string]: number;
}
const PROMPT = 32;
const TOKENS = 8;
/** What a process of its own does: `compile`, or a device. */
async function child(what: string, folder: string, bundle: string, format: string): Promise<Said> {
  const t0 = performance.now();
  if (what === "compile") {
    const manifest = await compile(folder, bundle, {
      cache: false,
      format: format as "q4",
      capacities: {
        ...{ context: CONTEXT, tokens: 64, sequences: 4, blocks: 32 },
        slots: 2,
        jobs: 1,
        rank: 8,
      },
    });
    return { seconds: since(t0), parameters: manifest.model.parameters };
  }
  await using engine = await load(bundle, { device: what as "wasm" });
  const loaded = since(t0);
  const ids = Array.from({ length: PROMPT }, (_, i) => (i * 7919) % engine.manifest.model.vocab);
  const t1 = performance.now();
  let [first, tokens] = [0, 0];
  for await (const _ of engine.generate({ prompt: ids, maxTokens: TOKENS, temperature: 0 }))
    if (!tokens++) first = since(t1);
  const token = (since(t1) - first) / (TOKENS - 1);
  const data = [{ input_ids: ids, labels: ids }];
  // A class's first job waits for kernels and for their check.
  const steps: number[] = [];
  const losses: number[] = [];
  for (const name of ["first", "step"]) {
    const t = performance.now();
    const job = await engine.finetune({ data, name, method: "lora", batchSize: 1, steps: 1 });
    losses.push(...(await job.done).losses);
    steps.push(since(t));
  }
  if (!losses.every(Number.isFinite) || losses[0] !== losses[1] || tokens !== TOKENS)
    throw new Error(`losses ${losses}, ${tokens} tokens`);
  const held = Object.values(engine.memory().bytes).reduce((a, b) => a + b, 0);
  return { load: loaded, prompt: first, token, first: steps[0]!, step: steps[1]!, held, loss: losses[0]! };
}
const since = (t: number): number => (performance.now() - t) / 1000;
const processors = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      models: { type: "string", default: "llama-3.2-1b:4,qwen3-0.6b:4,gemma-3-1b:7,qwen3-30b-a3b:2" },
      format: { type: "string", default: "q4" },
      devices: { type: "string", default: "wasm,software" },
      child: { type: "string" },
    },
  });
  const models = o.models.split(",");
  if (o.child) {
    const [name, layers] = models[0]!.split(":");
    const folder = folderOf(name!, Number(layers));
    const said = await child(o.child, folder, `${folder}.${o.format}.weft`, o.format);
    console.log(JSON.stringify({ ...said, processors: processors(), peak: peak() }));
    return;
  }
  const seconds = (x: number): string => x.toFixed(x < 10 ? 2 : 0);
  const megabytes = (x: number): string => (x / 1e6).toFixed(0);
  const compiles = [["compile", "parameters, M", "s", "of processors", "peak, MB"]];
  const plays = [
    ["play", "load, s", "prompt", "token", "first step", "step", "of processors", "held, MB", "peak, MB"],
  ];
  const results: Record<string, Record<string, Said>> = {};
  for (const model of models) {
    const [name, layers] = model.split(":");
    // Not of the compile's time.
    folderOf(name!, Number(layers));
    for (const what of ["compile", ...o.devices.split(",")]) {
      const run = fileURLToPath(new URL("run.ts", import.meta.url));
      const own = ["--models", model, "--format", o.format, "--child", what];
      const { stdout, stderr, status } = spawnSync(
        process.execPath,
        ["--import", "tsx", run, "shapes", ...own],
        { encoding: "utf8", maxBuffer: 64 * MIB },
      );
      if (status) throw new Error(`${model}, ${what}: ${stderr}`);
      const said = JSON.parse(stdout.trim().split("\n").at(-1)!) as Said;
      results[model] = { ...results[model], [what]: said };
      console.error(`${model} ${what}: ${JSON.stringify(said)}`);
      if (what === "compile")
        compiles.push([
          `${model} ${o.format}`,
          ...[megabytes(said.parameters!), seconds(said.seconds!), seconds(said.processors!)],
          megabytes(said.peak!),
        ]);
      else
        plays.push([
          `${model} ${o.format}, ${what}`,
          ...["load", "prompt", "token", "first", "step", "processors"].map((k) => seconds(said[k]!)),
          ...[megabytes(said.held!), megabytes(said.peak!)],
        ]);
    }
  }
  table(compiles);
  console.log();
  table(plays);
  console.log(JSON.stringify({ bench: "shapes", format: o.format, results }));
}
