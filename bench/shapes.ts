/**
 * A known model's shape, cut to a few layers, with random weights in bf16: what it takes to compile for both
 * targets, then to load, generate and train one step of LoRA. Each in a process of its own, whose peak is the
 * system's number.
 *
 *   npm run -s bench -- shapes [--model qwen3-30b-a3b] [--layers 2] [--format q4] [--devices wasm,software]
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

interface Said {
  readonly [what: string]: number;
}
/** What a process of its own does: `compile`, or a device. */
async function child(what: string, folder: string, bundle: string, format: string): Promise<Said> {
  const t0 = performance.now();
  const since = (t: number): number => (performance.now() - t) / 1000;
  if (what === "compile") {
    const manifest = await compile(folder, bundle, {
      format: format as "q4",
      capacities: {
        ...{ context: CONTEXT, tokens: 64, sequences: 4, blocks: 32, slots: 2, jobs: 1, rank: 8 },
      },
    });
    return { seconds: since(t0), parameters: manifest.model.parameters };
  }
  await using engine = await load(bundle, { device: what as "wasm" });
  const loaded = since(t0);
  const ids = Array.from({ length: 32 }, (_, i) => (i * 7919) % engine.manifest.model.vocab);
  const t1 = performance.now();
  const out: number[] = [];
  for await (const { id } of engine.generate({ prompt: ids, maxTokens: 8, temperature: 0 })) out.push(id);
  const generated = since(t1);
  const t2 = performance.now();
  const data = [{ input_ids: ids, labels: ids }];
  const job = await engine.finetune({ data, name: "step", method: "lora", batchSize: 1, steps: 1 });
  const { losses } = await job.done;
  if (!Number.isFinite(losses[0]) || out.length !== 8)
    throw new Error(`loss ${losses}, ${out.length} tokens`);
  return { load: loaded, generate: generated, train: since(t2), loss: losses[0]! };
}

export async function main(args: string[]): Promise<void> {
  const { values: o } = parseArgs({
    args,
    options: {
      model: { type: "string", default: "qwen3-30b-a3b" },
      layers: { type: "string", default: "2" },
      format: { type: "string", default: "q4" },
      devices: { type: "string", default: "wasm,software" },
      child: { type: "string" },
    },
  });
  const folder = folderOf(o.model, Number(o.layers));
  const bundle = `${folder}.${o.format}.weft`;
  if (o.child) {
    console.log(JSON.stringify({ ...(await child(o.child, folder, bundle, o.format)), peak: peak() }));
    return;
  }
  const results: Record<string, Said> = {};
  for (const what of ["compile", ...o.devices.split(",")]) {
    const run = fileURLToPath(new URL("run.ts", import.meta.url));
    const own = ["--model", o.model, "--layers", o.layers, "--format", o.format, "--child", what];
    const { stdout, stderr, status } = spawnSync(
      process.execPath,
      ["--import", "tsx", run, "shapes", ...own],
      { encoding: "utf8", maxBuffer: 64 * MIB },
    );
    if (status) throw new Error(`${what}: ${stderr}`);
    results[what] = JSON.parse(stdout.trim().split("\n").at(-1)!) as Said;
    const { peak: most, ...others } = results[what]!;
    const numbers = Object.entries(others).map(
      ([k, x]) => `${k} ${x > 1e6 ? `${(x / 1e9).toFixed(2)} G` : x.toFixed(2)}`,
    );
    table([[what, ...numbers, `peak ${(most! / MIB).toFixed(0)} MiB`]]);
  }
  console.log(
    JSON.stringify({ bench: "shapes", model: o.model, layers: Number(o.layers), format: o.format, results }),
  );
}
